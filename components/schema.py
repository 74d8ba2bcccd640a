"""Schema: the SQL files of sql/, applied by the migration engine as three dynamic resources."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import (
    CheckFailure,
    CheckResult,
    CreateResult,
    DiffResult,
    ReadResult,
    Resource,
    UpdateResult,
)

from components import ROOT
from components.session import DatabaseProvider
from migrate import files
from migrate.errors import FilesError, UnreachableError

# Imported in the methods that need it: see components/session.py.
if TYPE_CHECKING:
    from migrate.connection import Connection as Session

SQL = Path(os.path.relpath(ROOT / "sql"))

PLATFORM = "platform"
"""The folder with what hosted Supabase has and a plain PostgreSQL lacks."""


class FilesProvider(DatabaseProvider):
    """Applies one folder of sql/; the inputs are `folder`, `files` (name -> sha256) and `head`."""

    def check(self, olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Everything that needs no database: names, syntax, and what the last state says."""
        folder = news["folder"]
        try:
            found = files.read(SQL / folder)
            problems = files.content_problems(found)
        except FilesError as error:
            return CheckResult(news, [CheckFailure("", text) for text in error.problems])
        if folder == files.VERSIONED:
            problems += files.number_problems(found)
            problems += files.history_problems(folder, olds.get("files", {}), news["files"])
        return CheckResult(news, [CheckFailure("", text) for text in problems])

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """Compare with the last state, and ask the database what is really pending."""
        from migrate import run

        pending: list[str] = []
        try:
            with self.session() as session:
                pending = run.plan(session, SQL, [news["folder"]])[0].work
        except UnreachableError as error:
            print(f"warning: what is pending in {news['folder']}/ is not known: {error}")
        for name in pending:
            print(f"pending: {news['folder']}/{name}")
        return DiffResult(changes=bool(pending) or olds.get("files") != news["files"])

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Apply what is pending; a database that has it all is adopted as it is."""
        return CreateResult(props["folder"], self._apply(props))

    def update(self, _id: str, _olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        """The same as create."""
        return UpdateResult(self._apply(news))

    def _apply(self, props: dict[str, Any]) -> dict[str, Any]:
        from migrate import run

        with self.session() as session:
            run.up(session, SQL, [props["folder"]], report=print)
        return props

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """What the ledger says is applied, as both inputs and outputs, so that drift is a diff."""
        from migrate import ledger

        with self.session() as session:
            applied = {
                e.name: e.sha256 for e in ledger.entries(session) if e.folder == props["folder"]
            }
        live = props | {"files": applied, "head": max(applied, default="")}
        return ReadResult(id_, live, live)


class VerificationProvider(DatabaseProvider):
    """Proves the database; the inputs are digests of what it is proved against."""

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """Compare with the last proof, and ask the database for drift."""
        from migrate import run

        drift: list[str] = []
        try:
            with self.session() as session:
                drift = run.drift(session)
        except UnreachableError as error:
            print(f"warning: whether the schema has drifted is not known: {error}")
        for difference in drift:
            print(f"drift: {difference}")
        return DiffResult(changes=bool(drift) or any(olds.get(key) != news[key] for key in _PROOF))

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Prove the database.

        Raises:
            DriftError: objects differ from what the last run left.
            MigrateError: a promise is broken.
        """
        return CreateResult("verification", self._verify(props))

    def update(self, _id: str, _olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        """The same as create."""
        return UpdateResult(self._verify(news))

    def _verify(self, props: dict[str, Any]) -> dict[str, Any]:
        from migrate import run

        with self.session() as session:
            promises = run.verify(session, SQL)
            print(f"verified: no drift, {promises} promises hold")
            return props | _live(session)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """The live catalog's digests, one an object, so that drift is a diff by name."""
        with self.session() as session:
            return ReadResult(id_, props | _live(session), {key: props[key] for key in _PROOF})


_PROOF = ("files", "promises")


def _live(session: "Session") -> dict[str, Any]:
    from migrate import catalog

    objects = catalog.read(session)
    return {
        "fingerprint": files.fingerprint(objects),
        "objects": catalog.object_digests(objects),
    }


class FileSet(Resource):
    """A folder of sql/ with the digest of each file, so that a preview names every change."""

    head: pulumi.Output[str]
    files: pulumi.Output[dict[str, str]]

    def __init__(self, name: str, folder: str, opts: pulumi.ResourceOptions) -> None:
        try:
            present = files.digests(files.read(SQL / folder))
        except FilesError as error:
            raise pulumi.RunError(str(error)) from None
        props = {"folder": folder, "files": present, "head": max(present, default="")}
        super().__init__(FilesProvider(), name, props, opts)


class MigrationSet(FileSet, module="schema", name="MigrationSet"):
    """The versioned files, each applied once, in order."""


class RepeatableSet(FileSet, module="schema", name="RepeatableSet"):
    """The repeatable files of a folder, applied again whenever they change."""


class Verification(Resource, module="schema", name="Verification"):
    """The proof that the database is what the files say; whatever needs that depends on it."""

    fingerprint: pulumi.Output[str]

    def __init__(self, name: str, opts: pulumi.ResourceOptions) -> None:
        applied, promises = (
            files.fingerprint(
                {
                    f"{folder}/{file.name}": file.sha256
                    for folder in names
                    for file in files.read(SQL / folder)
                }
            )
            for names in ((files.VERSIONED, files.REPEATABLE), (files.VERIFY,))
        )
        props = {"files": applied, "promises": promises, "fingerprint": None, "objects": None}
        super().__init__(VerificationProvider(), name, props, opts)


@dataclass(frozen=True)
class SchemaArgs:
    """Arguments of Schema.

    Attributes:
        protect: keep what was applied out of reach of `pulumi destroy`.
    """

    protect: bool


class Schema(pulumi.ComponentResource):
    """Tables, policies and functions of sql/, applied in order and then proved.

    Attributes:
        version: the last migration's name, without `.sql`.
        applied: names of all migrations.
        fingerprint: sha256 hex digest of the catalog as it is.
    """

    version: pulumi.Output[str]
    applied: pulumi.Output[list[str]]
    fingerprint: pulumi.Output[str]

    def __init__(
        self, name: str, args: SchemaArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("mindroom:schema:Schema", name, None, opts)

        def child(*after: pulumi.Resource) -> pulumi.ResourceOptions:
            return pulumi.ResourceOptions(
                parent=self, depends_on=after, protect=args.protect, retain_on_delete=args.protect
            )

        migrations = MigrationSet("migrations", files.VERSIONED, child())
        repeatable = RepeatableSet("repeatable", files.REPEATABLE, child(migrations))
        verification = Verification("verification", child(migrations, repeatable))
        self.version = migrations.head.apply(lambda head: head.removesuffix(".sql"))
        self.applied = migrations.files.apply(sorted)
        self.fingerprint = verification.fingerprint
        self.register_outputs(
            {"version": self.version, "applied": self.applied, "fingerprint": self.fingerprint}
        )
