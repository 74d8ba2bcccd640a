"""The database's own speed, in ratios to bare statements; see docs/performance.md."""
