"""Real PostgreSQL servers for the tests: the two ends of what is supported.

`server` is a throwaway server per version (and per pytest-xdist worker), `database` an empty
database on it. Tests run on the newest version, those of `ON_EACH` on each; `pytest --postgres 15`
runs all of them on that one.
"""

import asyncio
import copy
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from hypothesis import settings
from psycopg.conninfo import make_conninfo

from components import INSTANCES_NAMESPACE, NAMESPACE
from components.instance_provisioner import RESTRICTED
from dev.in_process import HELM
from dev.stack import forget_other_stacks
from embedded.cluster import Cluster, ClusterAccess
from embedded.postgres import Server, embedded_bin
from embedded.process import reach_loopback_directly
from tests.support.customers import ANN, BOB, Db, add_customer
from tests.support.migrating import query
from tests.support.platforms import MADE, Platform, own_server, run, stack_config
from tests.support.provider_host import NAMES, Stack, State, copied
from tests.support.provisioning import World, a_world

# A shell that starts the tests in the background has them, and what they start, ignore both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# What the engine and the command line start would compile the whole project each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

forget_other_stacks()
reach_loopback_directly()

# A machine that is busy with the other worker is no failure.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

MAJORS = ("15", "18")  # Debian 12's package, the embedded one

_OWNERS = "who creates a role is its member with ADMIN OPTION from 16, and its superuser is not"
_CATALOGS = "catalogs differ: NOT NULL is a constraint from 18, memberships have options from 16"
_BODIES = "what a function or trigger calls is looked up when it runs, and 15 has fewer functions"
_TEXTS = "the server's messages, and where in a file it finds an error, differ"
_PSQL = "psql's own"
_REHEARSED = "a rehearsal is on the database's own version"
_TIMEOUT = "transaction_timeout is a setting from 17"
_LOCKS = "which statements refuse a transaction, lock a table or rewrite it differs"

ON_EACH = {
    "database/advisors": _CATALOGS,
    "database/authorization": "MAINTAIN is a privilege from 17; memberships have options from 16",
    "database/automation_functions": _BODIES,
    "database/contract": _BODIES,
    "embedded/postgres::TestFirstStart": "initdb has a locale provider of its own from 17",
    "program/engine_supabase::test_role_without_the_privilege_is_told_what_to_run_as": _OWNERS,
    "program/engine_supabase::test_equal_database_is_adopted": _OWNERS,
    "program/engine_supabase::test_second_preview_and_up_change_nothing": _OWNERS,
    "program/engine_supabase::test_rotated_password_changes_its_role_only": _OWNERS,
    "program/engine_supabase::test_lost_state_is_made_again_from_what_is_there": _OWNERS,
    "program/engine_supabase::test_destroy_leaves_the_data_and_all_that_is_supabase_s": _OWNERS,
    "database/function_refusals": _BODIES,
    "database/given_by_hand": _CATALOGS,
    "database/instance_functions": _BODIES,
    "migrate/adoption": _CATALOGS,
    "migrate/bundle": _PSQL,
    "migrate/catalog": _CATALOGS,
    "migrate/differential": _CATALOGS,
    "migrate/failures::test_a_failure_says_what_was_approved": _TEXTS,
    "migrate/failures::test_what_refuses_a_transaction_is_run_without_one": _LOCKS,
    "migrate/lint_server": _LOCKS,
    "migrate/login_role": _OWNERS,
    "migrate/new_sessions::test_psql_has_to_have_begun_new_sessions_for_a_database_to_be_adopted": (
        _PSQL
    ),
    "migrate/new_sessions::test_the_bundle_is_refused_where_psql_would_need_new_sessions": _PSQL,
    "migrate/no_transaction::test_a_file_can_run_without_a_transaction": _LOCKS,
    "migrate/no_transaction::test_an_index_whose_build_was_cut_off_is_there_once_and_valid": _LOCKS,
    "migrate/no_transaction::test_half_an_index_that_a_reindex_left_is_told": _LOCKS,
    "migrate/no_transaction::test_what_refuses_a_transaction_runs_in_a_file_without_one": _LOCKS,
    "migrate/notices": _TEXTS,
    "migrate/rehearsal::test_an_extension_that_only_the_database_has_is_told": _REHEARSED,
    "migrate/rehearsal::test_an_extension_that_only_the_throwaway_server_has_is_told": _REHEARSED,
    "migrate/rehearsal::test_an_extension_that_the_database_lacks_too_is_a_failure": _REHEARSED,
    "migrate/rehearsal::test_another_major_version_is_told_with_what_of_the_files_depends_on_it": (
        _REHEARSED
    ),
    "migrate/rehearsal::test_it_is_done_in_the_database_s_own_major_version": _REHEARSED,
    "migrate/rehearsal::test_the_command_line_rehearses_what_is_pending": _REHEARSED,
    "migrate/rehearsal::test_what_is_pending_meets_what_is_applied": _REHEARSED,
    "migrate/rehearsal::test_what_the_database_s_own_parser_refuses_fails_it": _REHEARSED,
    "migrate/session::test_a_role_that_the_server_gives_a_login_is_kept": _OWNERS,
    "migrate/session::test_a_timeout_is_for_each_statement_and_not_for_the_file": _TIMEOUT,
    "migrate/session::test_every_statement_has_a_lock_timeout_and_a_statement_timeout": _TIMEOUT,
    "migrate/session::test_what_a_file_sets_ends_with_the_file": _TIMEOUT,
    "migrate/verify": _CATALOGS,
    "database/migrated_rows": _BODIES,
    "database/migrating": _BODIES,
    "program/program": _OWNERS,
    "provisioner/life::test_a_new_row_becomes_a_release_that_runs": _BODIES,
    "database/reference": _CATALOGS,
    "database/search_path": _BODIES,
    "database/services": _BODIES,
    "database/stripe": _BODIES,
    "database/supabase": _OWNERS,
    "database/tables": _BODIES,
    "database/accounts": _BODIES,
    "database/subscriptions": _BODIES,
    "database/instances": _BODIES,
    "database/usage_metrics": _BODIES,
    "database/audit_logs": _BODIES,
    "database/support_tickets": _BODIES,
    "database/instance_backups": _BODIES,
    "database/api_keys": _BODIES,
    "database/usage_functions": _BODIES,
    "database/user_functions": _BODIES,
    "database/verify": _CATALOGS,
}
"""Modules, and classes and tests in them, that are run on each version, and where those differ."""

LONG = (
    "program/engine",
    "program/dev",
    "program/engine_supabase",
    "recovery/database",
    "recovery/killed",
    "provisioner/failures",
    "recovery/state",
    "program/program",
    "provisioner/life",
    "ops/reviews",
    "database/supabase",
    "embedded/postgres",
    "components/automation",
    "migrate/adoption",
    "ops/tunnel",
    "migrate/crash",
    "provisioner/api",
    "provisioner/gateway",
    "provisioner/scale",
    "embedded/cluster",
    "program/new_table",
    "program/demo",
    "components/provider_schema",
    "migrate/concurrency",
    "database/authorization",
    "database/at_once",
    "migrate/cli",
    "migrate/fuzz",
    "migrate/catalog",
    "migrate/differential",
    "migrate/rehearsal",
    "migrate/pooler",
    "migrate/bundle",
    "program/policies",
    "migrate/json",
    "components/provider_session",
    "migrate/session",
)
"""Modules that take longest, the longest first: begun last, one would keep a worker alone."""


def module(path: Path) -> str:
    """The name in these lists: `tests/database/test_tables.py` is `database/tables`."""
    return f"{path.parent.name}/{path.stem.removeprefix('test_')}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres",
        metavar="MAJORS",
        help="PostgreSQL versions to run all tests on, comma-separated "
        f"(default: {MAJORS[-1]}, and {' and '.join(MAJORS)} where they differ)",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    if module(item.path) in LONG or "cluster" in getattr(item, "fixturenames", ()):
        item.add_marker("long")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "published" not in config.option.markexpr:
        items[:] = [item for item in items if not item.get_closest_marker("published")]
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(module(item.path), len(rank)))


def names(metafunc: pytest.Metafunc) -> set[str]:
    """As `ON_EACH` may name a test."""
    name = module(metafunc.definition.path)
    inner = [metafunc.function.__name__, *([metafunc.cls.__name__] if metafunc.cls else [])]
    return {name, *(f"{name}::{each}" for each in inner)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "postgres_bin" in metafunc.fixturenames:
        wanted: Sequence[str] = MAJORS if names(metafunc) & ON_EACH.keys() else MAJORS[-1:]
        if only := metafunc.definition.get_closest_marker("postgres"):
            wanted = only.args
        if given := metafunc.config.getoption("--postgres"):
            chosen = given.split(",")
            if unknown := sorted(set(chosen) - set(MAJORS)):
                raise pytest.UsageError(f"--postgres takes {' and '.join(MAJORS)}, not {unknown}")
            wanted = [major for major in chosen if not only or major in only.args]
        ids = [f"pg{major}" for major in wanted]
        values: list[Any] = list(wanted)
        if only and not wanted:
            needed = f"--postgres {given} leaves out {' and '.join(only.args)}, which it needs"
            values, ids = [pytest.param("", marks=pytest.mark.skip(needed))], ["none"]
        metafunc.parametrize("postgres_bin", values, ids=ids, indirect=True, scope="session")


def pytest_runtest_setup() -> None:
    """Give Pulumi's SDK an event loop of the main thread, which any asyncio.run() takes away."""
    try:
        asyncio.get_event_loop()
    except RuntimeError:
        asyncio.set_event_loop(asyncio.new_event_loop())


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
def server_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Server]]:
    """A running server per version, which stays when the next test is for the other one."""
    with ExitStack() as stack:

        @cache
        def start(postgres_bin: Path) -> Server:
            return stack.enter_context(
                own_server(tmp_path_factory.mktemp("postgres"), postgres_bin)
            )

        yield start


@pytest.fixture(scope="session")
def server(server_of: Callable[[Path], Server], postgres_bin: Path) -> Server:
    """A running server; roles are shared by its databases."""
    return server_of(postgres_bin)


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
def platform_of(
    server_of: Callable[[Path], Server], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], Platform]:
    """The whole platform per version, made by an in-process run on that version's server."""

    @cache
    def make(postgres_bin: Path) -> Platform:
        server = server_of(postgres_bin)
        url = server.url("mindroom")
        config = stack_config(url, tmp_path_factory.mktemp("manifests"))
        platform = Platform(url, config, run(config))
        query(server.url(), f"create database {MADE} template mindroom")
        return platform

    return make


@pytest.fixture(scope="session")
def platform(platform_of: Callable[[Path], Platform], postgres_bin: Path) -> Platform:
    """The whole platform on a server of its own database."""
    return platform_of(postgres_bin)


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
def finished(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Like `stack` with all resources created, to be copied; the database is a template."""
    query(server.url(), "create database finished")
    stack = Stack(copied(tmp_path_factory.mktemp("finished")), server.url("finished"))
    with stack.host() as host:
        for name in NAMES:
            host.create(name)
    yield stack
    query(server.url(), "drop database finished")


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
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterAccess]:
    """A Kubernetes cluster of our own, unless CLUSTER_KUBECONFIG names another."""
    if given := os.environ.get("CLUSTER_KUBECONFIG"):
        yield ClusterAccess(Path(given))
        return
    own = Cluster(tmp_path_factory.mktemp("cluster") / "own")
    try:
        own.start()
        yield own
    finally:
        own.destroy()


@pytest.fixture
def namespace(cluster: ClusterAccess) -> Iterator[str]:
    """A new namespace, removed afterwards."""
    name = f"test-{secrets.token_hex(6)}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def restricted(cluster: ClusterAccess, namespace: str) -> str:
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
def deploy_to(cluster: ClusterAccess, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterAccess]:
    """A cluster without the platform's namespaces, to which programs find the way."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    yield cluster
    names = (NAMESPACE, INSTANCES_NAMESPACE)
    cluster.kubectl("delete", "namespace", *names, "--ignore-not-found")


@pytest.fixture(scope="module")
def world(
    platform: Platform,
    server: Server,
    cluster: ClusterAccess,
    helm: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    """A platform and a namespace of its own, for the instance-provisioner."""
    directory = tmp_path_factory.mktemp("provisioner")
    own = platform.copied(server, f"provisioner_{secrets.token_hex(4)}")
    with a_world(own, cluster, helm, directory) as world:
        yield world
