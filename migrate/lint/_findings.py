"""Where a finding stands, and what its file says about it."""

import re
from dataclasses import dataclass, field

from migrate.catalog import left_by
from migrate.files import File
from migrate.lint._locks import HINDERS
from migrate.lint._rules import NOT_ACKNOWLEDGEABLE, RULES, Finding
from migrate.parser import Statement

_DIRECTIVE = re.compile(
    r"^[ \t]*((?:--|/\*)[ \t]*migrate:[ \t]*(.*))", re.MULTILINE | re.IGNORECASE
)
_ALLOW = re.compile(r"allow\b([^:]*):?(.*)")


@dataclass(frozen=True, eq=False)
class Place:
    """A statement, with the rules that it acknowledges -> how far from it, and why."""

    file: File
    statement: Statement
    allowed: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The number of its line."""
        return self.statement.position().partition(":")[0]


class Findings:
    """Collects what hurts, statement by statement, and the locks that a transaction holds."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._acknowledging: list[Place] = []
        self._used: set[tuple[Place, str]] = set()

    def begin(self) -> None:
        """A transaction begins."""
        self._held: tuple[int, str, Place] | None = None
        self._worked: set[str] = set()

    def enter(self, file: File, statement: Statement) -> None:
        """What follows is about this statement, which the comment before it may acknowledge."""
        self.place = Place(file, statement)
        comment = statement.comment
        self._take_directives(comment, -len(comment))
        if self.place.allowed:
            self._acknowledging.append(self.place)

    def leave(self) -> None:
        """The statement was the last of its file: whatever is behind it acknowledges nothing."""
        statement = self.place.statement
        rest = statement.piece.text[statement.stop :]
        if "migrate:" in rest:
            self.place = Place(self.place.file, statement)
            self._take_directives(rest, statement.stop - statement.start)
            self._acknowledging += [self.place] if self.place.allowed else []

    def _take_directives(self, comment: str, offset: int) -> None:
        for line in _DIRECTIVE.finditer(comment):
            at = line.start(1) + offset
            opens = self.place.statement.number == 1 and at < 0
            if line[1].startswith("/*"):
                self.find("directive", line[1].strip(), offset=at)
            elif allow := _ALLOW.match(line[2]):
                rule, reason = allow[1].strip(), allow[2].strip()
                if rule not in RULES or rule in NOT_ACKNOWLEDGEABLE:
                    why = f"{rule!r} is not a rule to acknowledge"
                    self.find("acknowledgement", why, offset=at)
                elif not reason:
                    self.find("acknowledgement", "it gives no reason", offset=at)
                else:
                    self.place.allowed[rule] = at, reason
            elif left_by(line[0]) and at < 0:
                pass
            elif line[2].strip() != "no-transaction" or not opens or self._transactional:
                self.find("directive", line[1].strip(), offset=at)

    @property
    def _transactional(self) -> bool:
        return self.place.file.script.transactional

    def find(self, rule: str, *words: object, place: Place | None = None, offset: int = 0) -> None:
        """Note what hurts.

        Args:
            rule: by its name.
            words: what its message names.
            place: where, unless at the present statement.
            offset: from there, in characters.
        """
        place = place or self.place
        self._used.add((place, rule))
        line, column = map(int, place.statement.position(offset).split(":"))
        message, remedy = RULES[rule]
        _, reason = place.allowed.get(rule, (0, None))
        message = message.format(*words)
        self.findings.append(Finding(place.file.path, line, column, rule, message, remedy, reason))

    def hold(self, table: str, lock: int) -> None:
        """The transaction holds a lock on a table in use from here to its end."""
        if lock in HINDERS and lock > (self._held[0] if self._held else 0):
            self._held = lock, table, self.place

    def work(self, table: str) -> None:
        """The statement goes through a table in use, which takes its time."""
        if self._held and table not in self._worked:
            self._worked.add(table)
            lock, locked, place = self._held
            self.find("work-under-lock", table, HINDERS[lock], locked, place.line)

    def finish(self) -> None:
        """Find what was acknowledged in vain."""
        for place in self._acknowledging:
            for rule, (offset, _) in place.allowed.items():
                if (place, rule) not in self._used:
                    why = f"{rule} finds nothing in the statement"
                    self.find("acknowledgement", why, place=place, offset=offset)
