"""The dev stack: what `make up` runs, and the program without Pulumi."""


class DevError(Exception):
    """One clear message: what is wrong, where, what to do."""
