"""What the migration engine's command line says to machines: one JSON document a command."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg

from tests.support.migrating import write

ROOT = Path(__file__).parents[2]

FILES = {
    "migrations/0001_t.sql": (
        "create table t (a int, x int);\nalter table t enable row level security;\n"
    ),
    "migrations/0002_u.sql": "-- migrate: no-transaction\nvacuum t;\nvacuum t;\n",
    "repeatable/v.sql": "create or replace view v with (security_invoker) as select a from t;\n",
    "verify/a.sql": "-- check: there is no row\nselect a from t;\n",
}


def migrate(directory: Path, url: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document; it is all that is printed."""
    done = subprocess.run(
        [sys.executable, "-m", "migrate", "--json", "--directory", directory, *arguments],
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": url},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document.pop("exit_code") == done.returncode
    return done.returncode, document


def test_a_life_in_documents(database: str, tmp_path: Path) -> None:
    write(tmp_path, FILES)
    write(tmp_path, {"migrations/README": ""})
    code, planned = migrate(tmp_path, database, "plan")
    assert code == 2
    assert planned["not_read"] == ["migrations/README"]
    (tmp_path / "migrations/README").unlink()
    assert [
        (each["file"], each["statements"], each["transactional"]) for each in planned["pending"]
    ] == [
        ("migrations/0001_t.sql", 2, True),
        ("migrations/0002_u.sql", 2, False),
        ("repeatable/v.sql", 1, True),
    ]
    assert planned["findings"] == planned["drift"] == planned["removed"] == []
    assert planned["rehearsal"] is None

    code, applied = migrate(tmp_path, database, "up")
    assert code == 0
    assert [each["file"] for each in applied["applied"]] == [
        each["file"] for each in planned["pending"]
    ]
    assert all(each["milliseconds"] >= 0 for each in applied["applied"])
    assert migrate(tmp_path, database, "up") == (0, {"applied": [], "notices": [], "not_read": []})

    code, status = migrate(tmp_path, database, "status")
    assert code == 0
    assert {each["state"] for each in status["files"]} == {"applied"}
    assert all(each["applied_by"] and each["applied_at"] for each in status["files"])

    assert migrate(tmp_path, database, "verify") == (
        0,
        {"checks": 1, "accepted": [], "drift": [], "failed_checks": [], "not_read": []},
    )


def test_findings_have_their_place_and_reason(database: str, tmp_path: Path) -> None:
    write(tmp_path, FILES)
    migrate(tmp_path, database, "up")
    text = (
        "create index on t (a);\n"
        "-- migrate: allow drop: nobody reads it\n"
        "alter table t drop column x;\n"
    )
    write(tmp_path, {"migrations/0003_x.sql": text})
    code, planned = migrate(tmp_path, database, "plan", "--rehearse")
    assert code == 2
    assert [
        (each["rule"], each["line"], each["column"], each["reason"]) for each in planned["findings"]
    ] == [("create-index", 1, 1, None), ("drop", 3, 1, "nobody reads it")]
    assert planned["rehearsal"]["applied"] == 1


def test_drift_is_expected_and_found(database: str, tmp_path: Path) -> None:
    write(tmp_path, FILES)
    migrate(tmp_path, database, "up")
    with psycopg.connect(database) as connection:
        connection.execute("alter table t add column b int; drop view v")
    code, verified = migrate(tmp_path, database, "verify")
    assert code == 3
    assert {each["object"]: (each["expected"], each["found"]) for each in verified["drift"]}[
        "column public.t.b"
    ] == (None, "integer")
    code, planned = migrate(tmp_path, database, "plan")
    assert code == 3
    assert planned["drift"] == verified["drift"]


def test_broken_promises_have_their_rows(database: str, tmp_path: Path) -> None:
    write(tmp_path, FILES)
    migrate(tmp_path, database, "up")
    with psycopg.connect(database) as connection:
        connection.execute("insert into t values (7)")
    code, verified = migrate(tmp_path, database, "verify")
    assert code == 1
    (failed,) = verified["failed_checks"]
    assert failed["check"] == "there is no row"
    assert failed["place"].endswith("verify/a.sql:2:1")
    assert failed["rows"] == [{"a": 7}]


def test_errors_are_documents_too(database: str, tmp_path: Path) -> None:
    write(tmp_path, {"migrations/0001_t.sql": "creat table t ();", "migrations/0003_t.sql": ""})
    code, planned = migrate(tmp_path, database, "plan")
    assert code == 1
    assert len(planned["problems"]) == 3
    write(tmp_path, {"migrations/0001_t.sql": "select 1/0;"})
    (tmp_path / "migrations/0003_t.sql").unlink()
    code, failed = migrate(tmp_path, database, "up")
    assert code == 1
    assert "division by zero" in failed["error"]
    code, refused = migrate(tmp_path, "postgresql://u:s3cret@127.0.0.1:1/d", "status")
    assert code == 1
    assert "s3cret" not in refused["error"]
    code, made = migrate(tmp_path, database, "new", "add things")
    assert made["file"].endswith("migrations/0002_add_things.sql")


def test_a_bundle_is_one_document(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    code, bundled = migrate(tmp_path, "", "bundle")
    assert code == 0
    assert list(bundled) == ["script", "not_read"]
    assert bundled["script"].startswith("-- Generated by `python -m migrate bundle`")
    assert bundled["script"].endswith("\ncommit;\n")
