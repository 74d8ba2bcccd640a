"""What in the pending files hurts a live database, and the safe way.

No database is asked, but for its default privileges.  The files applied before tell which tables
and functions there are; what the pending files make themselves is empty and unused, so that no
lock on it hurts; what no file tells of exists and is full.  Where the files leave a doubt, as the
body of a DO block does, they are believed: what is found is to be right.  docs/lint.md has a
section for each rule.
"""

from collections.abc import Collection, Sequence

from migrate.files import File
from migrate.lint._privileges import Default, default_privileges
from migrate.lint._rules import RULES, Finding

__all__ = ["RULES", "Finding", "default_privileges", "lint"]


def lint(
    files: Sequence[File],
    before: Sequence[File] = (),
    each_alone: bool = False,
    defaults: Collection[Default] | None = None,
) -> list[Finding]:
    """What hurts in the pending files, in their order, acknowledged or not.

    Args:
        files: the pending files in the order of their run.
        before: the files applied before them.
        each_alone: each may run long after the one before it, so that what that made is in use.
        defaults: the default privileges of the database, which no file need tell of; None to
            believe the files.

    Raises:
        FilesError: the parser refuses a file.
    """
    # Here, because of what it imports: see postgast of migrate/parser.py.
    from migrate.lint._reader import Reader

    reader = Reader()
    for file in before:
        reader.read(file)
    reader.start_pending(defaults)
    for file in files:
        reader.read(file)
        if each_alone:
            reader.forget_new()
    reader.finish()
    order = {file.path: number for number, file in enumerate(files)}
    findings = sorted(
        reader.findings, key=lambda found: (order[found.path], found.line, found.column)
    )
    if not each_alone and any(found.rule == "acknowledgement" for found in findings):
        # An acknowledgement that only `each_alone` needs is not idle: there, less may be pending.
        idle = lint(files, before, each_alone=True, defaults=defaults)
        findings = [f for f in findings if f.rule != "acknowledgement" or f in idle]
    return findings
