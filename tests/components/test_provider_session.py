"""The session that the resources share in the providers' host, and what a host imports for it."""

import json
import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pulumi.runtime.proto import provider_pb2

from components import PROJECT, ROOT
from tests.support.provider_host import DIFF_NONE, DIFF_SOME, NAMES, Stack, struct


class TestConnection:
    """One process, one connection."""

    def pids(self, stack: Stack) -> set[int]:
        return {
            pid
            for (pid,) in stack.execute(
                "select pid from pg_stat_activity where datname = current_database() "
                "and application_name = 'migrate'"
            )
        }

    def test_whole_sequence_uses_one_connection(self, stack: Stack) -> None:
        seen = []
        with stack.host() as host:
            for name in NAMES:
                host.create(name)
                seen.append(self.pids(stack))
            inputs = {name: state.inputs for name, state in stack.state.items()}
            with ThreadPoolExecutor(len(NAMES)) as threads:  # as many as the host serves at once
                diffs = threads.map(lambda name: host.diff_inputs(name, inputs[name])[0], NAMES)
                assert list(diffs) == [DIFF_NONE] * len(NAMES)
                seen.append(self.pids(stack))
                assert list(threads.map(host.refresh, NAMES)) == list(stack.state.values())
                seen.append(self.pids(stack))
            for name in NAMES:
                host.update(name)
                host.delete(name)
            seen.append(self.pids(stack))
        assert len(seen[0]) == 1
        assert all(pids == seen[0] for pids in seen)

    def test_threads_take_turns_from_the_first_call_on(self, applied: Stack) -> None:
        inputs = applied.state["verification"].inputs
        with applied.host() as host, ThreadPoolExecutor(8) as threads:
            found = threads.map(lambda _: host.compare("verification", inputs).changes, range(24))
            assert list(found) == [DIFF_NONE] * 24
            assert len(self.pids(applied)) == 1

    def test_threads_import_one_at_a_time(self, applied: Stack) -> None:
        """A package that two threads import at the same time can be seen half-made."""
        applied.add("select 1;")
        applied.edit("repeatable")
        inputs = applied.declared()

        def check(name: str) -> list[Any]:
            news = struct(inputs[name])
            return list(host.stub.Check(provider_pb2.CheckRequest(news=news, name=name)).failures)

        for _ in range(2):
            with applied.host() as host, ThreadPoolExecutor(8) as threads:
                checks = [threads.submit(check, name) for name in NAMES[:3] * 2]
                diffs = [threads.submit(host.compare, name, inputs[name]) for name in NAMES]
                live = threads.submit(host.refresh, "verification")
                assert [future.result() for future in checks] == [[]] * 6
                changes = [future.result().changes for future in diffs]
                assert changes == [DIFF_NONE, DIFF_SOME, DIFF_SOME, DIFF_SOME]
                assert live.result() == applied.state["verification"]

    def test_lost_connection_is_told_once_and_replaced(self, applied: Stack) -> None:
        with applied.host() as host:
            assert host.diff("migrations") == (DIFF_NONE, "")
            (pid,) = self.pids(applied)
            applied.execute(f"select pg_terminate_backend({pid}, 5000)")
            assert "terminating connection" in host.failure(host.diff, "migrations")
            assert host.diff("migrations") == (DIFF_NONE, "")


def test_rotated_password_is_no_diff(stack: Stack) -> None:
    user, old, new = f"admin_{secrets.token_hex(4)}", secrets.token_hex(16), secrets.token_hex(16)
    stack.execute(f"create role {user} superuser login password '{old}'")
    with stack.host(databaseUser=user, databasePassword=old) as host:
        for name in NAMES:
            host.create(name)
    stack.execute(f"alter role {user} password '{new}'")
    with stack.host(databaseUser=user, databasePassword=new) as host:
        assert [host.diff(name) for name in NAMES] == [(DIFF_NONE, "")] * len(NAMES)
        assert [host.refresh(name) for name in NAMES] == [stack.state[name] for name in NAMES]
    stack.execute(f"alter role {user} nosuperuser")  # which others' verification would name
    assert old not in json.dumps([vars(state) for state in stack.state.values()])


def test_a_run_with_nothing_to_do_imports_no_parser(database: str) -> None:
    code = """
import sys
from pulumi.dynamic import Config, ConfigureRequest
import components.automation
import components.role_settings
from components.schema import VerificationProvider

provider, values = VerificationProvider(), eval(sys.argv[1])
provider.configure(ConfigureRequest(Config(values, "mindroom")))
proof = {"files": "", "checks": ""}
provider.diff("verification", proof, proof)
unneeded = {"postgast", "migrate.lint._reader", "pulumi_postgresql", "pulumi_kubernetes"}
assert not unneeded & sys.modules.keys()
import components.access
import components.database
import components.instance_provisioner
assert not {"postgast", "migrate.lint._reader"} & sys.modules.keys()
"""
    config = {f"{PROJECT}:{key}": value for key, value in Stack(ROOT, database).config.items()}
    command = [sys.executable, "-c", code, repr(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
