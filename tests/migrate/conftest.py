"""Throwaway servers for the tests of the migration engine."""

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from embedded.postgres import Server
from tests.support.platforms import initialised


@pytest.fixture(autouse=True, scope="session")
def _copied_throwaways() -> Iterator[None]:
    """Begin a throwaway server as a copy, for which initdb would take most of its time."""
    initdb = Server._initdb

    def copy(server: Server, *arguments: Any) -> None:
        if not server.directory.parent.name.startswith("throwaway-"):
            initdb(server, *arguments)
            return
        source = initialised(server.bin, server.superuser)
        parts = (source / "data", source / "password")
        subprocess.run(["cp", "-a", "--sparse=always", *parts, server.directory], check=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "_initdb", copy)
        yield
