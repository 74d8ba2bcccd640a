"""Connecting: every form of a URL, and what is told when it does not work."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from embedded.postgres import Server
from migrate import connection
from migrate.connection import connect
from tests.support.migrating import failure, query, refused


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def pooler(server: Server) -> Iterator[str]:
    """The server behind a forwarder on Supabase's transaction mode port; its host."""
    host = f"127.{os.getpid() >> 8 & 255}.{os.getpid() & 255}.2"  # another one a test process
    listener = socket.create_server((host, 6543))

    def pump(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        client, _ = listener.accept()
        upstream = socket.create_connection(("127.0.0.1", server.port))
        with client, upstream:
            back = threading.Thread(target=pump, args=(upstream, client), daemon=True)
            back.start()
            pump(client, upstream)
            back.join()

    with listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield host
        thread.join(10)
        assert not thread.is_alive()


def test_a_connection_is_named_migrate(database: str) -> None:
    with connect(database) as session:
        assert session.info.get_parameters()["application_name"] == "migrate"


def test_a_wrong_password_is_told_without_the_password(server: Server) -> None:
    message = refused(server.url().replace(server.password, "wr0ng"))
    assert 'password authentication failed for user "postgres"' in message
    assert "what to do: check user and password" in message


def test_a_closed_port_is_told(server: Server) -> None:
    message = refused(server.url().replace(str(server.port), str(closed_port())))
    assert "Connection refused" in message
    assert "what to do: is the server running, and is the port right?" in message


def test_an_unknown_host_is_told() -> None:
    message = refused("postgresql://u:s3cret@no-such-host.invalid/db")
    assert "no-such-host.invalid" in message
    assert "what to do: check the host name" in message


def test_a_host_name_that_cannot_be_one_is_told() -> None:
    assert "cannot connect to the database" in refused("postgresql://u:s3cret@a..b/db")


def test_a_server_that_does_not_answer_is_told_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        message = refused(f"postgresql://u:s3cret@127.0.0.1:{port}/db?connect_timeout=2")
    assert "what to do: check host, port and firewall" in message


def test_a_missing_database_is_told(server: Server) -> None:
    message = refused(server.url("no_such_database"))
    assert 'database "no_such_database" does not exist\n  what to do: create it first' in message


@pytest.mark.parametrize("option", ["connect_timeout=soon", "sslmode=maybe", "port=many"])
def test_a_wrong_option_is_told(option: str) -> None:
    assert "cannot connect to the database: " in refused(
        f"postgresql://u:s3cret@127.0.0.1/db?{option}"
    )


@pytest.mark.parametrize(
    "url",
    [
        "s3cret",
        "postgresql://u:s3cret%zz@127.0.0.1/db",
        "postgresql://u:s3@cret@127.0.0.1/db",
        "postgresql://u:s3/cret@127.0.0.1/db",
        "postgresql://u:5432/s3cret@127.0.0.1/db",
        "postgresql://u:s3cret@[::1/db",
        "postgresql://u:s3cret@127.0.0.1/db?no_such_option=1",
        "host=127.0.0.1 password=pass s3cret",
    ],
)
def test_a_url_that_cannot_be_parsed_is_refused_and_not_shown(url: str) -> None:
    message = failure(lambda: connect(url))
    assert message == (
        "the database URL cannot be parsed (it is not shown, since it may hold a password)\n"
        "  what to do: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE and percent-encode the "
        "password"
    )


@pytest.mark.parametrize(
    "form",
    [
        "postgresql://{user}:{password}@{hostname}:{port}{path}?sslmode=disable",
        "postgres://{user}:{password}@{hostname}:{port}{path}",
        "postgresql://{hostname}:{port}{path}?user={user}&password={password}",
        "host={hostname} port={port} user={user} password={password} dbname={path}",
    ],
)
def test_every_form_that_libpq_takes_is_taken(database: str, form: str) -> None:
    parts = urlsplit(database)
    assert parts.password
    path = parts.path if "://" in form else parts.path[1:]
    url = form.format(
        user=parts.username,
        password=parts.password,
        hostname=parts.hostname,
        port=parts.port,
        path=path,
    )
    with connect(url) as session:
        assert session.info.dbname == parts.path[1:]


def test_a_password_of_special_characters_is_taken_percent_encoded(
    database: str, role: str
) -> None:
    name = urlsplit(role).username
    query(database, f"alter role {name} password 'p@ss/w:rd?%#'")
    url = role.replace(f"{name}secret", "p%40ss%2Fw%3Ard%3F%25%23")
    with connect(url) as session:
        assert session.info.user == name


def test_a_server_that_is_too_old_is_refused_with_its_version(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_OLDEST_SERVER", 99)
    major = int(query(database, "show server_version_num")[0]) // 10000
    assert failure(lambda: connect(database)).endswith(
        f"is PostgreSQL {major}; 99 or newer is needed\n  what to do: upgrade the server"
    )


def test_a_pooler_in_transaction_mode_is_refused_with_the_port_to_use(server: Server) -> None:
    with pooler(server) as host:
        url = server.url().replace(f"127.0.0.1:{server.port}", f"{host}:6543")
        assert failure(lambda: connect(url)) == (
            f"{host}:6543 is a pooler in transaction mode, where the lock of a run does not hold\n"
            "  what to do: use its session mode (Supabase: port 5432), or the database itself"
        )
