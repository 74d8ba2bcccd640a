-- migrate: no-transaction

discard all;
