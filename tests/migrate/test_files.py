"""The migration engine's files: their names, digests and history, before any database is asked."""

import hashlib
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from migrate import files
from migrate.bundle import bundle
from migrate.errors import FilesError
from migrate.files import File
from migrate.plan import Folder
from tests.support.files import (
    SOUND,
    folder_of,
    problems_of,
)


def named(*names: str) -> list[File]:
    return [File(Path("migrations"), name, b"") for name in sorted(names)]


def number_problems(*names: str) -> list[str]:
    return files.number_problems(named(*names))


def refusal(folder: Path) -> list[str]:
    with pytest.raises(FilesError) as caught:
        files.read(folder)
    return caught.value.problems


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


def test_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    texts = ["select 1 2;", SOUND, "", "commit;"]
    folder = folder_of(tmp_path, {f"{number}.sql": text for number, text in enumerate(texts)})
    assert [
        problem.removeprefix(f"{folder}/").split(":")[0]
        for problem in files.sql_problems(files.read(folder))
    ] == ["0.sql", "2.sql", "3.sql"]


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


digit_names = st.builds("{:04d}_{}.sql".format, st.integers(0, 4), st.sampled_from("ab"))


any_names = digit_names | st.sampled_from(["1_a.sql", "0001-a.sql", "a.sql", "00001_a.sql"])


@settings(deadline=None)
@given(st.sets(any_names, max_size=6))
@example({"0000_a.sql"})
@example({"0001_a.sql", "0002_a.sql"})
def test_a_set_of_names_is_sound_if_and_only_if_it_counts_from_1(names: set[str]) -> None:
    counts = [name[:5] for name in sorted(names)] == [f"{n:04d}_" for n in range(1, len(names) + 1)]
    assert (number_problems(*names) == []) == counts


# --- properties ------------------------------------------------------------------------------

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
