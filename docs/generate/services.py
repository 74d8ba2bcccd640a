"""docs/services.md with the examples as they are now."""

import re

from components import ROOT


def document() -> str:
    """docs/services.md."""
    return re.sub(
        r"(?<=```python\n)# (docs/examples/\w+\.py)\n.*?(?=```\n)",
        lambda shown: f"# {shown[1]}\n{(ROOT / shown[1]).read_text()}",
        (ROOT / "docs" / "services.md").read_text(),
        flags=re.DOTALL,
    )
