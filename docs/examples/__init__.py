"""How the platform's services call the database; docs/services.md shows each file."""
