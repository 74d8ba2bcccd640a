"""Files into pieces and statements, each with its place."""

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from postgast import PgQueryError, parse, scan
from postgast.pg_query_pb2 import C_COMMENT, SQL_COMMENT

from migrate import files, script
from migrate.parser import Piece, Statement, split
from tests.support.files import (
    NO_STATEMENT,
    SOUND,
    folder_of,
    on_disk,
    problem_of,
    problems_of,
    statements_of,
)

# --- syntax ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n", "-- to do\n", "/* to do */", ";;\n", "-- a\n;"])
def test_a_file_without_a_statement_is_refused(text: str) -> None:
    assert problem_of(text) == NO_STATEMENT


@pytest.mark.parametrize("comment", ["/* ü; */", "-- ü;\n"])
@pytest.mark.parametrize(
    "text",
    [
        "select 1 where 1 not {} in (2) -- {}\n;\nselect 2;",
        "select 1 order by 1 nulls {} first;\n/* {} */ select 2",
        "create table t (a timestamp with {} time zone);select 2;",
        "select * from f() with {} ordinality;\nselect 2 where 'a' not {} like 'b'",
    ],
)
def test_a_comment_may_stand_wherever_there_may_be_a_space(text: str, comment: str) -> None:
    """PostgreSQL's parser outside of the server takes none between some words."""
    first, second = script.parse(text.replace("{}", comment).encode()).statements()
    assert first.text.startswith(text.partition(" {}")[0])
    assert second.text.startswith("select 2")
    assert second.kind == "SelectStmt"
    assert problem_of(f"select 1 where not {comment} in")


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


# --- statements ------------------------------------------------------------------------------


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


def transactional(text: str) -> bool:
    with on_disk(text) as file:
        return file.script.transactional


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
        patch.setattr(script, "_PIECE_SIZE", block)
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


# --- properties ------------------------------------------------------------------------------

PIECES = ["select 1", "select 'a;b'", "values ($$;$$)", "create table é (a int)", "select e'\\\\'"]


BETWEEN = [";", ";\n", " ; ", ";\r\n", "; -- c;\n", ";/* c; /* d */ */", ";;\n", "\n;\n-- 😀\n"]


parts = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(BETWEEN)), min_size=1)


sound_text = parts.map(lambda found: "".join(piece + between for piece, between in found))


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
