"""What the server says of a file that does not fail: shown with its place."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from migrate import message
from migrate.__main__ import main
from tests.support.migrating import large, query, tables, up, up_fails, write

SPEAKING = """\
-- Speaks.
do $$ begin raise notice 'one'; end $$;
select 1; select 2;

do $body$
begin
  raise notice 'two a';
  raise warning 'two b'
    using detail = 'why', hint = 'what';
end
$body$;
create table if not exists t1 (a int); do $$ begin raise notice 'ü %', repeat('x', 3000); end $$;
select set_config('a.b', 'c', false);
do $$ begin perform 1; end $$;
drop table if exists
  none;
"""

SAID = [
    ("2:7", "NOTICE", "one"),
    ("7:3", "NOTICE", "two a"),
    ("8:3", "WARNING", "two b\n  detail: why\n  hint: what"),
    ("12:1", "NOTICE", 'relation "t1" already exists, skipping'),
    ("12:46", "NOTICE", "ü " + "x" * 1998 + " ..."),
    ("15:1", "NOTICE", 'table "none" does not exist, skipping'),
]


def said(url: str, directory: Path) -> list[tuple[str, str, str]]:
    """Where in its file, how loud and what, of a run."""
    steps: list[Any] = []
    up(url, directory, report=steps.append)
    return [
        (":".join(step.notice.place.split(":")[-2:]), step.notice.severity, step.notice.message)
        for step in steps
        if step.notice
    ]


@pytest.mark.parametrize("opening", ["", "-- migrate: no-transaction\n"])
def test_every_notice_has_the_line_of_its_statement(
    database: str, tmp_path: Path, opening: str
) -> None:
    up(database, write(tmp_path, tables(1)))
    write(tmp_path, {"migrations/0002_n.sql": opening + SPEAKING})
    further = opening.count("\n")
    assert said(database, tmp_path) == [
        (f"{int(place.split(':')[0]) + further}:{place.split(':')[1]}", severity, message)
        for place, severity, message in SAID
    ]


def test_a_hundred_notices_in_a_row_have_theirs(database: str, tmp_path: Path) -> None:
    """However many of them the client reads at once."""
    speak = "do $$ begin raise notice 'a{0}'; raise notice 'b{0}'; end $$;\nselect {0};\n"
    text = "".join(map(speak.format, range(100)))
    write(tmp_path, {"migrations/0001_n.sql": text, "repeatable/n.sql": text})
    found = said(database, tmp_path)
    assert [(int(place.split(":")[0]), message) for place, _, message in found] == [
        (2 * number + 1, f"{letter}{number}") for number in range(100) for letter in "ab"
    ] * 2


@pytest.mark.parametrize("rows", [0, 700, 1_600])
def test_a_notice_of_a_large_file_has_its_line(database: str, tmp_path: Path, rows: int) -> None:
    speak = "do $$ begin\n  raise notice 'here';\nend $$;\n"
    write(tmp_path, {**tables(1), "migrations/0002_b.sql": large(speak, rows)})
    assert said(database, tmp_path) == [(f"{3 * rows + 2}:3", "NOTICE", "here")]


def test_a_failure_has_its_place_as_before_and_the_notices_are_shown(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SPEAKING + "select 1,\n  nothing;\n"
    write(tmp_path, {**tables(1), "migrations/0002_n.sql": text})
    message = up_fails(database, tmp_path)
    assert f'{tmp_path}/migrations/0002_n.sql:18:3: column "nothing" does not exist' in message
    assert "  statement 10 of 10:\n" in message
    capsys.readouterr()
    arguments = ["--directory", str(tmp_path), "--database-url", database, "up"]
    assert main([*arguments, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [each["message"] for each in document["notices"]] == [each[2] for each in SAID]
    assert "column" in document["error"]


def test_a_notice_of_a_constraint_that_is_checked_at_commit_is_shown(
    database: str, tmp_path: Path
) -> None:
    text = """create table u (a int);
create function f() returns trigger language plpgsql as $$
begin raise notice 'late'; return null; end $$;
create constraint trigger f after insert on u deferrable initially deferred
for each row execute function f();
insert into u values (1);
"""
    write(tmp_path, {"migrations/0001_n.sql": text})
    assert said(database, tmp_path) == [("6:1", "NOTICE", "late")]


def test_the_command_line_shows_them(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {**tables(1), "migrations/0002_n.sql": SPEAKING})
    arguments = ["--directory", str(tmp_path), "--database-url", database, "up"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert re.search(
        rf"applied migrations/0001_t1.sql .*\n{tmp_path}/migrations/0002_n.sql:2:7: NOTICE: one\n",
        shown,
    )
    assert ":8:3: WARNING: two b\n  detail: why\n  hint: what\n" in shown
    query(database, "drop schema migrate cascade; drop table t1")
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["notices"][0] == {
        "place": f"{tmp_path}/migrations/0002_n.sql:2:7",
        "severity": "NOTICE",
        "message": "one",
    }
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notices"] == []


def test_what_a_repeatable_file_drops_if_it_exists_need_not_exist(
    database: str, tmp_path: Path
) -> None:
    drops = "drop view if exists v;\ndrop policy if exists p on t1;\ndrop function if exists f();\n"
    write(tmp_path, {**tables(1), "migrations/0002_d.sql": drops})
    write(tmp_path, {"repeatable/d.sql": drops + "create table if not exists t1 ();\n"})
    assert [
        (place, message.rpartition(" ")[2]) for place, _, message in said(database, tmp_path)
    ] == [
        ("1:1", "skipping"),
        ("2:1", "skipping"),
        ("3:1", "skipping"),
        ("4:1", "skipping"),
    ]


def test_what_says_nothing_is_parsed_once(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file took a quarter longer when it was parsed once more to be sent."""
    monkeypatch.setattr(message, "split", None)
    text = "create table t1 (a int);\n" + large("analyze t1;\n")
    assert up(database, write(tmp_path, {"migrations/0001_a.sql": text})) == ["0001_a.sql"]
