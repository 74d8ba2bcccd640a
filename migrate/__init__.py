"""The migration engine: versioned and repeatable SQL files, a ledger, and what proves the result.

It needs psycopg and postgast only and knows neither Pulumi nor this platform.  `python -m migrate`
is the command line; `connection.connect`, `files.read_tree`, `run.plan`, `run.up`, `verify.check`
are the same for programs.
"""

VERSION = "1.0.0"
"""Recorded in the ledger with every file that this engine applies."""
