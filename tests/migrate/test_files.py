"""The migration engine's files: what is found wrong with them before any database is asked."""

import hashlib
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from postgast import PgQueryError, parse, scan
from postgast.pg_query_pb2 import C_COMMENT, SQL_COMMENT

from migrate import files, parser
from migrate.bundle import bundle
from migrate.errors import FilesError
from migrate.files import File
from migrate.plan import Folder
from migrate.statements import Piece, Statement, split

SOUND = "create table sound (a int);\n"
NO_STATEMENT = "m/0001_a.sql: holds no statement\n  what to do: delete the file or fill it"

# --- helpers ---------------------------------------------------------------------------------


def folder_of(tmp_path: Path, contents: Mapping[str, str | bytes]) -> Path:
    """A folder `migrations` with these files."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    for name, content in contents.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)
    return folder


def named(*names: str) -> list[File]:
    return [File(Path("migrations"), name, b"") for name in sorted(names)]


def number_problems(*names: str) -> list[str]:
    return files.number_problems(named(*names))


@contextmanager
def on_disk(text: str | bytes) -> Iterator[File]:
    """The only file of a folder `m`, `0001_a.sql`."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "m"
        folder.mkdir()
        (folder / "0001_a.sql").write_bytes(text if isinstance(text, bytes) else text.encode())
        (file,) = files.read(folder)
        yield file


def problems_of(text: str | bytes) -> list[str]:
    """What a file `m/0001_a.sql` with this text is refused for."""
    with on_disk(text) as file:
        return [told.removeprefix(f"{file.folder.parent}/") for told in files.sql_problems([file])]


def problem_of(text: str | bytes) -> str:
    (problem,) = problems_of(text)
    return problem


def statements_of(text: str | bytes) -> list[Statement]:
    with on_disk(text) as file:
        return list(file.script.statements())


def refusal(folder: Path) -> list[str]:
    with pytest.raises(FilesError) as caught:
        files.read(folder)
    return caught.value.problems


def transactional(text: str) -> bool:
    with on_disk(text) as file:
        return file.script.transactional


# --- reading ---------------------------------------------------------------------------------


def test_files_are_read_in_name_order(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, dict.fromkeys(["0003_a.sql", "0001_c.sql", "0002_b.sql"], SOUND))
    assert [f.name for f in files.read(folder)] == ["0001_c.sql", "0002_b.sql", "0003_a.sql"]


def test_only_sql_files_are_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"0001_a.sql": SOUND, "README.md": "", "0002_b.sql.orig": ""})
    assert [f.name for f in files.read(folder)] == ["0001_a.sql"]


def test_an_absent_folder_holds_no_files(tmp_path: Path) -> None:
    assert files.read(tmp_path / "migrations") == []


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "migrations").write_text("")
    assert refusal(tmp_path / "migrations") == [
        f"{tmp_path}/migrations: cannot be read: Not a directory"
    ]


def test_bytes_that_are_not_utf8_are_named_with_their_line() -> None:
    assert problems_of("-- ok\nselect\n  'Zürich';".encode("latin-1")) == [
        "m/0001_a.sql:3: not UTF-8 (byte 0xfc)\n  what to do: save the file as UTF-8"
    ]


def test_a_character_that_is_cut_off_at_the_end_is_not_utf8() -> None:
    assert problems_of("select 1; -- ü".encode()[:-1]) == [
        "m/0001_a.sql:1: not UTF-8 (byte 0xc3)\n  what to do: save the file as UTF-8"
    ]


def test_a_zero_byte_is_refused_and_does_not_hide_what_follows() -> None:
    assert problems_of("select 1;\n\n\0 drop table accounts;") == [
        "m/0001_a.sql:3: holds a zero byte, so it is no text\n  what to do: save the file as UTF-8"
    ]


def test_all_unreadable_files_are_told_at_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"0001_a.sql": SOUND})
    (folder / "0002_b.sql").mkdir()
    (folder / "0003_c.sql").symlink_to("nowhere")
    assert refusal(folder) == [
        f"{folder}/0002_b.sql: cannot be read: Is a directory",
        f"{folder}/0003_c.sql: cannot be read: No such file or directory",
    ]


def test_all_files_that_are_no_text_are_told_at_once(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path, {"0001_a.sql": b"\xff", "0002_b.sql": SOUND, "0003_c.sql": b"\xfe"}
    )
    assert files.sql_problems(files.read(folder)) == [
        f"{folder}/0001_a.sql:1: not UTF-8 (byte 0xff)\n  what to do: save the file as UTF-8",
        f"{folder}/0003_c.sql:1: not UTF-8 (byte 0xfe)\n  what to do: save the file as UTF-8",
    ]


@pytest.mark.parametrize(
    "same",
    [
        b"\xef\xbb\xbf-- \xc3\xbc\nselect 1;\n",
        b"-- \xc3\xbc\r\nselect 1;\r\n",
        b"\xef\xbb\xbf-- \xc3\xbc\r\nselect 1;\r\n",
    ],
    ids=["byte order mark", "CRLF", "both"],
)
def test_byte_order_mark_and_crlf_change_no_digest(tmp_path: Path, same: bytes) -> None:
    folder = folder_of(
        tmp_path, {"0001_a.sql": b"-- \xc3\xbc\nselect 1;\n", "0002_b.sql": same, "0003_c.sql": ""}
    )
    plain, other, empty = files.read(folder)
    assert other.sha256 == plain.sha256 != empty.sha256
    # As sha256sum prints it for the LF file: the digest is of the bytes, nothing of ours.
    assert plain.sha256 == "1c1eebdffa46dde3561679ce9274dc7c2f7059c1f9dfe90d52295eb122e571d6"


def test_any_other_change_changes_the_digest(tmp_path: Path) -> None:
    texts = ["select 1;\n", "select 1;", "select 1; \n", "select 2;\n", "select 1;\n\n", ""]
    texts += ["select 1;\r", "\r\rselect 1;\n", "\ufeff\ufeffselect 1;\n"]
    folder = folder_of(tmp_path, {f"{number}.sql": text for number, text in enumerate(texts)})
    assert len({file.sha256 for file in files.read(folder)}) == len(texts)


# --- names and numbers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "1_a.sql",
        "00001_a.sql",
        "0001-a.sql",
        "0001_A.sql",
        "0001_.sql",
        "0001.sql",
        "a.sql",
        "0001_ä.sql",
        "0001_a b.sql",
        "\u0660\u0660\u0660\u0661_a.sql",
        "0001_a.sql\n.sql",
    ],
)
def test_a_name_of_another_form_is_refused(name: str) -> None:
    (problem,) = number_problems(name)
    assert problem.startswith(f"migrations/{name}: not named NNNN_name.sql")


def test_numbers_that_run_from_1_are_sound() -> None:
    assert number_problems(*(f"{n:04d}_x{n}.sql" for n in range(1, 13))) == []


def test_two_files_with_one_number_are_refused_naming_both() -> None:
    assert number_problems("0001_a.sql", "0002_b.sql", "0002_c.sql", "0003_d.sql") == [
        "migrations/0002_c.sql: number 0002 is taken by 0002_b.sql\n"
        "  what to do: renumber the newer of the two"
    ]


@pytest.mark.parametrize(
    ("names", "where", "missing"),
    [
        (["0002_a.sql"], "0002_a.sql", "0001"),
        (["0001_a.sql", "0003_c.sql", "0004_d.sql"], "0003_c.sql", "0002"),
        (["0000_a.sql", "0001_b.sql"], "0000_a.sql", "0001"),
    ],
    ids=["at the beginning", "in the middle", "counting from 0"],
)
def test_a_gap_is_refused_naming_the_missing_number(
    names: list[str], where: str, missing: str
) -> None:
    assert number_problems(*names) == [
        f"migrations/{where}: number {missing} is missing before it\n"
        "  what to do: number the files from 0001 without a gap"
    ]


def test_every_problem_of_names_is_told_at_once() -> None:
    found = number_problems("0001_a.sql", "0001_b.sql", "0004_c.sql", "x.sql")
    assert [problem.split(":")[0] for problem in found] == [
        "migrations/0001_b.sql",
        "migrations/0004_c.sql",
        "migrations/x.sql",
    ]


# --- content ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n", "-- to do\n", "/* to do */", ";;\n", "-- a\n;"])
def test_a_file_without_a_statement_is_refused(text: str) -> None:
    assert problem_of(text) == NO_STATEMENT


def test_a_syntax_error_shows_its_line_with_a_caret() -> None:
    assert problem_of("create table t (\n  a int,\n  b into\n);\n") == (
        'm/0001_a.sql:3:5: syntax error at or near "into"\n'
        "    1 | create table t (\n"
        "    2 |   a int,\n"
        "    3 |   b into\n"
        "      |     ^\n"
        "    4 | );"
    )


def test_a_syntax_error_shows_four_lines_before_it_and_two_after_it() -> None:
    text = "".join(f"-- {number}\n" for number in range(1, 8)) + "select 1 2\n;\n-- 10\n-- 11\n"
    assert problem_of(text) == (
        'm/0001_a.sql:8:10: syntax error at or near "2"\n'
        "    4 | -- 4\n"
        "    5 | -- 5\n"
        "    6 | -- 6\n"
        "    7 | -- 7\n"
        "    8 | select 1 2\n"
        "      |          ^\n"
        "    9 | ;\n"
        "   10 | -- 10"
    )


def test_characters_before_a_syntax_error_count_as_one_column_each() -> None:
    assert problem_of("-- 😀\nselect 'ü€😀', 1 frm t;") == (
        'm/0001_a.sql:2:21: syntax error at or near "t"\n'
        "    1 | -- 😀\n"
        "    2 | select 'ü€😀', 1 frm t;\n"
        "      |                      ^"  # one more cell, where a terminal shows the t
    )


def test_the_caret_stays_below_its_place_after_tabs() -> None:
    assert problem_of("select\n\t\t1 2;").endswith("\n    2 | \t\t1 2;\n      | \t\t  ^")


def test_a_syntax_error_at_the_end_of_the_file_has_a_place() -> None:
    assert problem_of("select 1;\nselect (\n\n") == (
        "m/0001_a.sql:2:9: syntax error at end of input\n"
        "    1 | select 1;\n"
        "    2 | select (\n"
        "      |         ^"
    )


def test_an_unterminated_string_is_shown_where_it_begins() -> None:
    assert problem_of("select 1;\nselect 'abc;\n").startswith(
        "m/0001_a.sql:2:8: unterminated quoted string"
    )


def test_an_error_without_a_place_names_the_file() -> None:
    assert problem_of("select e'\\xff';").startswith(
        'm/0001_a.sql:1:1: invalid byte sequence for encoding "UTF8": 0xff\n'
    )


def test_crlf_shifts_no_line_or_column(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"0001_a.sql": "select 1;\r\n\r\nselect 2 3;\r\n"})
    (problem,) = files.sql_problems(files.read(folder))
    assert problem == (
        f'{folder}/0001_a.sql:3:10: syntax error at or near "3"\n'
        "    1 | select 1;\n"
        "    2 | \n"
        "    3 | select 2 3;\n"
        "      |          ^"
    )


@pytest.mark.parametrize(
    "command", [r"\i other.sql", r"\connect db", r"\set x 1", r"\copy t from x"]
)
def test_a_psql_meta_command_is_refused_with_its_place(command: str) -> None:
    assert problem_of(f"select 1;\n  {command}\nselect 2;\n") == (
        "m/0001_a.sql:2:3: psql meta-commands are not SQL and only psql runs them\n"
        "    1 | select 1;\n"
        f"    2 |   {command}\n"
        "      |   ^\n"
        "    3 | select 2;\n"
        "  what to do: remove the line"
    )


def test_a_meta_command_after_a_statement_is_refused() -> None:
    assert problem_of("select 1 \\gexec\n").startswith("m/0001_a.sql:1:10: psql meta-commands")


@pytest.mark.parametrize(
    ("command", "called"),
    [
        ("begin", "BEGIN"),
        ("start transaction read only", "START TRANSACTION"),
        ("commit", "COMMIT"),
        ("end", "COMMIT"),
        ("rollback", "ROLLBACK"),
        ("abort", "ROLLBACK"),
        ("savepoint s", "SAVEPOINT"),
        ("release savepoint s", "RELEASE SAVEPOINT"),
        ("rollback to savepoint s", "ROLLBACK TO SAVEPOINT"),
        ("prepare transaction 'x'", "PREPARE TRANSACTION"),
        ("commit prepared 'x'", "COMMIT PREPARED"),
        ("rollback prepared 'x'", "ROLLBACK PREPARED"),
    ],
)
def test_transaction_control_is_refused_with_its_place(command: str, called: str) -> None:
    assert problem_of(f"select 1;\n{command};\nselect 2;\n") == (
        f"m/0001_a.sql:2:1: {called} inside a migration\n    2 | {command};\n      | ^\n"
        "  what to do: remove it, each file already runs in a transaction of its own"
    )


def test_every_transaction_command_of_a_file_is_told_at_once() -> None:
    assert [p.split(": ")[0] for p in problems_of("begin;\nselect 1;\ncommit;\n")] == [
        "m/0001_a.sql:1:1",
        "m/0001_a.sql:3:1",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "create function f() returns int language plpgsql as $$ begin return 1; end $$;",
        "create function f() returns int language sql begin atomic; select 1; end;",
        "select 'commit; rollback', $$begin;$$ -- begin;\n;",
        "comment on table t is E'it\\'s; \\\\i';",
    ],
)
def test_what_only_looks_like_control_is_let_through(text: str) -> None:
    assert problems_of(text) == []


@pytest.mark.parametrize("command", ["copy t from stdin", "copy (select 1) to stdout"])
def test_copy_from_or_to_the_client_is_refused(command: str) -> None:
    assert problem_of(f"select 1;\n{command};\n").startswith("m/0001_a.sql:2:1: COPY with STDIN")


def test_copy_from_a_file_of_the_server_is_let_through() -> None:
    assert problems_of("copy t from '/data/t.csv';") == []


def test_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    texts = ["select 1 2;", SOUND, "", "commit;"]
    folder = folder_of(tmp_path, {f"{number}.sql": text for number, text in enumerate(texts)})
    assert [
        problem.removeprefix(f"{folder}/").split(":")[0]
        for problem in files.sql_problems(files.read(folder))
    ] == ["0.sql", "2.sql", "3.sql"]


def test_a_statement_knows_its_text_its_place_and_the_comment_before_it() -> None:
    text = "-- one\nselect 1;\n\n/* two; */ select 'ä;'\n; ;select 3"
    first, second, third = statements_of(text)
    assert (first.text, first.comment) == ("select 1", "-- one\n")
    assert (second.text, second.comment.strip()) == ("select 'ä;'", "/* two; */")
    assert third.text == "select 3"
    assert [statement.number for statement in (first, second, third)] == [1, 2, 3]
    assert [statement.position() for statement in (first, second, third)] == ["2:1", "4:12", "5:4"]
    assert second.position(7) == "4:19"
    assert [text[s.start : s.stop] for s in (first, second, third)] == [
        first.text,
        second.text,
        third.text,
    ]


def test_a_statement_shows_the_lines_around_a_place_in_it_and_no_other_s() -> None:
    text = "-- about\nselect 0;\nselect 1,\n  2,\n  3,\n  4,\n  5,\n  6,\n  7,\n  8;\nselect 9;\n"
    statement = statements_of(text)[1]
    assert statement.frame() == ("    3 | select 1,\n      | ^\n    4 |   2,\n    5 |   3,")
    assert statement.frame(statement.text.index("6")) == (
        "    4 |   2,\n"
        "    5 |   3,\n"
        "    6 |   4,\n"
        "    7 |   5,\n"
        "    8 |   6,\n"
        "      |   ^\n"
        "    9 |   7,\n"
        "   10 |   8;"
    )


PUBLISHER = "connection 'host=127.0.0.1 port=1' publication p"

ALONE = [
    ("create index concurrently i on t (a)", "CREATE INDEX CONCURRENTLY"),
    ("Create Unique Index /* so that */ Concurrently i on t (a)", "CREATE INDEX CONCURRENTLY"),
    ("drop index concurrently if exists i", "DROP INDEX CONCURRENTLY"),
    ("reindex index concurrently i", "REINDEX CONCURRENTLY"),
    ("reindex (concurrently) table t", "REINDEX CONCURRENTLY"),
    ("reindex schema s", "REINDEX of many tables"),
    ("reindex database", "REINDEX of many tables"),
    ("reindex system", "REINDEX of many tables"),
    ("vacuum", "VACUUM"),
    ("vacuum (analyze) t", "VACUUM"),
    ("cluster", "CLUSTER of all tables"),
    ("create database d", "CREATE DATABASE"),
    ("drop database d", "DROP DATABASE"),
    ("create tablespace s location '/x'", "CREATE TABLESPACE"),
    ("drop tablespace s", "DROP TABLESPACE"),
    ("alter system set work_mem = '1GB'", "ALTER SYSTEM"),
    ("alter table t detach partition p concurrently", "DETACH PARTITION CONCURRENTLY"),
    ("alter database d set tablespace s", "ALTER DATABASE ... SET TABLESPACE"),
    (f"create subscription s {PUBLISHER}", "CREATE SUBSCRIPTION that creates its slot"),
    (
        f"create subscription s {PUBLISHER} with (enabled = false)",
        "CREATE SUBSCRIPTION that creates its slot",
    ),
    ("drop subscription if exists s", "DROP SUBSCRIPTION that drops its slot"),
    ("alter subscription s refresh publication", "ALTER SUBSCRIPTION that asks the publisher"),
    ("alter subscription s set publication p", "ALTER SUBSCRIPTION that asks the publisher"),
    (
        "alter subscription s add publication p with (copy_data = false)",
        "ALTER SUBSCRIPTION that asks the publisher",
    ),
    ("alter subscription s set (failover = true)", "ALTER SUBSCRIPTION that asks the publisher"),
]


@pytest.mark.parametrize(("command", "called"), ALONE, ids=[command for command, _ in ALONE])
def test_what_refuses_a_transaction_is_refused_in_a_file_with_one(
    command: str, called: str
) -> None:
    assert problem_of(f"select 1;\n/* now */ {command};\nselect 2;\n") == (
        f"m/0001_a.sql:2:11: {called} cannot run inside a transaction\n"
        f"    2 | /* now */ {command};\n"
        "      |           ^\n"
        "  what to do: put it into a file of its own that begins with `-- migrate: no-transaction`"
    )
    assert problems_of(f"-- migrate: no-transaction\n{command};") == []


@pytest.mark.parametrize(
    "command",
    [
        "create index i on t (a)",
        "drop index i",
        "reindex table t",
        "reindex (concurrently false, verbose) table t",
        "analyze t",
        "cluster t using i",
        f"create subscription s {PUBLISHER} with (connect = false)",
        f"create subscription s {PUBLISHER} with (create_slot = false, slot_name = none)",
        "alter subscription s set publication p with (refresh = false)",
        "alter subscription s disable; alter subscription s set (slot_name = NONE); "
        "drop subscription s",
        "alter table t detach partition p",
        "create index concurrently_made on t (a)",
        "comment on index i is 'made concurrently'",
    ],
)
def test_what_runs_in_a_transaction_is_let_through(command: str) -> None:
    assert problems_of(f"{command};") == []


def test_an_index_that_is_built_concurrently_needs_a_name() -> None:
    told = problem_of("-- migrate: no-transaction\ncreate index concurrently on t (a);")
    assert told.startswith("m/0001_a.sql:2:1: CREATE INDEX CONCURRENTLY without a name, by which")
    assert told.endswith("\n  what to do: name the index")


def test_an_index_that_is_dropped_concurrently_needs_if_exists() -> None:
    told = problem_of("-- migrate: no-transaction\ndrop index concurrently i;")
    assert told.startswith("m/0001_a.sql:2:1: DROP INDEX CONCURRENTLY that cannot be repeated")
    assert told.endswith("\n  what to do: write DROP INDEX CONCURRENTLY IF EXISTS")


@pytest.mark.parametrize(
    "opening",
    ["-- migrate: no-transaction\n", "-- why\n--migrate:no-transaction\n\n-- more\n"],
)
def test_the_opening_comment_can_ask_for_no_transaction(opening: str) -> None:
    assert not transactional(opening + "create index concurrently i on t (a);")


@pytest.mark.parametrize(
    "text",
    [
        "select 1;\n-- migrate: no-transaction\nselect 2;",
        "select '\n-- migrate: no-transaction\n';",
        "-- see migrate: no-transaction\nselect 1;",
        "-- migrate: no-transactions\nselect 1;",
        "select 1; -- migrate: no-transaction",
    ],
)
def test_nothing_else_asks_for_no_transaction(text: str) -> None:
    assert transactional(text)


# --- files that are cut into pieces ----------------------------------------------------------

BLOCK = 1 << 16
"""Bytes of a piece."""


@pytest.mark.parametrize("border", [BLOCK, 2 * BLOCK])
@pytest.mark.parametrize(
    "astride",
    [b"\r\n", b"\r\r\n", b"\r\n\r\n", b"\r", b"\rx", b"\n\r", "ü".encode(), "😀".encode()],
    ids=lambda value: repr(value.decode()) if isinstance(value, bytes) else value,
)
def test_what_stands_astride_two_pieces_is_read_as_elsewhere(border: int, astride: bytes) -> None:
    for before in range(len(astride) + 1):
        data = b"/*" + b"x" * (border - 2 - before) + astride + b"*/\nselect 1 2;"
        text = data.replace(b"\r\n", b"\n").decode()
        with on_disk(data) as file:
            assert file.sha256 == hashlib.sha256(text.encode()).hexdigest()
            assert file.text == text
            line = 1 + text.count("\n")
            (told,) = files.sql_problems([file])
            assert told.startswith(f"{file.path}:{line}:10: syntax error")


@pytest.mark.parametrize("size", [0, 1, 2, 3, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_a_file_of_any_size_is_read_to_its_end(size: int, mark: bytes) -> None:
    data = bytes(97 + number % 26 for number in range(size))
    with on_disk(mark + data) as file:
        assert file.sha256 == hashlib.sha256(data).hexdigest()
        assert file.text == data.decode()


def test_what_is_no_text_is_named_with_its_line_far_into_a_file() -> None:
    lines = b"-- Z\xc3\xbcrich\r\n" * 30_000
    assert problems_of(lines + b"\xfc") == [
        "m/0001_a.sql:30001: not UTF-8 (byte 0xfc)\n  what to do: save the file as UTF-8"
    ]
    assert problems_of(lines + b"-- \0") == [
        "m/0001_a.sql:30001: holds a zero byte, so it is no text\n"
        "  what to do: save the file as UTF-8"
    ]


def told_of(statements: Sequence[Statement]) -> list[tuple[str, int, str, str]]:
    """Everything of statements but the empty ones before them."""
    return [
        (s.text, s.number, s.position(), re.sub(r"[;\s]+", " ", s.comment).strip())
        for s in statements
    ]


ASTRIDE = [
    "/* one;\n two;\n */ select 1;\n",
    "/* a /* nested;\n */ comment;\n */ select 1;\n",
    "-- one;\n-- two;\n-- three;\nselect 1;\n",
    "select 1 -- one;\n-- two;\n, 2;\n",
    "select 1 -- one;\n;\n",
    "select 'one;\ntwo;\n''three;\n';\n",
    "select e'one;\n\\'two;\nthree;\n';\n",
    'select 1 as "one;\ntwo;\n";\n',
    "select $$one;\ntwo;\n$$ || $x$ $$;\n $x$;\n",
    "create function f() returns int language plpgsql as $$\nbegin\nnull;\n return 1;\nend;\n$$;\n",
    "create function f() returns int language sql\nbegin atomic\n  select 1;\n  select 2;\nend;\n",
    "create rule r as on insert to t do also (\n  select 1;\n  select 2;\n);\n",
    ";;\n;\nselect 1;\n",
    "select 1; select 2;\nselect 3;\n",
]


@pytest.mark.parametrize("astride", ASTRIDE, ids=lambda text: text[:40])
def test_no_piece_ends_within_a_statement(astride: str) -> None:
    """Whichever of its characters is the last one of a block."""
    opening, closing = "-- 😀\nselect 0;\n", "-- next\nselect 4;\nselect\n  5"
    expected = told_of(split(Piece(opening + astride + closing)))
    for block in range(len(opening), len(opening + astride) + 1):
        with cutting(block), on_disk(opening + astride + closing) as file:
            assert files.sql_problems([file]) == []
            assert told_of(list(file.script.statements())) == expected


@contextmanager
def cutting(block: int) -> Iterator[None]:
    """Files are cut into pieces of a few characters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parser, "_PIECE_SIZE", block)
        yield


def test_a_large_file_is_cut_into_pieces_that_make_it_up() -> None:
    text = "".join(f"-- number {n}\ninsert into t values ({n}, 'é;\n');\n" for n in range(9000))
    with on_disk(text) as file:
        script = file.script
        pieces = list(script.pieces())
        assert len(pieces) == len(script.spans) >= 4
        assert max(len(piece.text) for piece in pieces) < 2 * BLOCK
        assert "".join(piece.text for piece in pieces) == text
        assert script.count == 9000
        assert script.transactional
        found = list(file.script.statements())
    assert told_of(found) == told_of(split(Piece(text)))
    assert found[-1].position() == "26999:1"


def test_a_problem_far_into_a_large_file_has_its_place() -> None:
    many = "".join(f"insert into t values ({n}, 'é;\n');\n" for n in range(9000))
    told = problems_of(f"{many}select 1 2;\n{many}")
    assert [problem.split("\n")[0] for problem in told] == [
        'm/0001_a.sql:18001:10: syntax error at or near "2"'
    ]
    told = problems_of(f"{many}commit;\n{many}vacuum;\n")
    assert [problem.split(": ")[0] for problem in told] == [
        "m/0001_a.sql:18001:1",
        "m/0001_a.sql:36002:1",
    ]
    assert "\n36002 | vacuum;\n      | ^\n  what to do: put it" in told[1]


def test_letters_beyond_ascii_make_no_file_slow() -> None:
    text = "insert into t values (1, '" + "ж" * 60 + "');\n"
    seconds = {}
    for each in (text, text.replace("ж", "x")):
        with on_disk(each * 2_000) as file:
            started = time.process_time()
            assert file.script.count == 2_000
            seconds[each.isascii()] = time.process_time() - started
    assert seconds[False] < 10 * seconds[True]


def test_one_statement_may_be_larger_than_any_block() -> None:
    text = "select '" + "x;\n" * 100_000 + "';\nselect 2;\n"
    assert [statement.position() for statement in statements_of(text)] == ["1:1", "100002:1"]
    (told,) = problems_of(text[:-13])
    assert told.startswith("m/0001_a.sql:1:8: unterminated quoted string")


def test_a_file_is_read_once() -> None:
    for text in (SOUND, "insert into t values (1);\n" * 20_000):
        with on_disk(text) as file:
            file.path.unlink()
            assert (file.text, file.sha256) == (text, hashlib.sha256(text.encode()).hexdigest())
            assert "".join(piece.text for piece in file.script.pieces()) == text


# --- what was applied before -----------------------------------------------------------------

RECORDED = {"0001_a.sql": "1a" * 32, "0002_b.sql": "2b" * 32}


def test_unchanged_and_new_files_are_sound() -> None:
    present = RECORDED | {"0003_c.sql": "3c" * 32}
    assert files.history_problems("migrations", RECORDED, present) == []


def test_an_edited_file_is_refused_with_both_digests() -> None:
    assert files.history_problems("migrations", RECORDED, RECORDED | {"0001_a.sql": "ff" * 32}) == [
        "migrations/0001_a.sql: was edited after it had been applied: recorded sha256 "
        "1a1a1a1a1a1a1a1a, present ffffffffffffffff\n"
        "  what to do: restore the file and put the change into a new migration"
    ]


def test_a_removed_file_is_refused_with_its_digest() -> None:
    present = {"0001_a.sql": "1a" * 32}
    assert files.history_problems("migrations", RECORDED, present) == [
        "migrations/0002_b.sql: was applied (sha256 2b2b2b2b2b2b2b2b) and was removed\n"
        "  what to do: restore it, or update this checkout if it is older than the database"
    ]


def test_a_renamed_file_is_refused_with_its_new_name() -> None:
    present = {"0001_a.sql": "1a" * 32, "0002_other.sql": "2b" * 32}
    assert files.history_problems("migrations", RECORDED, present) == [
        "migrations/0002_b.sql: was applied and is now named 0002_other.sql\n"
        "  what to do: rename it back"
    ]


def test_a_new_file_before_an_applied_one_is_refused() -> None:
    recorded = {"0001_a.sql": "1a" * 32, "0003_c.sql": "3c" * 32}
    present = recorded | {"0002_b.sql": "2b" * 32}
    assert files.history_problems("migrations", recorded, present) == [
        "migrations/0002_b.sql: comes before 0003_c.sql, which is applied already\n"
        "  what to do: give it the next number"
    ]


def test_all_problems_with_the_past_are_told_at_once() -> None:
    present = {"0002_b.sql": "00" * 32, "0001_x.sql": "ab" * 32}
    assert [
        problem.split(": ")[0]
        for problem in files.history_problems("migrations", RECORDED, present)
    ] == ["migrations/0001_a.sql", "migrations/0002_b.sql", "migrations/0001_x.sql"]


# --- the bundle, as far as it needs no database ----------------------------------------------


def test_a_bundle_of_wrong_files_is_refused_with_all_problems(tmp_path: Path) -> None:
    folder_of(tmp_path, {"0001_a.sql": "select 1 2;", "0003_b.sql": ""})
    (tmp_path / "repeatable").mkdir()
    (tmp_path / "repeatable/x.sql").write_text("commit;")
    with pytest.raises(FilesError) as caught:
        bundle(files.read_tree(tmp_path))
    assert [re.sub(r".*/", "", problem)[:28] for problem in caught.value.problems] == [
        "0003_b.sql: number 0002 is m",
        "0001_a.sql:1:10: syntax erro",
        "0003_b.sql: holds no stateme",
        "x.sql:1:1: COMMIT inside a m",
    ]


# --- properties ------------------------------------------------------------------------------

PIECES = ["select 1", "select 'a;b'", "values ($$;$$)", "create table é (a int)", "select e'\\\\'"]
BETWEEN = [";", ";\n", " ; ", ";\r\n", "; -- c;\n", ";/* c; /* d */ */", ";;\n", "\n;\n-- 😀\n"]

parts = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(BETWEEN)), min_size=1)
sound_text = parts.map(lambda found: "".join(piece + between for piece, between in found))

digit_names = st.builds("{:04d}_{}.sql".format, st.integers(0, 4), st.sampled_from("ab"))
any_names = digit_names | st.sampled_from(["1_a.sql", "0001-a.sql", "a.sql", "00001_a.sql"])


@settings(deadline=None)
@given(st.sets(any_names, max_size=6))
@example({"0000_a.sql"})
@example({"0001_a.sql", "0002_a.sql"})
def test_a_set_of_names_is_sound_if_and_only_if_it_counts_from_1(names: set[str]) -> None:
    counts = [name[:5] for name in sorted(names)] == [f"{n:04d}_" for n in range(1, len(names) + 1)]
    assert (number_problems(*names) == []) == counts


@settings(deadline=None)
@given(parts)
def test_a_file_splits_into_the_statements_it_was_made_of(parts: list[tuple[str, str]]) -> None:
    text = "".join(piece + between for piece, between in parts).replace("\r\n", "\n")
    found = split(Piece(text))
    assert [statement.text for statement in found] == [piece for piece, _ in parts]
    assert all(text[s.start : s.stop] == s.text for s in found)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*PIECES, *BETWEEN, "select 1 as a\xa0;", "\f\v", "/**/", "--/*\n", "/*/ */"]
        )
    ).map("".join)
)
@example("/* select 1; /* */ -- */ -- select 1; /*\nselect 1; /* select 2 -- */ select 2")
def test_statements_stand_where_the_parser_finds_them(text: str) -> None:
    try:
        parsed = parse(text).stmts
    except PgQueryError:
        return
    data, comments = text.encode(), (C_COMMENT, SQL_COMMENT)
    starts = [token.start for token in scan(text).tokens if token.token not in comments]
    expected = []
    for statement in parsed:
        start = min(start for start in starts if start >= statement.stmt_location)
        stop = statement.stmt_location + statement.stmt_len if statement.stmt_len else len(data)
        before = len(data[:start].decode())
        expected.append((before, before + len(data[start:stop].decode().rstrip(" \t\n\r\f\v"))))
    assert [(found.start, found.stop) for found in split(Piece(text))] == expected


WITH_A_PLACE = [*PIECES, *BETWEEN, "'", "$$", "/*", "--", "\\i x\n", "(", "commit;"]
characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])


def sql_text(of: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(of) | st.text(characters, max_size=5)).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(sql_text([*WITH_A_PLACE, "e'\\xff'"]))
def test_any_text_is_either_split_or_refused_with_a_place_in_it(text: str) -> None:
    text = text.replace("\r\n", "\n")
    if problems := problems_of(text):
        for problem in problems:
            if problem == NO_STATEMENT:
                continue
            place = re.match(r"m/0001_a\.sql:(\d+):(\d+): ", problem)
            assert place
            line, column = int(place[1]), int(place[2])
            assert column <= len(text.split("\n")[line - 1]) + 1
    else:
        found = statements_of(text)
        assert [text.removeprefix("\ufeff")[s.start : s.stop] for s in found] == [
            s.text for s in found
        ]


@settings(max_examples=200, deadline=None)
@given(
    sound_text | sql_text(WITH_A_PLACE),
    st.integers(3, 30),
    st.sampled_from(["", "\ufeff"]),
    st.booleans(),
)
def test_pieces_change_nothing_of_what_is_found_in_a_text(
    text: str, block: int, mark: str, crlf: bool
) -> None:
    data = (mark + (text.replace("\n", "\r\n") if crlf else text)).encode()

    def found() -> list[tuple[str, int, str, str]] | list[str]:
        if problems := problems_of(data):
            return [problem.split("\n")[0] for problem in problems]
        return told_of(statements_of(data))

    whole = found()
    with cutting(block):
        assert found() == whole


EDITS = ["edit", "remove", "rename", "crlf", "byte order mark", "copy", "append", "before"]


def apply_edit(contents: dict[str, bytes], edit: str, which: int) -> None:
    """Do to a folder's files what people do to them."""
    name = sorted(contents)[which % len(contents)]
    number = int(name[:4])
    if edit == "edit":
        contents[name] += b"-- more\n"
    elif edit == "remove":
        del contents[name]
    elif edit == "rename":
        contents[f"{number:04d}_renamed.sql"] = contents.pop(name)
    elif edit == "crlf":
        contents[name] = contents[name].replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    elif edit == "byte order mark":
        contents[name] = b"\xef\xbb\xbf" + contents[name].removeprefix(b"\xef\xbb\xbf")
    elif edit == "copy":
        contents[f"{number:04d}_copy.sql"] = contents[name]
    elif edit == "append":
        contents[f"{int(max(contents)[:4]) + 1:04d}_new.sql"] = SOUND.encode()
    elif edit == "before":
        contents[f"{max(number - 1, 0):04d}_before.sql"] = SOUND.encode()


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(0, 5),
    st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, 9)), max_size=4),
)
def test_after_any_edits_the_plan_is_the_exact_rest_or_a_refusal(
    total: int, applied: int, edits: list[tuple[str, int]]
) -> None:
    contents = {f"{n:04d}_m.sql": f"select {n};\n".encode() for n in range(1, total + 1)}
    original = sorted(contents)[:applied]
    recorded = {name: hashlib.sha256(contents[name]).hexdigest() for name in original}
    for edit, which in edits:
        assume(contents)
        apply_edit(contents, edit, which)
    with tempfile.TemporaryDirectory() as directory:
        folder = folder_of(Path(directory), contents)
        found = Folder("migrations", files.read(folder), recorded)
    refused = bool(found.problems)

    names = sorted(contents)
    counts = [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    untouched = names[: len(original)] == original and all(
        contents[name].removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
        == f"select {int(name[:4])};\n".encode()
        for name in original
    )
    assert refused == (not counts or not untouched)
    if not refused:
        assert [file.name for file in found.pending] == names[len(original) :]
