"""The migration engine: versioned and repeatable SQL files, a ledger, and the verification.

Independent of Pulumi and of this platform's tables; it knows Supabase's API roles and pooler.  It
needs psycopg, postgast, rich, and `embedded` for a throwaway server.  `python -m migrate` is the
command line; `connection.connect`, `files.read_tree`, `plan.check`, `run.up`, `verify.check` are
the same for programs.
"""

VERSION = "1.0.0"
"""Recorded in the ledger with every file that this engine applies."""
