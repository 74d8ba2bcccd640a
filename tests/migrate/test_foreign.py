"""Files of other tools, and what lies in the folders and is not read."""

from pathlib import Path

import pytest

from migrate import files
from migrate.__main__ import main
from migrate.errors import FilesError
from migrate.files import REPEATABLE, VERSIONED
from tests.support.migrating import query, tables, write

TABLE = "create table t (a int);\nalter table t enable row level security;\n"

# --- files of other tools --------------------------------------------------------------------


def problems(tmp_path: Path, text: str) -> list[str]:
    write(tmp_path, {"migrations/0001_a.sql": text})
    return files.sql_problems(files.read(tmp_path / VERSIONED))


@pytest.mark.parametrize(
    ("marker", "tool"),
    [
        ("-- migrate:up", "dbmate"),
        ("-- migrate:down transaction:false", "dbmate"),
        ("--migrate:down", "dbmate"),
        ("-- +goose Down", "goose"),
        ("-- +goose StatementEnd", "goose"),
        ("-- +migrate Down", "sql-migrate"),
        ("-- +micrate Down", "micrate"),
        ("-- rambler down", "rambler"),
        ("-- Down Migration", "node-pg-migrate"),
        ("---- create above / drop below ----", "tern"),
        ("-- //@UNDO", "MyBatis Migrations"),
        ("-- !Downs", "Play"),
        ("--! Previous: sha1:00", "graphile-migrate"),
        ("-- atlas:txmode none", "Atlas"),
        ("--liquibase formatted sql", "Liquibase"),
        ("--changeset ada:1", "Liquibase"),
        ("-- Revert shop:t from pg", "Sqitch"),
        ("-- no-transaction", "sqlx"),
        ("-- DOWN", "a tool with up and down sections"),
        ("--- rollback ---", "a tool with up and down sections"),
        ("-- ==== UP ====", "a tool with up and down sections"),
    ],
)
def test_a_marker_of_another_tool_is_refused_wherever_it_stands(
    tmp_path: Path, marker: str, tool: str
) -> None:
    for text, place in (
        (f"{marker}\n{TABLE}", "1:1"),
        (f"{TABLE}\n  {marker}\ndrop table t;\n", "4:3"),
        (f"create table t (a int)\n{marker}\ndrop table t", "2:1"),
        (f"{TABLE}{marker}", "3:1"),
    ):
        (problem,) = problems(tmp_path, text)
        shown, _, rest = problem.partition(f" is a marker of {tool}\n")
        assert shown.startswith(f"{tmp_path}/migrations/0001_a.sql:{place}: --")
        assert "\n  what to do: leave what is to be run" in rest


def test_what_only_looks_like_a_marker_is_let_through(tmp_path: Path) -> None:
    text = """
        -- migrate: no-transaction is what this needs; and see "-- migrate:down" of dbmate
        -- up to ten rows, then down again; rollback is no way
        /*
        -- migrate:down
        */
        create function f() returns text language sql as $$
        -- +goose Down
        select '
        -- migrate:down
        ' $$;
    """
    assert problems(tmp_path, text) == []


def test_a_marker_far_into_a_large_file_is_found(tmp_path: Path) -> None:
    rows = "insert into t values (1, 'ä');\n" * 9_000
    (problem,) = problems(tmp_path, f"{rows}-- migrate:down\n{rows}")
    assert problem.startswith(f"{tmp_path}/migrations/0001_a.sql:9001:1: -- migrate:down is a")


@pytest.mark.parametrize(
    "text", ["create table ${schema}.t (a int)", "select {{ .Value }}", "select {% if a %}"]
)
def test_a_placeholder_is_called_so(tmp_path: Path, text: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert ": a placeholder, which another tool (Flyway, goose, Atlas, dbt) fills in" in problem


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("V1__t.sql", "Flyway"),
        ("V1.2_3__t.sql", "Flyway"),
        ("U1__t.sql", "Flyway, which undoes by it"),
        ("0001_t.up.sql", "golang-migrate or sqlx"),
        ("0001_t.down.sql", "golang-migrate or sqlx, which undo by it"),
        ("0001_t.rollback.sql", "yoyo, which undoes by it"),
        ("migration_lock.toml", "Prisma"),
        ("20260101000000_t/migration.sql", "Prisma"),
        ("2026-01-01-000000_t/up.sql", "Diesel"),
    ],
)
@pytest.mark.parametrize("folder", [VERSIONED, REPEATABLE])
def test_a_name_of_another_tool_is_refused(
    tmp_path: Path, folder: str, name: str, tool: str
) -> None:
    write(tmp_path, {f"{folder}/{name}": TABLE})
    with pytest.raises(FilesError) as caught:
        files.read_tree(tmp_path)
    assert caught.value.problems == [
        f"{tmp_path}/{folder}/{name.split('/')[0]}: is of {tool}\n"
        "  what to do: name what is to be run NNNN_name.sql, and take the rest out of the folder"
    ]


# --- what is not read ------------------------------------------------------------------------

BESIDE = {
    "migrations/0002_b.sql~": "",
    "migrations/.0002_b.sql.swp": "",
    "migrations/._0001_t1.sql": "resource fork",
    "migrations/0002_c.txt": "",
    "migrations/later/0002_d.sql": "",
    "repeatable/README.md": "",
}
NAMES = sorted("/".join(name.split("/")[:2]) for name in BESIDE)


def test_what_is_not_read_is_named_and_stops_nothing(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"migrations/0001_t1.sql": TABLE, **BESIDE})
    (tmp_path / "migrations/.#0001_t1.sql").symlink_to("ada@desk:1")  # as Emacs does
    expected = [f"not read  {name}" for name in ["migrations/.#0001_t1.sql", *NAMES]]
    connected = ["--database-url", database, "--directory", str(tmp_path)]
    for arguments, code in (
        (["plan", "--offline"], 0),
        (["status"], 2),
        (["plan"], 2),
        (["up"], 0),
        (["verify"], 0),
        (["new", "next"], 0),
    ):
        assert main([*connected, *arguments]) == code
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if line.startswith("not read")] == expected
    main([*connected, "bundle"])
    assert "not read" not in capsys.readouterr().out


def test_what_lies_beside_the_folders_and_looks_as_if_it_were_read_is_named(tmp_path: Path) -> None:
    names = ["migration/0001_a.sql", "Verify/a.sql", "repeatables/a.sql", "0001_a.sql"]
    others = ["migrations/0001_t1.sql", "jobs/0001_a.sql", "all-migrations.sql", "verify/a.sql"]
    write(tmp_path, dict.fromkeys([*names, *others], TABLE))
    assert files.ignored(tmp_path) == ["0001_a.sql", "Verify", "migration", "repeatables"]


@pytest.mark.parametrize("name", ["0002_Users.SQL", "0002_users.Sql"])
def test_another_spelling_of_the_ending_is_refused(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {**tables(1), f"migrations/{name}": TABLE})
    for arguments in (["plan", "--offline"], ["new", "next"], ["bundle"]):
        assert main(["--directory", str(tmp_path), *arguments]) == 1
        error = f"error: {tmp_path}/migrations/{name}: does not end in .sql\n"
        assert capsys.readouterr().err == f"{error}  what to do: rename it\n"


# --- at the command line ---------------------------------------------------------------------

REFUSED = {
    "dbmate": f"-- migrate:up\n{TABLE}\n-- migrate:down\ndrop table t;\n",
    "goose": f"-- +goose Up\n{TABLE}\n-- +goose Down\ndrop table t;\n",
    "cannot run inside a transaction": (
        "create subscription s connection 'host=127.0.0.1 port=1' publication p;\n"
    ),
}


@pytest.mark.parametrize("told", REFUSED)
@pytest.mark.parametrize("command", [["plan", "--offline"], ["plan"], ["up"]])
def test_every_command_refuses_it_and_runs_nothing(
    database: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    told: str,
    command: list[str],
) -> None:
    write(tmp_path, {"migrations/0001_a.sql": "select 1;", "migrations/0002_b.sql": REFUSED[told]})
    assert main(["--database-url", database, "--directory", str(tmp_path), *command]) == 1
    assert told in capsys.readouterr().err
    assert query(database, "select to_regclass('migrate.ledger')") == [None]
