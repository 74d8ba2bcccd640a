"""What the suite says of itself."""

import re
from pathlib import Path

import pytest

from tests.conftest import LONG, ON_EACH


@pytest.mark.parametrize("name", [*ON_EACH, *LONG])
def test_what_is_listed_exists(name: str) -> None:
    module, _, inner = name.partition("::")
    folder, stem = module.split("/")
    text = (Path(__file__).parents[1] / folder / f"test_{stem}.py").read_text()
    kind = "class" if inner[:1].isupper() else "def"
    assert re.search(rf"\b{kind} {inner}\b", text)
