"""Errors for the operator: what is wrong, and what to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedded.errors import UserError


def _committed(names: Sequence[str] | None) -> str:
    """What a run has applied before it stopped; None where there was no run."""
    return "" if names is None else f"\n  committed in this run: {', '.join(names) or 'nothing'}"


class MigrateError(UserError):
    """The engine cannot do what it was asked to."""


class FilesError(MigrateError):
    """Every problem that was found in the migration files, some with an excerpt below."""

    def __init__(self, problems: Sequence[str], committed: Sequence[str] | None = None) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems) + _committed(committed))


class UnreachableError(MigrateError):
    """The database cannot be reached, or refuses us."""


class LostError(MigrateError):
    """The connection broke."""

    def __init__(self, reason: str, committed: Sequence[str] | None = None) -> None:
        self.reason = reason
        super().__init__(f"the connection broke: {reason}{_committed(committed)}", "run again")


class NoThrowawayError(MigrateError):
    """The server in which something was to be tried out does not come up."""


class NoRehearsalError(MigrateError):
    """There can be no rehearsal, so that nothing is known about what is pending."""


class IncompleteRunError(MigrateError):
    """Nothing tells drift from other changes, such as those of a run that was interrupted."""

    def __init__(
        self,
        reason: str = "a run is in progress or was interrupted",
        remedy: str = "wait for it; or run `up`, which finishes it",
    ) -> None:
        super().__init__(f"whether the schema has drifted is not known: {reason}", remedy)


@dataclass(frozen=True)
class Difference:
    """An object that is not as it should be; a definition is None where there is no object."""

    object: str
    expected: str | None
    found: str | None

    def __str__(self) -> str:
        """The object, with both definitions below it."""
        return (
            f"{self.object}\n  expected: {self.expected or '(absent)'}"
            f"\n  found:    {self.found or '(absent)'}"
        )


class DriftError(MigrateError):
    """The live catalog is not what the last run left behind."""

    expected = "as the last run left them"
    remedy = (
        "undo the change; or, where it is to stay, run `python -m migrate verify --accept` and "
        "write a migration that makes it where it is missing"
    )

    def __init__(self, differences: Sequence[Difference]) -> None:
        self.differences = list(differences)
        count = len(self.differences)
        super().__init__(
            f"{count} object{' is' if count == 1 else 's are'} not {self.expected}:\n"
            + "\n".join(map(str, self.differences)),
            self.remedy,
        )


class AdoptionError(DriftError):
    """A database has tables of ours and no ledger, and is not what the files make."""

    expected = "as the files make them, and there is no ledger to tell why; nothing was changed"
    remedy = (
        "if an older release made the database, run `up` from that release first; otherwise make "
        "it equal by hand. What is not the platform's belongs into a schema that another role owns"
    )


@dataclass(frozen=True)
class FailedCheck:
    """A check of `verify/` that fails: where it is, its comment, and rows that it returned."""

    place: str
    check: str
    rows: Sequence[Mapping[str, Any]]

    def __str__(self) -> str:
        """The check, with the rows below it."""
        rows = [", ".join(f"{name}={value}" for name, value in row.items()) for row in self.rows]
        return "\n  ".join([f"{self.place}: failed check: {self.check}", *rows])


class FailedChecksError(MigrateError):
    """Checks of `verify/` fail."""

    def __init__(
        self,
        failed: Sequence[FailedCheck],
        remedy: str = "what was applied stays applied; fix it with the next migration, or by "
        "editing a repeatable file",
    ) -> None:
        self.failed = list(failed)
        super().__init__("\n".join(map(str, self.failed)), remedy)
