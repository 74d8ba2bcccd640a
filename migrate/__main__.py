"""The command line: `python -m migrate COMMAND`."""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import Any, NoReturn

from migrate import adoption, files, ledger, plan, rehearsal, run, verify
from migrate.bundle import bundle
from migrate.connection import connect
from migrate.errors import (
    DriftError,
    FailedChecksError,
    FilesError,
    MigrateError,
    NoRehearsalError,
)
from migrate.files import FOLDERS, PLATFORM, REPEATABLE, VERSIONED, File, Tree
from migrate.lint import default_privileges, lint
from migrate.lock import LOCK_WAIT
from migrate.report import Report, Step
from migrate.session import Connection

UP_TO_DATE, ERROR, PENDING, DRIFT = 0, 1, 2, 3

_DESCRIPTION = """\
Apply SQL migrations to a PostgreSQL database, each once, and prove the result.

A directory (default: sql) holds, each optional:
  migrations/NNNN_name.sql   versioned: applied once, in order, never edited afterwards
  repeatable/*.sql           functions, policies, grants: applied again whenever they change
  verify/*.sql               queries that return rows where something is wrong
  platform/*.sql             what a plain PostgreSQL lacks and a hosted one has

The database is --database-url, otherwise DATABASE_URL, otherwise what libpq finds in PGHOST,
PGSERVICE, its service file and so on.  Passwords are never printed.
"""

_EXIT_CODES = """\
exit codes:
  0  up to date, or done
  1  error: the message says what stands and what to do
  2  pending: there is something to apply (status, plan)
  3  drift: the database was changed behind the engine's back (plan, verify), or was made by
     psql, without a ledger, and is not what the files make (plan, up)
"""

_INCOMPLETE = "the record of what is there is not complete: `up` completes it"

_UNACKNOWLEDGED = """\
error: there are findings that nobody has acknowledged
  what to do: take the safe way of docs/lint.md; or, where it is right as it is, write the reason
  into the comment before the statement: -- migrate: allow RULE: reason"""

_TEMPLATE = """\
-- {title}: what this changes, and why.

"""


@dataclass(frozen=True)
class _Result:
    """What a command has to say: for people, and for machines."""

    code: int = UP_TO_DATE
    text: str = ""
    error: str = ""
    document: dict[str, Any] = field(default_factory=dict)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with 1, since 2 means pending here; a misplaced URL may hold a password."""
        self.print_usage(sys.stderr)
        self.exit(ERROR, "error: " + re.sub(r"://\S*", "://...", message) + "\n")


@cache
def _parser() -> argparse.ArgumentParser:
    everywhere = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common = everywhere.add_argument_group("common options")
    common.add_argument("--directory", type=Path, help="holds the folders (default: sql)")
    common.add_argument("--database-url", help="postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    common.add_argument("--json", action="store_true", help="one JSON document instead of text")
    parser = _Parser(
        prog="python -m migrate",
        description=_DESCRIPTION,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[everywhere],
    )
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    added = {
        name: commands.add_parser(
            name,
            help=summary[:1].lower() + summary[1:].rstrip("."),
            description=explanation,
            epilog=_EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[everywhere],
        )
        for name, command in _COMMANDS.items()
        for summary, _, explanation in [cleandoc(command.__doc__ or "").partition("\n\n")]
    }
    for name in ("status", "plan", "up"):
        added[name].add_argument(
            "--platform",
            action="store_true",
            help="with platform/ first, for a plain PostgreSQL",
        )
    added["plan"].add_argument(
        "--offline", action="store_true", help="check and lint the files, ask no database"
    )
    added["plan"].add_argument(
        "--rehearse", action="store_true", help="apply it in a throwaway PostgreSQL, and verify"
    )
    for name in ("up", "verify"):
        added[name].add_argument(
            "--wait",
            type=float,
            default=LOCK_WAIT,
            metavar="SECONDS",
            help="how long to wait for another run (default: %(default)g)",
        )
    added["verify"].add_argument(
        "--accept", action="store_true", help="first record the live catalog as right"
    )
    added["new"].add_argument("title", metavar="TITLE")
    return parser


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    defaults = argparse.Namespace(
        directory=Path("sql"), database_url=os.environ.get("DATABASE_URL", ""), json=False
    )
    options = _parser().parse_args(arguments, defaults)
    try:
        if not options.directory.is_dir():
            raise MigrateError(f"{options.directory}: no such directory", "pass --directory")
        known = any((options.directory / name).exists() for name in FOLDERS)
        if options.command != "new" and not known:
            raise MigrateError(
                f"{options.directory}: holds none of {', '.join(FOLDERS)}",
                "pass --directory, or make one by `new`",
            )
        result = _COMMANDS[options.command](options)
    except MigrateError as error:
        result = _refused(error)
    except OSError as error:
        result = _failed(MigrateError(f"{error.filename}: {error.strerror}"), {})
    except KeyboardInterrupt:
        interrupted = MigrateError(
            "interrupted: the file in progress was rolled back, unless it is `no-transaction`"
        )
        result = _failed(interrupted, {})
    shows = options.command != "bundle" and options.directory.is_dir()
    unread = files.ignored(options.directory) if shows else []
    if options.json:
        result.document["not_read"] = unread
        print(json.dumps(result.document | {"exit_code": result.code}, indent=2, default=str))
    else:
        lines = [*filter(None, [result.text]), *(f"not read  {name}" for name in unread)]
        if lines:
            print("\n".join(lines), flush=True)
        if result.error:
            print(result.error, file=sys.stderr)
    return result.code


def _refused(error: MigrateError) -> _Result:
    match error:
        case DriftError():
            drift = [asdict(difference) for difference in error.differences]
            return _Result(DRIFT, "", str(error), {"drift": drift})
        case FailedChecksError():
            return _failed(error, {"failed_checks": [asdict(failed) for failed in error.failed]})
        case FilesError():
            return _failed(error, {"problems": error.problems})
    return _failed(error, {})


def _failed(error: MigrateError, document: dict[str, Any]) -> _Result:
    return _Result(ERROR, "", f"error: {error}", document | {"error": str(error)})


@contextmanager
def _open(options: argparse.Namespace) -> Iterator[tuple[Connection, Tree]]:
    """The database and the files; these are read and hashed while the server answers."""
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(files.read_tree, options.directory)
        with connect(options.database_url) as connection:
            yield connection, reading.result()


def _names(options: argparse.Namespace) -> tuple[str, ...]:
    return (*([PLATFORM] if options.platform else []), VERSIONED, REPEATABLE)


def _status(options: argparse.Namespace) -> _Result:
    """Every file with its state.

    Show every file: applied (when, by whom), pending, or removed.  Reads only.

      python -m migrate status
      python -m migrate status --json | jq '.files[] | select(.state == "pending")'
    """
    with _open(options) as (connection, tree):
        found = plan.read(connection, tree, _names(options))
        applied = ledger.applications(connection)
    rows, lines = [], []
    for folder in found.folders:
        pending = {file.name for file in folder.pending}
        present = {file.name for file in folder.files}
        for name in sorted(present | folder.recorded.keys()):
            label = f"{folder.name}/{name}"
            state = "pending" if name in pending else "applied" if name in present else "removed"
            at, by = applied.get(label, (None, None))
            rows.append({"file": label, "state": state, "applied_at": at, "applied_by": by})
            lines.append(
                f"{state}  {label}" + (f"  {at:%Y-%m-%d %H:%M:%S%z} by {by}" if at else "")
            )
    lines += [] if found.complete else [_INCOMPLETE]
    problems = [problem for folder in found.folders for problem in folder.problems]
    document = {"files": rows, "complete": found.complete, "problems": problems}
    if problems:
        return _Result(ERROR, "\n".join(lines), "error: " + "\n".join(problems), document)
    return _Result(PENDING if found.has_work else UP_TO_DATE, "\n".join(lines), "", document)


def _plan(options: argparse.Namespace) -> _Result:
    """What `up` would do, after all checks.

    Check the files and show what `up` would apply, what of it would hurt a live database
    (docs/lint.md says why, and the safe way), and what has drifted.  Reads only.

      python -m migrate plan --rehearse    also apply it to a copy of the database's schema in a
                                           throwaway PostgreSQL, and verify that
      python -m migrate plan --offline     without a database: syntax, names, findings in any file
    """
    return _plan_of_files(options) if options.offline else _plan_of_database(options)


def _plan_of_files(options: argparse.Namespace) -> _Result:
    tree = files.read_tree(options.directory)
    everything = [file for name in FOLDERS for file in tree[name]]
    files.raise_if_any(files.number_problems(tree[VERSIONED]) + files.sql_problems(everything))
    findings = lint([*tree[VERSIONED], *tree[REPEATABLE]], each_alone=True)
    rehearsed = _rehearse(tree) if options.rehearse else _NOT_ASKED
    text = "\n".join([*map(str, findings), *rehearsed.text.splitlines()])
    document = {"findings": [asdict(finding) for finding in findings]} | rehearsed.document
    if rehearsed.error:
        return _Result(ERROR, text, rehearsed.error, document)
    if any(finding.reason is None for finding in findings):
        return _Result(ERROR, text, _UNACKNOWLEDGED, document)
    sound = "the files are sound; which of them are pending only a database knows"
    return _Result(UP_TO_DATE, f"{text}\n{sound}".lstrip(), "", document)


def _plan_of_database(options: argparse.Namespace) -> _Result:
    with _open(options) as (connection, tree):
        found = plan.check(connection, tree, _names(options))
        adopted = adoption.compare(connection, tree)
        if adopted and not adopted.bundled:
            found = plan.Plan([], complete=False)
        if adopted:
            drift = [] if found.pending else adopted.differences
        else:
            drift = verify.drift(connection) if found.complete else []
        findings = lint(*found.linted, defaults=default_privileges(connection))
        asked = options.rehearse and found.has_work
        rehearsed = _rehearse(tree, connection) if asked else _NOT_ASKED
    removed = [f"{folder.name}/{name}" for folder in found.folders for name in folder.removed]
    text = [
        *(f"pending  {file.label}" for file in found.pending),
        *(f"removed  {label}" for label in removed),
        *([str(adopted)] if adopted and not adopted.bundled else []),
        *map(str, findings),
        *(f"drift: {difference}" for difference in drift),
        *rehearsed.text.splitlines(),
        *([] if found.complete else [_INCOMPLETE]),
    ]
    document = {
        "pending": [_described(file) for file in found.pending],
        "removed": removed,
        "complete": found.complete,
        "findings": [asdict(finding) for finding in findings],
        "drift": [asdict(difference) for difference in drift],
    } | rehearsed.document
    code = PENDING if found.has_work else DRIFT if drift else UP_TO_DATE
    code = ERROR if rehearsed.error else code
    return _Result(code, "\n".join(text) or "nothing to do", rehearsed.error, document)


_NOT_ASKED = _Result(document={"rehearsal": None})


def _rehearse(tree: Tree, connection: Connection | None = None) -> _Result:
    try:
        rehearsed = rehearsal.rehearse(tree, connection)
    except NoRehearsalError as error:
        return _Result(text=str(error), document={"rehearsal": None, "not_rehearsed": str(error)})
    except MigrateError as error:
        return _failed(error, {"rehearsal": None})
    return _Result(text=str(rehearsed), document={"rehearsal": asdict(rehearsed)})


def _described(file: File) -> dict[str, Any]:
    return {
        "file": file.label,
        "sha256": file.sha256,
        "statements": file.script.count,
        "transactional": file.script.transactional,
    }


def _up(options: argparse.Namespace) -> _Result:
    """Apply what is pending.

    Versioned files in order, each in its own transaction with its ledger row, then the changed
    repeatable ones together.  One run at a time; another one waits.  Cut off at any point, run it
    again: it goes on where it stopped.

      python -m migrate up
      python -m migrate up --wait 600      behind a long run
      python -m migrate up --platform      on a plain PostgreSQL, if the SQL is for a hosted one
    """
    steps: list[Step] = []
    try:
        with _open(options) as (connection, tree), _progress(options, steps) as report:
            applied = run.up(connection, tree, _names(options), report, options.wait)
    except MigrateError as error:
        result = _refused(error)
        return replace(result, document=result.document | _notices(steps))
    text = f"files applied: {len(applied)}" if applied else "nothing to do"
    document = _notices(steps) | {
        "applied": [
            {"file": step.subject, "milliseconds": round(step.seconds * 1000)}
            for step in steps
            if step.event == "applied"
        ]
    }
    return _Result(UP_TO_DATE, text, "", document)


def _notices(steps: Sequence[Step]) -> dict[str, Any]:
    return {"notices": [asdict(step.notice) for step in steps if step.notice]}


@contextmanager
def _progress(options: argparse.Namespace, steps: list[Step]) -> Iterator[Report]:
    """A report that shows a bar on a terminal, plain lines elsewhere, nothing before JSON."""
    if options.json:
        yield steps.append
    elif not sys.stdout.isatty():
        yield _print
    else:
        with ExitStack() as stack:
            shown: list[Any] = []

            def show(step: Step) -> None:
                if not shown:
                    from rich.progress import Progress  # spares a run without a step 0.02 s

                    bar = stack.enter_context(Progress(*Progress.get_default_columns()[:2]))
                    shown.extend([bar, bar.add_task("waiting", total=None)])
                bar, task = shown
                if step.event == "applying":
                    bar.update(
                        task, total=step.total, completed=step.number - 1, description=step.subject
                    )
                else:
                    bar.console.print(str(step), markup=False, highlight=False)

            yield show


def _print(step: Step) -> None:
    if step.event != "applying":
        print(step, flush=True)


def _verify(options: argparse.Namespace) -> _Result:
    """Verify the database: no drift, all checks passed.

    Compare the live catalog with what the last run left, object by object, and run the queries of
    verify/, which return rows where something is wrong.  Reads only, but for --accept.

      python -m migrate verify
      python -m migrate verify --accept    take the drift as right; write a migration that makes it
                                           wherever else it is missing
    """
    with _open(options) as (connection, tree):
        accepted = verify.accept(connection, options.wait) if options.accept else []
        if not options.json:  # at once: it stands, even if a check fails
            print("".join(f"accepted: {difference}\n" for difference in accepted), end="")
        checks = verify.check(connection, tree)
    text = f"verified: no drift, checks passed: {checks}"
    document = {"accepted": [asdict(difference) for difference in accepted]}
    return _Result(
        UP_TO_DATE, text, "", document | {"drift": [], "failed_checks": [], "checks": checks}
    )


def _bundle(options: argparse.Namespace) -> _Result:
    """Everything as one script for `psql -f`.

    Print all versioned and repeatable files as one script for an empty database.  It writes the
    ledger too, so that a later `up` applies nothing again.  Asks no database.

      python -m migrate bundle > all-migrations.sql
    """
    parts = bundle(files.read_tree(options.directory))
    if options.json:
        return _Result(document={"script": "".join(parts)})
    for part in parts:
        sys.stdout.buffer.write(part.encode())
    sys.stdout.flush()
    return _Result()


def _new(options: argparse.Namespace) -> _Result:
    """Write the next versioned file.

    Write the next versioned file, numbered and named by its title, for you to fill in.

      python -m migrate new "add invoices"
    """
    name = re.sub(r"[^a-z0-9]+", "_", options.title.lower()).strip("_")
    if not name:
        raise MigrateError(f"{options.title!r} has no letter or digit to name a file by")
    folder = options.directory / VERSIONED
    folder.mkdir(exist_ok=True)
    present = files.read(folder)
    files.raise_if_any(files.number_problems(present))
    path = folder / f"{len(present) + 1:04d}_{name}.sql"
    path.write_text(_TEMPLATE.format(title=options.title), encoding="utf-8")
    return _Result(UP_TO_DATE, str(path), "", {"file": str(path)})


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
