"""A server and a platform for each module of accidents."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded.postgres import Server
from tests.support.engines import Project, execute, make_project
from tests.support.platforms import own_server, stack_config


@pytest.fixture(scope="module")
def server(postgres_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with own_server(tmp_path_factory.mktemp("recovery"), postgres_bin) as started:
        yield started


@pytest.fixture(scope="module")
def project(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A platform with a customer; each test leaves it whole."""
    directory = tmp_path_factory.mktemp("project")
    url = server.url("mindroom")
    made = make_project(directory, stack_config(url, directory / "manifests"), url)
    made.up()
    execute(url, "insert into auth.users (id, email) values (default, 'kept@x.test')")
    return made
