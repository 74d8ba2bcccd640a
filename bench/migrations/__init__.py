"""The migration engine measured beside the tools that people use; see docs/comparison.md."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
STATE = ROOT / ".state" / "bench"
"""Everything that this makes: the tools, a server, the files to apply, the results."""
