"""What programs that we start find in their environment."""

import os

import pytest

from embedded.process import LOOPBACK, reach_loopback_directly

NAMES = ("no_proxy", "NO_PROXY", "no_grpc_proxy")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, []),
        ({"no_proxy": "a.test,localhost"}, ["a.test"]),
        ({"NO_PROXY": ".b.test,"}, [".b.test"]),
        (
            {"no_proxy": "a", "NO_PROXY": "a,*", "no_grpc_proxy": "c"},
            ["a", "*", "c"],
        ),
    ],
    ids=["none", "lower", "upper", "all"],
)
def test_loopback_is_added_to_what_needs_no_proxy(
    given: dict[str, str], kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, given.get(name, ""))
    reach_loopback_directly()
    (value,) = {os.environ[name] for name in NAMES}
    assert sorted(value.split(",")) == sorted([*kept, *LOOPBACK])
