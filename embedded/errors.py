"""The error for the person at the terminal."""


def with_remedy(problem: str, remedy: str) -> str:
    """A problem, with what to do about it in a line of its own."""
    return f"{problem}\n  what to do: {remedy}" if remedy else problem


class UserError(Exception):
    """What is wrong and where, and what to do about it.  Never holds a password.

    Attributes:
        problem: what is wrong and where; details follow on indented lines.
        remedy: what to do about it; empty where the problem says all there is to say.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem, self.remedy = problem, remedy
        super().__init__(with_remedy(problem, remedy))
