"""The rules of lint, and what it finds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True)
class Finding:
    """A statement that hurts.

    Attributes:
        path: its file.
        line: where it begins, from 1.
        column: where in the line, from 1.
        rule: a name in RULES.
        message: what hurts.
        remedy: the safe way.
        reason: why it may run all the same, as its acknowledgement says; None without one.
    """

    path: Path
    line: int
    column: int
    rule: str
    message: str
    remedy: str
    reason: str | None

    def __str__(self) -> str:
        """The finding, with what to do, or why nothing, in a line of its own."""
        end = f"acknowledged: {self.reason}" if self.reason else f"what to do: {self.remedy}"
        return f"{self.path}:{self.line}:{self.column}: {self.rule}: {self.message}\n  {end}"


class Rule(NamedTuple):
    """What hurts, `{}` being what the statement names, and the safe way."""

    message: str
    remedy: str


RULES: Mapping[str, Rule] = {
    "create-index": Rule(
        "nobody can write to {} until the index is built",
        "create it CONCURRENTLY, in a file of its own with `-- migrate: no-transaction`; on a "
        "partitioned table ON ONLY it, then on each partition",
    ),
    "drop-index": Rule(
        "dropping {} waits for every query on its table, and all later ones wait behind it",
        "drop it CONCURRENTLY, in a file of its own with `-- migrate: no-transaction`",
    ),
    "reindex": Rule(
        "during REINDEX of {} nobody can write to the table, and new queries on it wait",
        "reindex CONCURRENTLY, in a file of its own with `-- migrate: no-transaction`",
    ),
    "partitioned": Rule(
        "PostgreSQL refuses {} on {}, which is partitioned",
        "do it on each partition; an index is first created ON ONLY the table, then CONCURRENTLY "
        "on each partition, and these by ALTER INDEX ... ATTACH PARTITION become its parts",
    ),
    "column-rewrite": Rule(
        "{} rewrites the table and its indexes, and meanwhile nobody can read or write it",
        "add a column without that, and fill the rows that are there in batches",
    ),
    "type-rewrite": Rule(
        "changing {} rewrites the table and its indexes, and meanwhile nobody can read or write it",
        "add a column of the new type, keep it in step by a trigger, and fill it in batches",
    ),
    "type-narrowing": Rule(
        "changing {} rewrites the table, and fails on a value that does not fit, or cuts it",
        "keep the type, and bound the values by a CHECK constraint, NOT VALID at first",
    ),
    "table-rewrite": Rule(
        "{} rewrites all of it, and meanwhile nobody can read or write it",
        "do it while nobody uses the table, or by an extension that copies online (pg_repack)",
    ),
    "not-null-without-default": Rule(
        "adding {} NOT NULL without a default fails if the table holds a single row",
        "give it a constant default; or add it nullable, fill it in batches, then SET NOT NULL",
    ),
    "set-not-null": Rule(
        "the whole table is searched for a null in {}, and meanwhile nobody can read or write it",
        "add CHECK (... IS NOT NULL) NOT VALID, VALIDATE it in a later file, then SET NOT NULL",
    ),
    "constraint-scan": Rule(
        "every row is tested by {}, and meanwhile nobody can {}",
        "add it NOT VALID, and VALIDATE CONSTRAINT in a later file",
    ),
    "attach-partition": Rule(
        "every row of {} is tested against the bounds of the partitions, and meanwhile nobody can "
        "read or write it",
        "first add a CHECK to it that says what the bounds will, NOT VALID, and VALIDATE it in a "
        "later file: then nothing is left to test",
    ),
    "detach-partition": Rule(
        "detaching a partition of {} waits for every query on the table, and all later ones wait "
        "behind it",
        "detach it CONCURRENTLY, in a file of its own with `-- migrate: no-transaction`",
    ),
    "refresh": Rule(
        "nobody can read {} until it is filled again",
        "give it a unique index, and refresh it CONCURRENTLY",
    ),
    "constraint-index": Rule(
        "the index of {} is built, and meanwhile nobody can read or write the table",
        "create a unique index CONCURRENTLY, then add the constraint USING INDEX; EXCLUDE has no "
        "such way: add it while nobody uses the table",
    ),
    "drop": Rule(
        "clients that still use {} fail, and its data is lost",
        "first release clients that do without it, then drop it",
    ),
    "cascade": Rule(
        "whatever depends on {} is dropped with it, named nowhere in the file",
        "drop by name what depends on it, and leave CASCADE out: then the server refuses if more "
        "does",
    ),
    "rename": Rule(
        "clients that still use the old name of {} fail",
        "offer the new name beside the old one, as a view or a column kept in step",
    ),
    "lock-table": Rule(
        "nobody can {} {} until the transaction ends",
        "leave it to the statements to lock what they need, or lock rows by SELECT ... FOR UPDATE",
    ),
    "truncate": Rule(
        "every row of {} is lost, and nobody can read or write it until the transaction ends",
        "delete what is no longer needed in batches",
    ),
    "missing-where": Rule(
        "every row of {} is changed at once: each stays locked until the end, and leaves a dead "
        "version behind",
        "change the rows in batches that commit one by one",
    ),
    "work-under-lock": Rule(
        "while this goes through {} nobody can {} {}: line {} locked it until the transaction ends",
        "put it into a later file, which has a transaction of its own",
    ),
    "no-row-security": Rule(
        "{} has no row-level security: who may use the table may use every row",
        "ALTER TABLE ... ENABLE ROW LEVEL SECURITY in the same file, and policies for who needs it",
    ),
    "view-security": Rule(
        "{} is read with the rights of its owner: row-level security is not asked who reads it",
        "create it WITH (security_invoker = true), each time: CREATE OR REPLACE VIEW without it "
        "takes it away",
    ),
    "default-privileges": Rule(
        "{} may read all of {}, by default privileges; it has no row-level security",
        "REVOKE ALL ON it FROM them in the same file, and grant by name what they need",
    ),
    "search-path": Rule(
        "{} has its owner's rights, and looks names up where its caller says: with any other "
        "search_path than this, the empty one included, types in the caller's pg_temp first",
        "add SET search_path = pg_catalog, pg_temp to it, and write every name in it with its "
        "schema",
    ),
    "public-execute": Rule(
        "{} may execute {}",
        "REVOKE EXECUTE ON FUNCTION ... FROM all of these in the same file, and grant it by name",
    ),
    "new-enum-value": Rule(
        "{} is used in the transaction that adds it, which PostgreSQL refuses",
        "use it in a later file, which has a transaction of its own",
    ),
    "placeholder": Rule(
        "{} stands for itself: there is nothing that fills it in",
        "write what is meant; or, if it is text that a program fills in, say so as the reason",
    ),
    "unknown-statement": Rule(
        "nobody here knows what {} locks or reads",
        "look it up in PostgreSQL's documentation, and write what it does as the reason",
    ),
    "directive": Rule(
        "{} is not followed",
        "write `-- migrate: no-transaction` into the comment that opens the file, from the begin "
        "of a line on, or `-- migrate: allow RULE: REASON` or `-- migrate: leave OBJECT: REASON`, "
        "with the object as `verify` names it, directly before a statement",
    ),
    "acknowledgement": Rule(
        "this acknowledges nothing: {}",
        "write `-- migrate: allow RULE: REASON` directly before the statement, or remove it",
    ),
}
"""Every rule by its name."""

NOT_ACKNOWLEDGEABLE = {"directive", "acknowledgement"}
"""Rules that cannot be acknowledged."""
