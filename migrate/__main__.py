"""The command line: `python -m migrate COMMAND`."""

import argparse
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

from migrate import files, ledger, run
from migrate.bundle import bundle
from migrate.connection import connect
from migrate.errors import DriftError, MigrateError

UP_TO_DATE, ERROR, PENDING, DRIFT = 0, 1, 2, 3

_HELP = """\
commands:
  status      every file with its state: applied (when, by whom) or pending
  plan        what `up` would apply, after all checks; changes nothing
  up          apply what is pending: versioned files in order, then changed repeatable ones
  verify      check for drift and run the queries of verify/; --accept takes the drift as right
  bundle      print everything as one script for `psql -f`
  new NAME    write the next versioned file

exit codes:
  0 up to date   1 error   2 pending (status, plan)   3 drift (verify)

The database is --database-url, else DATABASE_URL, else libpq's own PGHOST, PGSERVICE and so on.
"""

_TEMPLATE = """\
-- {title}: what this changes, and why.

"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with ERROR, argparse's own 2 being PENDING; a misplaced URL may hold a password."""
        self.print_usage(sys.stderr)
        self.exit(ERROR, "error: " + re.sub(r"://\S*", "://...", message) + "\n")


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    everywhere = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    everywhere.add_argument(
        "--directory",
        type=Path,
        help="holds migrations/, repeatable/ and verify/, each optional (default: sql)",
    )
    everywhere.add_argument("--database-url", help="postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    parser = _Parser(
        prog="python -m migrate",
        description="Apply SQL migrations to a PostgreSQL database, each once, and prove them.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[everywhere],
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    added = {name: commands.add_parser(name, parents=[everywhere]) for name in _COMMANDS}
    added["plan"].add_argument(
        "--offline", action="store_true", help="check the files, ask no database"
    )
    added["verify"].add_argument(
        "--accept", action="store_true", help="record the live catalog as right"
    )
    added["new"].add_argument("name", metavar="NAME")
    defaults = argparse.Namespace(
        directory=Path("sql"), database_url=os.environ.get("DATABASE_URL", "")
    )
    options = parser.parse_args(arguments, defaults)
    try:
        if not options.directory.is_dir():
            raise MigrateError(f"{options.directory}: no such directory: pass --directory")
        folders = (files.VERSIONED, files.REPEATABLE, files.VERIFY)
        if options.command != "new" and not any((options.directory / n).exists() for n in folders):
            raise MigrateError(f"{options.directory}: holds none of {', '.join(folders)}")
        return _COMMANDS[options.command](options)
    except DriftError as error:
        print(error, file=sys.stderr)
        return DRIFT
    except MigrateError as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        print(
            "error: interrupted: the file under way was rolled back, "
            "unless it runs without a transaction",
            file=sys.stderr,
        )
        return ERROR


def _status(options: argparse.Namespace) -> int:
    with connect(options.database_url) as connection:
        applied = {(e.folder, e.name): e for e in ledger.entries(connection)}
        found = run.folders(connection, options.directory)
    for folder in found:
        pending = {file.name for file in folder.pending}
        for file in folder.files:
            entry = applied.get((folder.name, file.name))
            state = "pending" if file.name in pending else "applied"
            when = (
                f"  {entry.applied_at:%Y-%m-%d %H:%M:%S%z} by {entry.applied_by}" if entry else ""
            )
            print(f"{state}  {folder.name}/{file.name}{when}")
        for name in folder.gone:
            print(f"removed  {folder.name}/{name}")
    files.refuse([problem for folder in found for problem in folder.problems])
    return PENDING if any(folder.work for folder in found) else UP_TO_DATE


def _plan(options: argparse.Namespace) -> int:
    if options.offline:
        bundle(options.directory)
        files.refuse(files.content_problems(files.read(options.directory / files.VERIFY)))
        print("the files are sound; which of them are pending only a database knows")
        return UP_TO_DATE
    with connect(options.database_url) as connection:
        found = run.plan(connection, options.directory)
    pending = [f"pending  {folder.name}/{name}" for folder in found for name in folder.work]
    print("\n".join(pending) or "nothing to do")
    return PENDING if pending else UP_TO_DATE


def _up(options: argparse.Namespace) -> int:
    with connect(options.database_url) as connection:
        applied = run.up(connection, options.directory, report=partial(print, flush=True))
    print(f"applied {len(applied)} files" if applied else "nothing to do")
    return UP_TO_DATE


def _verify(options: argparse.Namespace) -> int:
    with connect(options.database_url) as connection:
        if options.accept:
            run.accept(connection)
        promises = run.verify(connection, options.directory)
    print(f"verified: no drift, {promises} promises hold")
    return UP_TO_DATE


def _bundle(options: argparse.Namespace) -> int:
    sys.stdout.buffer.write(bundle(options.directory).encode())
    return UP_TO_DATE


def _new(options: argparse.Namespace) -> int:
    name = re.sub(r"[^a-z0-9]+", "_", options.name.lower()).strip("_")
    if not name:
        raise MigrateError(f"{options.name!r} has no letter or digit to name a file by")
    folder = options.directory / files.VERSIONED
    folder.mkdir(exist_ok=True)
    present = files.read(folder)
    files.refuse(files.number_problems(present))
    path = folder / f"{len(present) + 1:04d}_{name}.sql"
    path.write_text(_TEMPLATE.format(title=options.name), encoding="utf-8")
    print(path)
    return UP_TO_DATE


_COMMANDS = {
    "status": _status,
    "plan": _plan,
    "up": _up,
    "verify": _verify,
    "bundle": _bundle,
    "new": _new,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
