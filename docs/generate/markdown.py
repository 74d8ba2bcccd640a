"""What the generated documents have in common."""

from collections.abc import Iterable


def grid(header: list[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; each cell is one line of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(text: str) -> str:
    """A text as code, in a table too; nothing for an empty one."""
    one_line = " ".join(text.split()).replace("|", "\\|")
    return f"`{one_line}`" if text else ""
