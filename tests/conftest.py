"""Real PostgreSQL servers for the tests: the two ends of what is supported.

`server` is a throwaway server per version (and per pytest-xdist worker), `database` an empty
database on it. `pytest --postgres 18` runs one version only.
"""

import copy
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml
from customers import ANN, BOB, Db, add_customer
from hypothesis import settings
from migrating import query
from platforms import Platform, run, stack_config
from provider_host import NAMES, Stack, State, copied
from provisioning import World, a_world
from psycopg.conninfo import make_conninfo

from components.instance_provisioner import INSTANCES_NAMESPACE, NAMESPACE, RESTRICTED
from dev.in_process import HELM
from embedded.cluster import Access, Cluster
from embedded.postgres import Server, embedded_bin

# A shell that starts the tests in the background has them, and what they start, ignore both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# A machine that is busy with the other worker is no failure.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

MAJORS = ("15", "18")  # Debian 12's package, the embedded one


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres",
        default=",".join(MAJORS),
        metavar="MAJORS",
        help="PostgreSQL versions to test on, comma-separated (default: %(default)s)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "postgres_bin" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--postgres").split(",")
        if unknown := sorted(set(wanted) - set(MAJORS)):
            raise pytest.UsageError(f"--postgres takes {' and '.join(MAJORS)}, not {unknown}")
        if only := metafunc.definition.get_closest_marker("postgres"):
            wanted = [major for major in wanted if major in only.args]
        ids = [f"pg{major}" for major in wanted]
        metafunc.parametrize("postgres_bin", wanted, ids=ids, indirect=True, scope="session")


@pytest.fixture(scope="session")
def postgres_bin(request: pytest.FixtureRequest) -> Path:
    """The bin directory of the PostgreSQL under test."""
    if request.param == "18":
        return embedded_bin()
    path = Path(f"/usr/lib/postgresql/{request.param}/bin")
    if not (path / "postgres").exists():
        needed = (
            f"PostgreSQL {request.param} is missing: install Debian's postgresql-{request.param}"
        )
        if os.environ.get("CI") == "true":
            pytest.fail(needed)
        pytest.skip(needed)
    return path


@pytest.fixture(scope="session")
def server(postgres_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server that survives no crash, for speed; roles are shared by its databases."""
    throwaway = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
    server = Server(
        tmp_path_factory.mktemp("postgres") / "server", postgres_bin, settings=throwaway
    )
    try:
        server.start()
        yield server
    finally:
        server.destroy()


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """The URL of a new, empty database, dropped afterwards whoever is still connected to it."""
    name = f"test_{secrets.token_hex(6)}"
    query(server.url(), f"create database {name}")
    yield server.url(name)
    query(server.url(), f"drop database {name} with (force)")


@pytest.fixture
def other_database(server: Server) -> Iterator[str]:
    """A second empty database on the same server."""
    name = f"other_{secrets.token_hex(6)}"
    query(server.url(), f"create database {name}")
    yield server.url(name)
    query(server.url(), f"drop database {name} with (force)")


@pytest.fixture
def role(server: Server, database: str) -> Iterator[str]:
    """The URL of the database for a login role without any privilege."""
    name = f"role_{secrets.token_hex(6)}"
    query(server.url(), f"create role {name} login password '{name}secret'")
    yield database.replace(f"postgres:{server.password}", f"{name}:{name}secret")
    query(database, f"drop owned by {name}")
    query(database, f"drop role {name}")


@pytest.fixture(scope="session")
def platform(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """The whole platform on a server of its own database, made by an in-process run."""
    url = server.url("mindroom")
    config = stack_config(url, tmp_path_factory.mktemp("manifests"))
    return Platform(url, config, run(config))


@pytest.fixture(scope="module")
def connection(platform: Platform) -> Iterator[psycopg.Connection]:
    with psycopg.connect(platform.url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def db(connection: psycopg.Connection) -> Iterator[Db]:
    """Two customers who signed up, in a transaction that is rolled back."""
    db = Db(connection)
    with connection.transaction(force_rollback=True):
        for each in (ANN, BOB):
            add_customer(db, each)
        yield db


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project for the providers' host, which the test may change."""
    return copied(tmp_path)


@pytest.fixture
def stack(project: Path, database: str) -> Stack:
    """For the providers' host: an empty database and nothing in the state."""
    return Stack(project, database)


@pytest.fixture(scope="session")
def finished(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """Like `stack` with all resources created, to be copied; the database is a template."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("create database finished")
    stack = Stack(copied(tmp_path_factory.mktemp("finished")), server.url("finished"))
    with stack.host() as host:
        for name in NAMES:
            host.create(name)
    return stack


@pytest.fixture
def applied(finished: Stack, server: Server, project: Path) -> Iterator[Stack]:
    """Like `stack` with all resources created, in a database of the test's own."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"create database {name} template finished".encode())
        # A copy has not the privileges on its template itself.
        connection.execute(f"revoke temporary on database {name} from public".encode())
        yield Stack(project, server.url(name), copy.deepcopy(finished.state))
        connection.execute(f"drop database {name} with (force)".encode())


@pytest.fixture
def offline(project: Path) -> Stack:
    """Like `stack` without any database; the state says that all files were applied."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    password = "p@ss/w rd of nobody"
    stack = Stack(
        project,
        make_conninfo(
            host="127.0.0.1",
            port=port,
            dbname="mindroom",
            user="nobody",
            password=password,
            sslmode="disable",
        ),
    )
    stack.state = {name: State(name, inputs, inputs) for name, inputs in stack.declared().items()}
    return stack


@pytest.fixture(scope="session")
def helm() -> Path:
    if not HELM.is_file():
        pytest.fail(f"{HELM} is missing: run make tools", pytrace=False)
    return HELM


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    """A Kubernetes cluster of our own, unless CLUSTER_KUBECONFIG names another."""
    if given := os.environ.get("CLUSTER_KUBECONFIG"):
        yield Access(Path(given))
        return
    own = Cluster(tmp_path_factory.mktemp("cluster") / "own")
    try:
        own.start()
        yield own
    finally:
        own.destroy()


@pytest.fixture
def namespace(cluster: Access) -> Iterator[str]:
    """A new namespace, removed afterwards."""
    name = f"test-{secrets.token_hex(6)}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def restricted(cluster: Access, namespace: str) -> str:
    """That namespace, under the restricted Pod Security Standard."""
    labels = (f"{key}={value}" for key, value in RESTRICTED.items())
    cluster.kubectl("label", "namespace", namespace, *labels)
    return namespace


@pytest.fixture
def contexts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kubeconfig with the contexts of the hosted stacks, whose cluster does not answer."""
    to = {"cluster": "a", "user": "a"}
    config = {
        "clusters": [{"name": "a", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "a", "user": {"token": "a"}}],
        "contexts": [{"name": name, "context": to} for name in ("staging", "production")],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))


@pytest.fixture
def deploy_to(cluster: Access, monkeypatch: pytest.MonkeyPatch) -> Iterator[Access]:
    """A cluster without the platform's namespaces, to which programs find the way."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    yield cluster
    names = (NAMESPACE, INSTANCES_NAMESPACE)
    cluster.kubectl("delete", "namespace", *names, "--ignore-not-found")


@pytest.fixture(scope="module")
def world(
    server: Server,
    cluster: Access,
    helm: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    """A platform and a namespace of its own, for the instance-provisioner."""
    directory = tmp_path_factory.mktemp("provisioner")
    url = server.url(f"provisioner_{secrets.token_hex(4)}")
    config = stack_config(url, directory / "manifests")
    with a_world(Platform(url, config, run(config)), cluster, helm, directory) as world:
        yield world
