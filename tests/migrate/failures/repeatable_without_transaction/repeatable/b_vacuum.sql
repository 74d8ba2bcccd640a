-- migrate: no-transaction

vacuum orders;
vacuum shipments;
