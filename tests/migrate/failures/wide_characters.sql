select '注文', '顧客 🙂', amuont from orders;
