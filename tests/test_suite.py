"""What the suite says of itself."""

import re
from pathlib import Path

import pytest
from conftest import LONG, ON_EACH


@pytest.mark.parametrize("name", [*ON_EACH, *LONG])
def test_what_is_listed_exists(name: str) -> None:
    module, _, inner = name.partition("::")
    text = (Path(__file__).parent / f"{module}.py").read_text()
    kind = "class" if inner[:1].isupper() else "def"
    assert re.search(rf"\b{kind} {inner}\b", text)
