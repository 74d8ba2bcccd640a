"""The migration engine: SQL files, a ledger of those applied, and verification of the result.

It is independent of Pulumi and of this platform's tables; it knows Supabase's API roles and pooler.
It needs psycopg, postgast, rich, and `embedded` for its error class and a throwaway server.

    versioned         a file of `migrations/`: applied once, never edited
    repeatable        a file of `repeatable/` or `platform/`: applied again whenever it changes
    ledger            a table in the database with a row for each file that is applied
    plan              the files beside the ledger: what is pending, and why nothing may be applied
    run               applies a plan under a lock, and records the catalog that results
    catalog           object -> definition, of the objects that the ledger's owner has made
    drift             where the live catalog differs from the recorded one
    left to others    objects that a comment `-- migrate: leave ...` takes out of that
    partly applied    a file without a transaction of which a run did not come to the end
    session defaults  what ALTER DATABASE or ROLE ... SET makes a session begin with
    adopted           a database that psql has made of the files gets its ledger

To know how a file reaches the database, begin with `run.up`, whose module tells what a run does,
then read what that is made of:

    session.py           what a session begins with; `send`, by which statements of files are sent
    forbidden.py         what no file may hold, such as COMMIT or another tool's markers
    parser.py            SQL into statements, by PostgreSQL's parser
    script.py            a file's content in pieces of statements: its size does not matter
    files.py             a file is a value: name, content, digest; problems of names and of history
    ledger.py            the three tables in the schema `migrate`, and what is asked of them
    progress.py          how far a file without a transaction has come
    plan.py              `check`: what a run would do
    lock.py              one run at a time; who stands in the way of a file
    report.py            what a run says, and how a failure is shown
    message.py           statements as they are sent, and whose a notice or an error is
    no_transaction.py    files that cannot run in a transaction, and how they survive a crash
    apply.py             `apply_pending`: what commits together, with its ledger rows
    run.py               `up`: lock, adopt, mark, apply, record
    catalog/             `read` and `differences`; `_objects.py` is queries as data
    verify.py            `check`: no drift, and each query of `verify/` returns nothing

Each of these is by itself, for when it is needed:

    connection.py        `connect`, and how a pooler is found out
    concurrent_index.py  indexes that a file without a transaction builds CONCURRENTLY
    throwaway.py         a PostgreSQL for as long as something is tried out in it
    rehearsal.py         a plan, tried there
    adoption.py          compares a database that psql has made with the files, in such a server
    bundle.py            all files as one script for psql
    lint/                `lint`: what in pending files would hurt a live database
    errors.py            errors for the operator
    __main__.py          the command line, `python -m migrate`

For programs: `connection.connect`, `files.read_tree`, `plan.check`, `run.up`, `verify.check`.
"""

VERSION = "1.0.0"
"""Recorded in the ledger with every file that this engine applies."""
