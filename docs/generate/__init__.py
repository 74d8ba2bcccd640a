"""Writes what is generated: documents, and the bundle of all migrations."""
