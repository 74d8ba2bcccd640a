"""The migration engine: SQL files, a ledger of those applied, and verification of the result.

It is independent of Pulumi and of this platform's tables; it knows Supabase's API roles and pooler.
It needs psycopg, postgast, rich, and `embedded` for its error class and a throwaway server.

A **file** of `migrations/` is applied once, one of `repeatable/` again whenever it changes.  The
**ledger**, in the database, has a row for each file that is applied.  A **plan** is the files
beside the ledger: what is pending, and why nothing may be applied.  A **run** applies a plan under
a lock and records the **catalog**, which is every object with its definition.  **Drift** is what
differs from that record later.

To know how a file reaches the database, read in this order:

    files.py        a file is a value: name, content, digest; problems of names and of history
    statements.py   SQL into statements, by PostgreSQL's parser
    parser.py       a whole file, cut into pieces of statements, so that its size does not matter
    ledger.py       the three tables in the schema `migrate`, and what is asked of them
    plan.py         `check`: what a run would do
    session.py      what a session begins with, and `send`
    lock.py         one run at a time
    report.py       what a run says, and how a failure is shown
    message.py      statements as they are sent, and whose a notice or an error is
    apply.py        `apply_pending`: a file and its ledger row in one transaction
    run.py          `up`: lock, plan, apply, record
    catalog/        `read` and `differences`; its other modules are queries as data
    verify.py       `check`: no drift, and each query of `verify/` returns nothing

Each of these is by itself, for when it is needed (the steps above call some of them):

    connection.py       `connect`, and how a pooler is found out
    no_transaction.py   files that cannot run in a transaction, and how they survive a crash
    forbidden.py        what no file may hold, such as COMMIT or another tool's markers
    throwaway.py        a PostgreSQL for as long as something is tried out in it
    rehearsal.py        a plan, tried there
    adoption.py         a database that psql has made of the files, before there was a ledger
    bundle.py           all files as one script for psql
    lint/               `lint`: what in pending files would hurt a live database
    errors.py           all that can go wrong
    __main__.py         the command line, `python -m migrate`

For programs: `connection.connect`, `files.read_tree`, `plan.check`, `run.up`, `verify.check`.
"""

VERSION = "1.0.0"
"""Recorded in the ledger with every file that this engine applies."""
