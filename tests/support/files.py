"""Migration files as their tests write them, and what is found wrong with them."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from migrate import files
from migrate.files import File
from migrate.parser import Statement

SOUND = "create table sound (a int);\n"


NO_STATEMENT = "m/0001_a.sql: holds no statement\n  what to do: delete the file or fill it"


def folder_of(tmp_path: Path, contents: Mapping[str, str | bytes]) -> Path:
    """A folder `migrations` with these files."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    for name, content in contents.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)
    return folder


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
