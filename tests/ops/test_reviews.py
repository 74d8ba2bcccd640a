"""What a reviewer reads: made of small events here, and of the real engine's at the end.

A real Markdown parser tells what GitHub would take as text and what as code.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pulumi import automation

from components import PROJECT
from embedded.cluster import ClusterAccess
from ops.reviews import __main__ as reviews
from ops.reviews import text
from tests.program.test_dev import WITHOUT_PULUMI
from tests.support.engines import Project, make_project
from tests.support.platforms import (
    PASSWORDS,
    TOKEN,
    Platform,
    copy_project,
    own_server,
    stack_config,
)

SECRET = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270"}
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
URN = "urn:pulumi:prod::mindroom::"
PACK = {"policyPackName": "mindroom", "policyPackVersion": "1.0.0"}


def event(kind: str, **what: Any) -> dict[str, Any]:
    return {"sequence": 1, "timestamp": 1, kind: what}


def step(
    op: str,
    name: str = "thing",
    old: Mapping[str, Any] | None = None,
    new: Mapping[str, Any] | None = None,
    *,
    type_: str = "postgresql:index/role:Role",
    differs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    metadata = {
        "op": op,
        "urn": f"{URN}{type_}::{name}",
        "type": type_,
        "old": None if old is None else {"inputs": old, "outputs": {}},
        "new": None if new is None else {"inputs": new, "outputs": {}},
        "detailedDiff": differs,
    }
    return event("resourcePreEvent", metadata=metadata)


def outputs(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {
        "op": "same",
        "type": "pulumi:pulumi:Stack",
        "old": {"outputs": old},
        "new": {"outputs": new},
    }
    return event("resOutputsEvent", metadata=metadata)


def said(severity: str, message: str, **more: Any) -> dict[str, Any]:
    return event(
        "diagnosticEvent",
        **{"prefix": f"{severity}: ", "message": f"{message}\n", "severity": severity, **more},
    )


def violated(level: str, policy: str, message: str, name: str = "thing") -> dict[str, Any]:
    return event(
        "policyEvent",
        **PACK,
        policyName=policy,
        enforcementLevel=level,
        resourceUrn=f"{URN}kubernetes:core/v1:Pod::{name}",
        message=message,
    )


END = event("summaryEvent", result="succeeded")
SAME = step("same", old={"a": 1}, new={"a": 1})

PLAN: dict[str, Any] = {
    "pending": [{"file": "migrations/0014_late.sql"}],
    "removed": [],
    "findings": [
        {
            "path": "sql/migrations/0014_late.sql",
            "line": 1,
            "column": 1,
            "rule": "create-index",
            "message": "nobody can write",
            "remedy": "create it CONCURRENTLY",
            "reason": None,
        }
    ],
    "drift": [],
    "rehearsal": {"postgres": "18.4", "applied": 1, "checks": 42, "seconds": 0.071},
}


STACK = "pulumi:pulumi:Stack"
MIGRATIONS = "pulumi-python:dynamic/schema:MigrationSet"


@pytest.mark.parametrize(
    ("stack", "migrations", "applied"),
    [
        ("create", "create", False),
        ("same", "create", False),
        ("same", "update", True),
        ("same", None, True),  # its diff failed
        ("create", None, False),
    ],
)
def test_whether_the_stack_has_migrations(
    stack: str, migrations: str | None, applied: bool
) -> None:
    events = [step(stack, type_=STACK)]
    events += [step(migrations, type_=MIGRATIONS)] if migrations else []
    assert text.is_applied(events) is applied


def lines(*events: dict[str, Any]) -> list[str]:
    """The lines below `Changes`."""
    return text.changes([*events, END]).block.splitlines()


class TestChanges:
    """What Pulumi would change."""

    def test_nothing(self) -> None:
        assert str(text.changes([SAME, outputs({"a": 1}, {"a": 1}), END])) == "**Changes:** none."

    def test_every_operation_is_counted_and_named(self) -> None:
        events = [
            SAME,
            step("create", "a", new={"x": 1}),
            step("create", "b", new={"x": 1}),
            step("update", "c", {"x": 1}, {"x": 2}),
            step("create-replacement", "d", {"y": 1}, {"y": 2}),
            step("replace", "d", {"y": 1}, {"y": 2}),
            step("delete-replaced", "d", {"y": 1}),
            step("delete", "e", {"x": 1}),
            step("read", "f", {"x": 1}, {"x": 2}),
            step("refresh", "g", {"x": 1}, {"x": 2}),
            END,
        ]
        role = "postgresql:index/role:Role"
        assert text.changes(events) == text.Section(
            "**Changes:** 2 to create, 1 to update, 1 to replace, 1 to delete.",
            f"+ create {role} a\n+ create {role} b\n! update {role} c\n-     x: 1\n+     x: 2\n"
            f"! replace {role} d\n-     y: 1\n+     y: 2\n- delete {role} e",
        )

    def test_objects_are_compared_part_by_part(self) -> None:
        old = {"spec": {"containers": [{"image": "a:1", "name": "x"}]}, "__defaults": []}
        new = {"spec": {"containers": [{"image": "a:2", "name": "x"}]}, "__defaults": ["name"]}
        assert lines(step("update", old=old, new=new))[1:] == [
            '-     spec.containers[0].image: "a:1"',
            '+     spec.containers[0].image: "a:2"',
        ]

    @pytest.mark.parametrize(
        ("old", "new", "expected"),
        [
            (["A", "B"], ["B", "A", "C"], ['+     p: "C"']),
            (["A", "B"], ["B"], ['-     p: "A"']),
            (["A", "B"], ["B", "A"], ['-     p: ["A", "B"]', '+     p: ["B", "A"]']),
            ([{"a": 1}], [{"a": 1}, {"b": 2}], ['+     p: {"b": 2}']),
            (None, ["A"], ['+     p: ["A"]']),
            (False, 0.5, ["-     p: false", "+     p: 0.5"]),
            ("a", UNKNOWN, ['-     p: "a"', "+     p: (known after up)"]),
            ("x\ny", "x", ['-     p: "x\\ny"', '+     p: "x"']),
        ],
    )
    def test_values(self, old: Any, new: Any, expected: list[str]) -> None:
        assert lines(step("update", old={"p": old}, new={"p": new}))[1:] == expected

    def test_long_value_is_cut(self) -> None:
        told = lines(step("update", old={"p": "a" * 900}, new={"p": "b"}))[1]
        assert told.endswith("aaa... (902)")
        assert len(told) < 230

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (SECRET, SECRET),
            ("plain until now", SECRET),
            (SECRET, "plain from now on"),
            (None, SECRET),
            (SECRET, None),
            ({"inner": "plain until now"}, SECRET),
        ],
    )
    def test_secret_is_named_and_not_shown(self, old: Any, new: Any) -> None:
        differs = {"password": {"diffKind": "update"}}
        told = lines(step("update", old={"password": old}, new={"password": new}, differs=differs))
        assert len(told) == 2
        assert told[1].startswith("!     password: not shown (a secret")

    def test_outputs(self) -> None:
        events = [SAME, outputs({"a": 1, "b": SECRET}, {"a": 2, "b": SECRET}), END]
        assert text.changes(events) == text.Section(
            "**Changes:** none; the stack's outputs change.",
            "! outputs of the stack\n-     a: 1\n+     a: 2",
        )

    def test_preview_that_did_not_begin_says_so(self) -> None:
        assert text.failed([])
        assert "the preview did not begin" in str(text.changes([]))

    def test_preview_that_failed_says_so(self) -> None:
        for end in ([], [event("summaryEvent", result="failed")]):
            events = [step("create", "a", new={}), outputs({"a": 1}, {}), *end]
            assert text.failed(events)
            assert text.changes(events) == text.Section(
                "**Changes:** the preview failed; until then: 1 to create.",
                "+ create postgresql:index/role:Role a",
            )


class TestMigrations:
    """What the plan's JSON says."""

    def test_nothing(self) -> None:
        plan = PLAN | {"pending": [], "findings": [], "rehearsal": None}
        assert str(text.migrations(plan)) == "**Migrations:** none pending."

    def test_all(self) -> None:
        drift = [{"object": "table public.t", "expected": "kind r", "found": None}]
        assert text.migrations(PLAN | {"drift": drift, "removed": ["repeatable/v.sql"]}) == (
            text.Section(
                "**Migrations:** pending 1, findings 1 (not acknowledged 1), "
                "objects changed behind the engine's back 1, rehearsed in 0.07 s.",
                "pending  migrations/0014_late.sql\n"
                "removed  repeatable/v.sql\n"
                "finding: sql/migrations/0014_late.sql:1:1: create-index: nobody can write\n"
                "  what to do: create it CONCURRENTLY\n"
                "drift: table public.t\n  expected: kind r\n  found:    (absent)\n"
                "rehearsed in a throwaway PostgreSQL 18.4: pending files applied 1 (in 0.07 s), "
                "checks passed 42",
            )
        )

    def test_failed_rehearsal_leaves_the_findings(self) -> None:
        plan = PLAN | {"rehearsal": None, "error": "the rehearsal failed: a.sql:1:1"}
        section = text.migrations(plan)
        assert section.line == (
            "**Migrations:** pending 1, which cannot be applied, findings 1 (not acknowledged 1)."
        )
        assert "finding: sql/migrations/0014_late.sql:1:1: create-index" in section.block
        assert section.block.endswith("\nthe rehearsal failed: a.sql:1:1")

    def test_missing_rehearsal(self) -> None:
        plan = PLAN | {"rehearsal": None, "not_rehearsed": "not rehearsed: no extension x"}
        section = text.migrations(plan)
        assert section.line.endswith(", findings 1 (not acknowledged 1), not rehearsed.")
        assert section.block.endswith("\nnot rehearsed: no extension x")

    def test_error(self) -> None:
        section = text.migrations({"error": "the rehearsal failed: a.sql:1:1", "exit_code": 1})
        assert section == text.Section(
            "**Migrations:** what is pending cannot be applied, or is not known.",
            "the rehearsal failed: a.sql:1:1",
        )


class TestPolicies:
    """What the policy pack says."""

    CHECKED = (
        event("policyAnalyzeSummaryEvent", **PACK, passed=["images", "limits"]),
        event("policyAnalyzeSummaryEvent", **PACK, passed=["images"], failed=["limits"]),
        event("policyAnalyzeStackSummaryEvent", **PACK, failed=["idle"]),
    )

    def test_none(self) -> None:
        assert str(text.policies([SAME, END])) == "**Policies:** none asked."

    def test_kept(self) -> None:
        kept = self.CHECKED[:1]
        assert str(text.policies([*kept, END])) == "**Policies:** asked 2, none violated."

    def test_violated(self) -> None:
        events = [
            *self.CHECKED,
            violated("mandatory", "limits", "Pods have limits.\nthis one has none\n", "a"),
            violated("advisory", "idle", "It excuses something.\nnothing needs it\n", "b"),
        ]
        assert text.policies(events) == text.Section(
            "**Policies:** asked 3, violations 2 (mandatory 1).",
            "- mandatory limits: a\n    Pods have limits.\n    this one has none\n"
            "! advisory idle: b\n    It excuses something.\n    nothing needs it",
        )


class TestMessages:
    """Errors and warnings."""

    def test_none(self) -> None:
        assert str(text.messages([SAME, END], PLAN)) == "**Errors and warnings:** none."

    def test_each_is_told_once(self) -> None:
        events = [
            said("warning", "careful", urn=f"{URN}a:b:C::thing"),
            said("warning", "careful", urn=f"{URN}a:b:C::thing"),
            said("error", "failed"),
            said("info", "pending: what the plan says"),
            said("debug", "registering"),
            said("error", "later", ephemeral=True),
        ]
        assert text.messages(events, PLAN) == text.Section(
            "**Errors and warnings:** 2.", "thing: warning: careful\nerror: failed"
        )


HOSTILE = st.one_of(
    st.text(st.sampled_from("`~\n\r |<>!-@#[]()*_\\ax$\t&;\x00\u2028")),
    st.sampled_from(
        [
            "```",
            "\n```\n# up",
            "<!-- ",
            "--> @everyone",
            "</details>",
            "| a | b |",
            "![x](http://x)",
        ]
    ),
    st.text(),
)


class TestMarkdown:
    """Whatever a name, a value or a message holds, it stays in its code block."""

    @given(HOSTILE, HOSTILE, HOSTILE)
    def test_nothing_gets_out_of_its_block(self, name: str, value: str, message: str) -> None:
        events = [
            step("update", name, {"p": value}, {"p": f"{value}."}),
            violated("mandatory", name, message, name),
            said("error", message),
            END,
        ]
        plan = PLAN | {"pending": [{"file": name}], "removed": [message], "error": message}
        sections = [
            text.changes(events),
            text.migrations(plan),
            text.policies(events),
            text.messages(events, PLAN),
        ]
        tokens = MarkdownIt("commonmark").parse(text.render("preview", "prod", sections))
        kinds = [token.type for token in tokens]
        paragraph = ["paragraph_open", "inline", "paragraph_close", "fence"]
        heading = ["heading_open", "inline", "heading_close"]
        assert kinds == ["html_block", *heading, *paragraph * len(sections)]
        words = [token.content for token in tokens if token.type in ("html_block", "inline")]
        assert words[0].strip() == "<!-- mindroom: preview of prod -->"
        assert words[2:] == [section.line for section in sections]

    def test_whole_sections_are_left_out_where_it_is_too_long(self) -> None:
        sections = [
            text.Section("**Small:** kept.", "short"),
            text.Section("**Large:** its line is kept.", "```\n" * 20_000),
            text.Section("**Wide:** kept.", "ö" * 20_000),
        ]
        shown = text.render("preview", "prod", sections)
        assert len(shown.encode()) <= text.LIMIT
        assert str(sections[0]) in shown
        assert str(sections[2]) in shown
        assert (
            "**Large:** its line is kept.\n(left out, since it does not fit here: 80000 "
            "characters; the job's summary has them)\n" in shown
        )
        assert "```\n```" not in shown
        assert str(sections[1]) in text.render("preview", "prod", sections, sys.maxsize)

    def test_all_sections_may_be_left_out(self) -> None:
        sections = [text.Section(f"**{number}**", "x" * 70_000) for number in range(3)]
        shown = text.render("preview", "prod", sections)
        assert shown.count("70000 characters") == 3
        assert "xxx" not in shown


def late_index(directory: Path) -> str:
    """Add a migration that hurts; its name."""
    folder = directory / "sql" / "migrations"
    path = folder / f"{len(list(folder.glob('*.sql'))) + 1:04d}_late.sql"
    path.write_text("create index late on public.accounts (company_name);\n")
    return path.name


OFFLINE = (
    r"\*\*Migrations:\*\* not compared with a database, "
    r"(findings \d+ \(not acknowledged 0\), )?rehearsed in "
)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project for the command line."""
    directory = tmp_path / "project"
    directory.mkdir()
    copy_project(directory)
    monkeypatch.setattr(reviews, "ROOT", directory)
    return directory


def test_plan_of_a_real_database_is_linted_and_rehearsed(platform: Platform, copy: Path) -> None:
    name = late_index(copy)
    plan = reviews._plan({"DATABASE_URL": platform.url}, "--platform", "--rehearse")
    section = text.migrations(plan)
    assert section.line.startswith(
        "**Migrations:** pending 1, findings 1 (not acknowledged 1), rehearsed in "
    )
    assert section.block.startswith(
        f"pending  migrations/{name}\nfinding: sql/migrations/{name}:1:1: create-index: "
    )
    assert "pending files applied 1" in section.block


def test_without_secrets_the_files_are_rehearsed_from_nothing(
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PATH", WITHOUT_PULUMI)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert reviews.main(["preview", "prod", "--offline"]) == 0
    shown = capsys.readouterr().out
    assert "**Changes:** not known, since this was done without secrets.\n" in shown
    assert re.search(OFFLINE, shown)
    assert "checks passed" in shown
    assert (tmp_path / "summary.md").read_text() == shown

    path = copy / "sql" / "migrations" / late_index(copy)
    path.write_text("alter table public.accounts add column full_name text;\n")
    assert reviews.main(["preview", "prod", "--offline"]) == 1
    shown = capsys.readouterr().out
    assert "the rehearsal failed" in shown
    assert f'{path.name}:1:1: column "full_name" of relation' in shown


def test_without_pulumi_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert reviews.main(["preview", "prod"]) == 1
    assert capsys.readouterr().err == "error: pulumi: No such file or directory\n"


class Life:
    """A stack of the real engine, and the commands on it as the workflows call them."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.summary = project.directory / "summary.md"
        workspace = project.stack.workspace
        self.environment = os.environ | workspace.env_vars | {"GITHUB_STEP_SUMMARY": self.summary}

    def run(self, command: str) -> tuple[int, str]:
        self.summary.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "ops.reviews", command, "test"],
            cwd=self.project.directory,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert self.summary.read_text() == done.stdout
        shown = done.stdout + done.stderr
        assert "Traceback" not in shown
        for secret in (*PASSWORDS.values(), TOKEN, self.project.config["databasePassword"]):
            assert secret not in shown
        return done.returncode, done.stdout

    def events(self) -> list[dict[str, Any]]:
        done = subprocess.run(
            ["pulumi", "preview", "--json", "--stack", "test", "--policy-pack", "policies"],
            cwd=self.project.directory,
            env=self.environment | {reviews._STREAMED: "true"},
            stdout=subprocess.PIPE,
            text=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]


def missing(ours: Any, theirs: Any, path: str) -> list[str]:
    """What a small event of the tests has and a real one has not, or of another type."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            each
            for key in ours
            for each in missing(ours[key], theirs.get(key, KeyError), f"{path}.{key}")
        ]
    return [] if isinstance(theirs, type(ours)) or ours is None else [path]


POLICIES = """
from pulumi_policy import EnforcementLevel, PolicyPack, ResourceValidationPolicy


def complain(args, report):
    if args.resource_type == "kubernetes:core/v1:Namespace":
        report("```\\n# no <!-- @everyone")


PolicyPack(
    "throwaway",
    [
        ResourceValidationPolicy("no-namespace", "None.", complain),
        ResourceValidationPolicy("warns", "Not.", complain, EnforcementLevel.ADVISORY),
        ResourceValidationPolicy("kept", "Kept.", lambda args, report: None),
    ],
    EnforcementLevel.MANDATORY,
)
"""


@pytest.mark.engine
@pytest.mark.skipif(not shutil.which("pulumi"), reason="needs the Pulumi CLI on PATH")
def test_life_on_the_real_engine(
    deploy_to: ClusterAccess, postgres_bin: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "project"
    directory.mkdir()
    with own_server(tmp_path, postgres_bin) as server:
        url = server.url("mindroom")
        cluster = {"kubernetesContext": deploy_to.context, "renderDirectory": ""}
        life = Life(make_project(directory, stack_config(url, directory) | cluster, url))

        code, shown = life.run("preview")
        assert code == 0
        assert " to create" in shown
        assert re.search(OFFLINE, shown)

        life.project.up()
        code, shown = life.run("drift")
        assert code == 0
        assert "**Changes:** none." in shown
        assert "**Migrations:** none pending." in shown
        assert "changed by hand" not in shown
        drifts(life, url)
        changes(life)
        shapes(life)
        failing(life)


def drifts(life: Life, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("revoke update on public.subscriptions from stripe_handler")
        connection.execute("alter table public.api_keys disable row level security")
    code, shown = life.run("drift")
    assert code == 3
    assert shown.startswith("<!-- mindroom: drift of test -->\n## Drift of `test`\n")
    assert "changed by hand" in shown
    assert "stripe_handler-public.subscriptions\n" in shown
    assert '+     privileges: "UPDATE"' in shown
    assert "objects changed behind the engine's back 1" in shown
    assert "drift: table public.api_keys\n  expected: " in shown
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("grant update on public.subscriptions to stripe_handler")
        connection.execute("alter table public.api_keys enable row level security")


def changes(life: Life) -> None:
    name = late_index(life.project.directory)
    (life.project.directory / "policies" / "__main__.py").write_text(POLICIES)
    planted = "planted-to-be-looked-for"
    path = f"{PROJECT}:servicePasswords.stripe_handler"
    secret = automation.ConfigValue(planted, secret=True)
    life.project.stack.set_config(path, secret, path=True)
    domain = automation.ConfigValue("other.example")
    life.project.stack.set_config(f"{PROJECT}:baseDomain", domain)
    code, shown = life.run("preview")
    assert code == 1  # since policies forbid it

    assert "**Changes:** the preview failed; until then: " in shown
    assert "!     password: not shown (a secret" in shown
    assert planted not in shown
    assert '+     data.BASE_DOMAIN: "other.example"' in shown
    assert f"+     files.{name}: " in shown

    assert "**Migrations:** pending 1, findings 1 (not acknowledged 1), rehearsed in " in shown
    assert f"pending  migrations/{name}\nfinding: " in shown

    assert "**Policies:** asked 3, violations 4 (mandatory 2).\n````diff\n" in shown
    assert "- mandatory no-namespace: mindroom\n    None.\n    ```\n    # no <!--" in shown
    assert "! advisory warns: mindroom\n" in shown


def failing(life: Life) -> None:
    """What the plan and the preview both fail by is said once."""
    folder = life.project.directory / "sql" / "migrations"
    (folder / f"{len(list(folder.glob('*.sql'))) + 1:04d}_bad.sql").write_text("select 1 / 0;\n")
    code, shown = life.run("preview")
    assert code == 1
    assert re.search(r"pending 2, which cannot be applied, findings \d", shown), shown
    assert "create-index: " in shown
    for told in ("the rehearsal failed; nothing was done", "_bad.sql:1:1: division by zero"):
        assert shown.count(told) == 1, shown
    assert "see Migrations" in shown


def shapes(life: Life) -> None:
    """The small events of the tests above are like those of the engine."""
    real = life.events()
    for ours in (
        step("same", old={}, new={}),
        step("update", old={}, new={}, differs={"password": {"diffKind": "update"}}),
        outputs({}, {}),
        said("warning", "careful"),
        violated("mandatory", "limits", "text"),
        TestPolicies.CHECKED[1],
        event("summaryEvent", result="failed"),
    ):
        (kind,) = ours.keys() - {"sequence", "timestamp"}
        compared = [missing(ours, theirs, kind) for theirs in real if kind in theirs]
        assert [] in compared, compared[:3]
