"""What a pull request's reviewer reads of each environment, and the nightly look for drift."""


class ReviewError(Exception):
    """One clear message: what is wrong, where, what to do."""
