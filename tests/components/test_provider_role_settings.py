"""The settings of a role in the providers' host."""

import secrets

import pytest

from tests.support.provider_host import DIFF_NONE, DIFF_SOME, Stack


class TestRoleSettings:
    """The settings of a role, which belong to the server."""

    @pytest.fixture
    def stack(self, stack: Stack) -> Stack:
        """With a new role."""
        stack.role, stack.settings = f"role_{secrets.token_hex(4)}", {"lock_timeout": "5000"}
        stack.execute(f"create role {stack.role}")
        stack.execute(f"alter role {stack.role} set statement_timeout to 1000")
        return stack

    def live(self, stack: Stack) -> set[str]:
        (row,) = stack.execute(
            f"select setconfig from pg_db_role_setting where setrole = '{stack.role}'::regrole"
        )
        return set(row[0])

    def test_settings_are_set_and_others_left_alone(self, stack: Stack) -> None:
        with stack.host() as host:
            host.create("settings")
            assert stack.state["settings"].id == stack.role
            assert self.live(stack) == {"statement_timeout=1000", "lock_timeout=5000"}
            assert host.diff("settings") == (DIFF_NONE, "")
            stack.settings = {"lock_timeout": "7000"}
            assert host.diff("settings") == (DIFF_SOME, "")
            host.update("settings")
            assert self.live(stack) == {"statement_timeout=1000", "lock_timeout=7000"}
            host.delete("settings")
            assert self.live(stack) == {"statement_timeout=1000", "lock_timeout=7000"}

    def test_refresh_shows_what_is_set(self, stack: Stack) -> None:
        with stack.host() as host:
            host.create("settings")
            assert host.refresh("settings") == stack.state["settings"]
            stack.execute(f"alter role {stack.role} set lock_timeout to 1")
            found = host.refresh("settings")
            assert found.inputs["settings"] == found.outputs["settings"] == {"lock_timeout": "1"}
            stack.execute(f"alter role {stack.role} reset lock_timeout")
            stack.state["settings"] = host.refresh("settings")
            assert stack.state["settings"].outputs["settings"] == {}
            assert host.diff("settings") == (DIFF_SOME, "")

    def test_a_setting_that_is_lost_is_set_again(self, stack: Stack) -> None:
        with stack.host() as host:
            host.create("settings")
            stack.execute(f"alter role {stack.role} reset lock_timeout")
            assert host.diff("settings") == (DIFF_SOME, "")
            host.update("settings")
            assert self.live(stack) == {"statement_timeout=1000", "lock_timeout=5000"}
        with stack.host(databasePort="1") as host:
            assert host.diff("settings") == (DIFF_NONE, "")

    def test_another_role_is_another_resource(self, stack: Stack) -> None:
        with stack.host() as host:
            host.create("settings")
            stack.role = "another"
            response = host.compare("settings", host.check("settings"))
        assert response.changes == DIFF_SOME
        assert list(response.replaces) == ["role"]

    def test_missing_role_is_told_with_what_to_do(self, stack: Stack) -> None:
        with stack.host() as host:
            host.create("settings")
            stack.execute(f"drop role {stack.role}")
            assert host.diff("settings") == (DIFF_SOME, "")
            told = host.failure(host.update, "settings")
        assert f"has the role {stack.role}, and the server has not" in told
        assert "run `pulumi up --refresh --run-program`" in told
