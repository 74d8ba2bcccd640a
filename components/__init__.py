"""What Pulumi declares, one file a component; `config` is the only reader of stack config."""
