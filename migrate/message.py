"""One message to the server: statements of a file, with what opens and closes their transaction.

The server answers each statement of a message by a result, and stops at the first that fails.  Its
notices carry no number.  Hence a mark stands between the statements of a file.  A small file:

    create table customers (id int primary key);
    create index on customers (id);

is sent as one message:

    deallocate all;discard temp;close all;begin;commit;begin;   opening
    create table customers (id int primary key);show role;      a statement and the mark
    create index on customers (id);                             the last has none behind it
    reset all; ... insert into migrate.ledger ...; commit       closing, shortened

A large file is sent in the pieces that its `Script` has: the first has the opening, the last the
closing.  Of several files that commit together the first has the opening, each its ledger row, and
the last the commit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from migrate.parser import Piece, Statement, split

_MARK = ";show role"
"""A statement that changes nothing, and has a row: a notice of statement i (from 0) is read when
there are 2i - 1 or 2i results (see `send`)."""


@dataclass(frozen=True)
class Message:
    """A piece of a file, between statements that are not of the file.

    Attributes:
        ends: where in the piece each of its statements ends, in characters.
        opening, closing: SQL before and after it, a semicolon behind each statement of the opening;
            empty in the middle of a large file.
        marked: whether the mark stands between its statements.
    """

    piece: Piece
    ends: Sequence[int]
    opening: str = ""
    closing: str = ""
    marked: bool = True

    @property
    def text(self) -> str:
        """What is sent."""
        borders = [0, *self._marks, None]
        parts = [self.piece.text[start:end] for start, end in pairwise(borders)]
        return self.opening + _MARK.join(parts) + self.closing

    @cached_property
    def statements(self) -> list[Statement]:
        """The statements of the piece."""
        return split(self.piece)

    def index(self, results: int) -> int:
        """Which of the statements the server is at.

        Args:
            results: how many results it has sent.

        Returns:
            From 0, also for the opening; `len(ends)` or more for the closing.
        """
        results = max(results - self.opening.count(";"), 0)
        return (results + 1) // 2 if self.marked else results

    def offset(self, position: int, statement: Statement) -> int:
        """Where in a statement a place of the text is, both in characters from 0."""
        place = position - len(self.opening)
        for mark in self._marks:
            place -= len(_MARK) if place > mark else 0
        return place - statement.start

    @property
    def _marks(self) -> Sequence[int]:
        return self.ends[:-1] if self.marked else ()
