"""The migration engine's files: what is found wrong with them before any database is asked."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from migrate import files, statements
from migrate.bundle import bundle
from migrate.errors import FilesError
from migrate.files import File
from migrate.run import Folder

SOUND = "create table sound (a int);\n"

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
    return [File(Path("migrations") / name, SOUND) for name in sorted(names)]


def number_problems(*names: str) -> list[str]:
    return files.number_problems(named(*names))


def problems_of(text: str) -> list[str]:
    """What a file `m/0001_a.sql` with this text is refused for."""
    return files.content_problems([File(Path("m/0001_a.sql"), text)])


def problem_of(text: str) -> str:
    (problem,) = problems_of(text)
    return problem


def refusal(folder: Path) -> list[str]:
    with pytest.raises(FilesError) as caught:
        files.read(folder)
    return caught.value.problems


def transactional(text: str) -> bool:
    return File(Path("0001_a.sql"), text).transactional


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


def test_bytes_that_are_not_utf8_are_named_with_their_place(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"0001_a.sql": "select 'Zürich';".encode("latin-1")})
    assert refusal(folder) == [
        f"{folder}/0001_a.sql: not UTF-8 (byte 0xfc at offset 9): save the file as UTF-8"
    ]


def test_a_zero_byte_is_refused_and_does_not_hide_what_follows(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"0001_a.sql": "select 1;\0 drop table accounts;"})
    (problem,) = refusal(folder)
    assert problem.startswith(f"{folder}/0001_a.sql: holds a zero byte")


def test_all_unreadable_files_are_told_at_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"0001_a.sql": b"\xff", "0003_c.sql": b"\xfe"})
    (folder / "0002_b.sql").mkdir()
    (folder / "0004_d.sql").symlink_to("nowhere")
    assert [re.sub(r".*/", "", problem)[:40] for problem in refusal(folder)] == [
        "0001_a.sql: not UTF-8 (byte 0xff at offs",
        "0002_b.sql: cannot be read: Is a directo",
        "0003_c.sql: not UTF-8 (byte 0xfe at offs",
        "0004_d.sql: cannot be read: No such file",
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


def test_any_other_change_changes_the_digest() -> None:
    texts = ["select 1;\n", "select 1;", "select 1; \n", "select 2;\n", "select 1;\n\n", ""]
    assert len({File(Path("a"), text).sha256 for text in texts}) == len(texts)


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
        "migrations/0002_c.sql: number 0002 is taken by 0002_b.sql: renumber the newer of the two"
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
        f"migrations/{where}: number {missing} is missing before it: "
        "numbers run from 0001 without a gap"
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
    assert problem_of(text) == "m/0001_a.sql: holds no statement: delete the file or fill it"


def test_a_syntax_error_shows_its_line_with_a_caret() -> None:
    assert problem_of("create table t (\n  a int,\n  b into\n);\n") == (
        'm/0001_a.sql:3:5: syntax error at or near "into"\n    3 |   b into\n      |     ^'
    )


def test_characters_before_a_syntax_error_count_as_one_column_each() -> None:
    assert problem_of("-- 😀\nselect 'ü€😀', 1 frm t;") == (
        'm/0001_a.sql:2:21: syntax error at or near "t"\n'
        "    2 | select 'ü€😀', 1 frm t;\n"
        "      |                     ^"
    )


def test_the_caret_stays_below_its_place_after_tabs() -> None:
    assert problem_of("select\n\t\t1 2;").endswith("\n    2 | \t\t1 2;\n      | \t\t  ^")


def test_a_syntax_error_at_the_end_of_the_file_has_a_place() -> None:
    assert problem_of("select 1;\nselect (\n\n") == (
        "m/0001_a.sql:2:9: syntax error at end of input\n    2 | select (\n      |         ^"
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
    (problem,) = files.content_problems(files.read(folder))
    assert problem == (
        f'{folder}/0001_a.sql:3:10: syntax error at or near "3"\n'
        "    3 | select 2 3;\n"
        "      |          ^"
    )


@pytest.mark.parametrize(
    "command", [r"\i other.sql", r"\connect db", r"\set x 1", r"\copy t from x"]
)
def test_a_psql_meta_command_is_refused_with_its_place(command: str) -> None:
    assert problem_of(f"select 1;\n  {command}\nselect 2;\n") == (
        "m/0001_a.sql:2:3: psql meta-commands are not SQL and only psql runs them: "
        f"remove the line\n    2 |   {command}\n      |   ^"
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
        f"m/0001_a.sql:2:1: {called} inside a migration: remove it, each file already runs in a "
        f"transaction of its own\n    2 | {command};\n      | ^"
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


def test_problems_of_all_files_are_told_at_once() -> None:
    texts = ["select 1 2;", SOUND, "", "commit;"]
    found = files.content_problems([File(Path(f"m/{n}.sql"), t) for n, t in enumerate(texts)])
    assert [problem.split(":")[0] for problem in found] == ["m/0.sql", "m/2.sql", "m/3.sql"]


def test_a_statement_knows_its_text_its_place_and_the_comment_before_it() -> None:
    text = "-- one\nselect 1;\n\n/* two; */ select 'ä;'\n; ;select 3"
    first, second, third = statements.parse(Path("a.sql"), text)
    assert (first.text, first.comment) == ("select 1", "-- one\n")
    assert (second.text, second.comment.strip()) == ("select 'ä;'", "/* two; */")
    assert third.text == "select 3"
    assert [text[s.offset :][: len(s.text)] for s in (first, second, third)] == [
        first.text,
        second.text,
        third.text,
    ]


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
        "",
    ],
)
def test_nothing_else_asks_for_no_transaction(text: str) -> None:
    assert transactional(text)


# --- what was applied before -----------------------------------------------------------------

RECORDED = {"0001_a.sql": "1a" * 32, "0002_b.sql": "2b" * 32}


def test_unchanged_and_new_files_are_sound() -> None:
    present = RECORDED | {"0003_c.sql": "3c" * 32}
    assert files.history_problems("migrations", RECORDED, present) == []


def test_an_edited_file_is_refused_with_both_digests() -> None:
    assert files.history_problems("migrations", RECORDED, RECORDED | {"0001_a.sql": "ff" * 32}) == [
        "migrations/0001_a.sql: was edited after it had been applied: recorded sha256 "
        "1a1a1a1a1a1a1a1a, present ffffffffffffffff: restore the file and put the change into a "
        "new migration"
    ]


def test_a_removed_file_is_refused_with_its_digest() -> None:
    present = {"0001_a.sql": "1a" * 32}
    assert files.history_problems("migrations", RECORDED, present) == [
        "migrations/0002_b.sql: was applied (sha256 2b2b2b2b2b2b2b2b) and is gone: restore the file"
    ]


def test_a_new_file_before_an_applied_one_is_refused() -> None:
    recorded = {"0001_a.sql": "1a" * 32, "0003_c.sql": "3c" * 32}
    present = recorded | {"0002_b.sql": "2b" * 32}
    assert files.history_problems("migrations", recorded, present) == [
        "migrations/0002_b.sql: comes before 0003_c.sql, which is applied already: "
        "give it the next number"
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
        bundle(tmp_path)
    assert [re.sub(r".*/", "", problem)[:28] for problem in caught.value.problems] == [
        "0003_b.sql: number 0002 is m",
        "0001_a.sql:1:10: syntax erro",
        "0003_b.sql: holds no stateme",
        "x.sql:1:1: COMMIT inside a m",
    ]


# --- properties ------------------------------------------------------------------------------

PIECES = ["select 1", "select 'a;b'", "values ($$;$$)", "create table é (a int)", "select e'\\\\'"]
BETWEEN = [";", ";\n", " ; ", ";\r\n", "; -- c;\n", ";/* c; /* d */ */", ";;\n", "\n;\n-- 😀\n"]

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
@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(BETWEEN)), min_size=1))
def test_a_file_splits_into_the_statements_it_was_made_of(parts: list[tuple[str, str]]) -> None:
    text = "".join(piece + between for piece, between in parts).replace("\r\n", "\n")
    found = statements.parse(Path("a.sql"), text)
    assert [statement.text for statement in found] == [piece for piece, _ in parts]
    assert all(text[s.offset : s.offset + len(s.text)] == s.text for s in found)


sql_text = st.lists(
    st.sampled_from(
        [*PIECES, *BETWEEN, "'", "$$", "/*", "--", "\\i x\n", "(", "commit;", "e'\\xff'"]
    )
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(sql_text)
def test_any_text_is_either_split_or_refused_with_a_place_in_it(text: str) -> None:
    try:
        found = statements.parse(Path("a.sql"), text)
    except FilesError as error:
        for problem in error.problems:
            place = re.match(r"a\.sql:(\d+):(\d+): ", problem)
            assert place
            line, column = int(place[1]), int(place[2])
            assert column <= len(text.split("\n")[line - 1]) + 1
    else:
        assert [text[s.offset : s.offset + len(s.text)] for s in found] == [s.text for s in found]


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
    recorded = files.digests([File(Path(n), contents[n].decode()) for n in original])
    for edit, which in edits:
        assume(contents)
        apply_edit(contents, edit, which)
    with tempfile.TemporaryDirectory() as directory:
        folder = folder_of(Path(directory), contents)
        found = Folder("migrations", files.read(folder), recorded, versioned=True)
    refused = bool(found.problems + files.number_problems(found.files))

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
