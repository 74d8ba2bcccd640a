"""What can go wrong, as messages for the person who has to act on them."""

from collections.abc import Sequence


class MigrateError(Exception):
    """One message that says what is wrong, where, and what to do.  Never holds a password."""


class FilesError(MigrateError):
    """Every problem that was found in the migration files, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class DriftError(MigrateError):
    """The live catalog is not what the last run left behind."""


class UnreachableError(MigrateError):
    """The database cannot be reached, or refuses us."""
