"""docs/services.md with the examples as they are now: `python -m dev.services`."""

import re

from components import ROOT


def main() -> None:
    """Print the document."""
    print(
        re.sub(
            r"(?<=```python\n)# (examples/\w+\.py)\n.*?(?=```\n)",
            lambda shown: f"# {shown[1]}\n{(ROOT / shown[1]).read_text()}",
            (ROOT / "docs" / "services.md").read_text(),
            flags=re.DOTALL,
        ),
        end="",
    )


if __name__ == "__main__":
    main()
