-- migrate: no-transaction

vacuum (analyze) shipments;
