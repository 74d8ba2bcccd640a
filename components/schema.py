"""Schema: the SQL files of sql/, applied by the migration engine as dynamic resources."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from components.by_hand import GivenByHand
from components.session import DatabaseProvider
from migrate import adoption, catalog, files, ledger, plan, rehearsal, run, verify
from migrate.errors import (
    FilesError,
    IncompleteRunError,
    MigrateError,
    NoRehearsalError,
    UnreachableError,
)
from migrate.lint import Finding, default_privileges, lint
from migrate.plan import Plan
from migrate.report import Step
from migrate.session import Connection

SQL = Path(os.path.relpath(ROOT / "sql"))

RESTORED = (
    "where the database was restored from an older backup, run `python -m migrate up` and then "
    "`pulumi up --refresh --run-program`, which looks at roles and grants, too (docs/recovery.md)"
)


class FilesProvider(DatabaseProvider):
    """Applies one folder of sql/; the inputs are `folder`, `files` (name -> sha256) and `head`."""

    def check(self, olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Everything that needs no database: names, syntax, and what the last state says."""
        folder = news["folder"]
        if olds.get("files") == news["files"]:
            return CheckResult(news, [])
        try:
            found = files.read(SQL / folder)
            problems = files.sql_problems(found)
        except FilesError as error:
            return CheckResult(news, [CheckFailure("", text) for text in error.problems])
        if folder == files.VERSIONED:
            problems += files.number_problems(found)
            problems += files.history_problems(folder, olds.get("files", {}), news["files"])
            if olds.get("files", {}).keys() - news["files"].keys():
                problems.append(f"or, {RESTORED}")
        return CheckResult(news, [CheckFailure("", text) for text in problems])

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """Compare with the last state, and ask the database what is really pending.

        What is pending is linted and rehearsed, once for both kinds of files.
        """
        folder, tree = news["folder"], files.read_tree(SQL)
        changed = olds.get("files") != news["files"]
        for name in files.ignored(SQL):
            if name.startswith(f"{folder}/") or (folder == files.VERSIONED and "/" not in name):
                print(f"not read: {name}")
        try:
            with self.session() as session:
                if (known := plan.read(session, tree, [folder])).folders[0].recorded:
                    _refuse_older(olds, known)
                planned = plan.check(session, tree, [folder])
                if planned.has_work:
                    made = adoption.compare(session, tree)
                    if made and not made.bundled:
                        print(f"{folder}: {made}")
                    else:
                        _refuse_older(olds, planned)
                        _preview(session, tree, planned)
        except UnreachableError as error:
            print(f"warning: what is pending in {folder}/ is not known: {error}")
            # Where the database does not exist, `up` must not end as if all were well.
            return DiffResult(changes=changed or "does not exist" in str(error))
        return DiffResult(changes=changed or planned.has_work)

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Apply what is pending; a database that has it all is adopted as it is."""
        return CreateResult(props["folder"], self._apply(props))

    def update(self, _id: str, _olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        """The same as create."""
        return UpdateResult(self._apply(news))

    def _apply(self, props: dict[str, Any]) -> dict[str, Any]:
        with self.session() as session:

            def report(step: Step) -> None:
                if step.event != "applying":
                    print(step)

            run.up(session, files.read_tree(SQL), [props["folder"]], report)
        return props

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """What the ledger says is applied, as both inputs and outputs, so that drift is a diff."""
        with self.session() as session:
            applied = dict(sorted(ledger.read(session).digests.get(props["folder"], {}).items()))
        live = props | {"files": applied, "head": max(applied, default="")}
        return ReadResult(id_, live, live)


def _refuse_older(olds: Mapping[str, Any], planned: Plan) -> None:
    """Refuse a database that lacks migrations of the state: its grants may be missing as well.

    Raises:
        MigrateError: it lacks them.
    """
    (folder,) = planned.folders
    lost = sorted(olds["files"].keys() - folder.recorded.keys()) if folder.versioned else []
    if lost:
        raise MigrateError(
            f"the stack's state has {', '.join(lost)}, and the database has not",
            RESTORED,
        )


def _preview(session: Connection, tree: files.Tree, planned: Plan) -> None:
    """Print what is pending in a folder, what of it hurts, and how the rehearsal of all went.

    Raises:
        MigrateError: the rehearsal failed.
    """
    (folder,) = planned.folders
    everything = plan.check(session, tree)
    findings = lint(*everything.linted, defaults=default_privileges(session))
    _print_work(folder, findings)
    if not planned.complete:
        print("the record of what is there is not complete: this completes it")
    working = [pending for pending in everything.folders if pending.changes]
    if not working or folder.name != working[0].name:
        return  # one rehearsal, of versioned and repeatable files together
    try:
        print(rehearsal.rehearse(tree, session))
    except NoRehearsalError as error:
        print(f"warning: {error}")
    except MigrateError:
        for other in working[1:]:  # the preview does not come to these
            _print_work(other, findings)
        raise


def _print_work(folder: plan.Folder, findings: Sequence[Finding]) -> None:
    for name in folder.changes:
        print(f"pending: {folder.name}/{name}")
    for finding in findings:
        if finding.path.parent.name == folder.name:
            print(f"finding: {finding}")


class VerificationProvider(DatabaseProvider):
    """Verifies the database; the inputs are digests of what it is verified against."""

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """Compare with the last verification, and ask the database for drift."""
        changes = any(olds.get(key) != news[key] for key in _VERIFIED)
        try:
            with self.session() as session:
                drift = verify.drift(session)
        except UnreachableError as error:
            print(f"warning: whether the schema has drifted is not known: {error}")
            return DiffResult(changes=changes)
        except IncompleteRunError as error:
            print(error)
            return DiffResult(changes=True)
        for difference in drift:
            print(f"drift: {difference}")
        return DiffResult(changes=changes or bool(drift))

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Verify the database.

        Raises:
            DriftError: objects differ from what the last run left.
            MigrateError: a check fails.
        """
        return CreateResult("verification", self._verify(props))

    def update(self, _id: str, _olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        """The same as create."""
        return UpdateResult(self._verify(news))

    def _verify(self, props: dict[str, Any]) -> dict[str, Any]:
        with self.session() as session:
            checks = verify.check(session, files.read_tree(SQL))
            print(f"verified: no drift, checks passed: {checks}")
            return props | _live(session)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """The live catalog's digests, one an object, so that drift is a diff by name."""
        with self.session() as session:
            return ReadResult(id_, props | _live(session), {key: props[key] for key in _VERIFIED})


_VERIFIED = ("files", "checks")


def _live(session: Connection) -> dict[str, Any]:
    objects = catalog.portable(catalog.read(session))
    return {
        "fingerprint": fingerprint(objects),
        "objects": object_digests(objects),
    }


def fingerprint(values: Mapping[str, str]) -> str:
    """One sha256 (hex) over a whole map, whatever its order."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def object_digests(objects: Mapping[str, str]) -> dict[str, str]:
    """Object -> a short digest of its definition."""
    return {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in objects.items()}


class FileSet(Resource):
    """A folder of sql/ with the digest of each file, so that a preview names every change."""

    head: pulumi.Output[str]
    files: pulumi.Output[dict[str, str]]

    def __init__(self, name: str, folder: str, opts: pulumi.ResourceOptions) -> None:
        try:
            present = {file.name: file.sha256 for file in files.read(SQL / folder)}
        except FilesError as error:
            raise pulumi.RunError(str(error)) from None
        props = {"folder": folder, "files": present, "head": max(present, default="")}
        super().__init__(FilesProvider(), name, props, opts)


class MigrationSet(FileSet, module="schema", name="MigrationSet"):
    """The versioned files, each applied once, in order."""


class RepeatableSet(FileSet, module="schema", name="RepeatableSet"):
    """The repeatable files of a folder, applied again whenever they change."""


class Verification(Resource, module="schema", name="Verification"):
    """The check that the database is what the files say; resources that need that depend on it."""

    fingerprint: pulumi.Output[str]

    def __init__(self, name: str, opts: pulumi.ResourceOptions) -> None:
        applied, checks = (
            fingerprint(
                {
                    f"{folder}/{file.name}": file.sha256
                    for folder in names
                    for file in files.read(SQL / folder)
                }
            )
            for names in ((files.VERSIONED, files.REPEATABLE), (files.VERIFY,))
        )
        props = {"files": applied, "checks": checks, "fingerprint": None, "objects": None}
        super().__init__(VerificationProvider(), name, props, opts)


@dataclass(frozen=True)
class SchemaArgs:
    """Arguments of Schema.

    Attributes:
        protect: keep what was applied out of reach of `pulumi destroy`.
    """

    protect: bool


class Schema(pulumi.ComponentResource):
    """Tables, policies and functions of sql/, applied in order and then verified.

    What was given to roles by hand is taken back before, or refused: the services' own privileges
    are granted after.

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
        by_hand = GivenByHand(
            "given-by-hand",
            pulumi.ResourceOptions(parent=self, depends_on=[migrations, repeatable]),
        )
        verification = Verification("verification", child(migrations, repeatable, by_hand))
        self.version = migrations.head.apply(lambda head: head.removesuffix(".sql"))
        self.applied = migrations.files.apply(sorted)
        self.fingerprint = verification.fingerprint
        self.register_outputs(
            {"version": self.version, "applied": self.applied, "fingerprint": self.fingerprint}
        )
