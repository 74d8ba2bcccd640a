"""The resources of components/schema.py in the providers' host: applied, previewed, read back."""

import secrets

import pytest

from components.schema import fingerprint, object_digests
from migrate import catalog, files
from migrate.connection import connect
from tests.support.provider_host import DIFF_NONE, DIFF_SOME, NAMES, SOUND, Stack, State, untimed


class TestCheck:
    """What needs no database fails the preview, each problem in one message."""

    def test_files_as_they_were_applied_pass(self, offline: Stack) -> None:
        with offline.host() as host:
            assert {name: host.check(name) for name in offline.state} == {
                name: state.inputs for name, state in offline.state.items()
            }
            assert host.printed() == ""

    def test_new_file_passes(self, offline: Stack) -> None:
        name = offline.add("create table private.added (id int);").name
        with offline.host() as host:
            assert name in host.check("migrations")["files"]

    def test_edited_migration_is_refused_with_both_digests(self, offline: Stack) -> None:
        name, before, after = offline.edit(files.VERSIONED)
        with offline.host() as host:
            (message,) = host.refused("migrations")
        assert message == (
            f"migrations/{name}: was edited after it had been applied: recorded sha256 "
            f"{before[:16]}, present {after[:16]}\n"
            "  what to do: restore the file and put the change into a new migration"
        )

    def test_edited_repeatable_passes(self, offline: Stack) -> None:
        edited = {folder: offline.edit(folder) for folder in ("repeatable", "platform")}
        with offline.host() as host:
            for folder, (name, _, after) in edited.items():
                assert host.check(folder)["files"][name] == after

    def test_removed_migration_is_refused(self, offline: Stack) -> None:
        name = offline.names("migrations")[-1]
        digest = offline.state["migrations"].inputs["files"][name]
        (offline.folder("migrations") / name).unlink()
        with offline.host() as host:
            message, hint = host.refused("migrations")
        assert message == (
            f"migrations/{name}: was applied (sha256 {digest[:16]}) and was removed\n"
            "  what to do: restore it, or update this checkout if it is older than the database"
        )
        assert hint.startswith("or, where the database was restored")

    def test_removed_repeatable_passes(self, offline: Stack) -> None:
        name = offline.names("repeatable")[-1]
        (offline.folder("repeatable") / name).unlink()
        with offline.host() as host:
            assert name not in host.check("repeatable")["files"]

    def test_syntax_error_is_refused_with_its_place(self, offline: Stack) -> None:
        text = "-- A comment.\n\nselect 1;\nselect from from t;\n"
        folders = ("migrations", "repeatable", "platform")
        added = {folder: offline.add(text, folder) for folder in folders}
        with offline.host() as host:
            for folder, path in added.items():
                (message,) = host.refused(folder)
                assert message.splitlines() == [
                    f'sql/{folder}/{path.name}:4:13: syntax error at or near "from"',
                    "    1 | -- A comment.",
                    "    2 | ",
                    "    3 | select 1;",
                    "    4 | select from from t;",
                    "      |             ^",
                ]

    def test_two_files_of_one_number_are_refused(self, offline: Stack) -> None:
        taken = offline.add("select 1;")
        other = taken.with_name(taken.name.replace("new", "other"))
        other.write_text("select 2;")
        with offline.host() as host:
            (message,) = host.refused("migrations")
        number = taken.name[:4]
        assert message.startswith(
            f"sql/migrations/{other.name}: number {number} is taken by {taken.name}"
        )

    def test_every_problem_is_told(self, offline: Stack) -> None:
        edited, _, _ = offline.edit("migrations")
        wrong = offline.add("begin;\nselect 1;\ncommit;\n").name
        with offline.host() as host:
            messages = host.refused("migrations")
        assert [message.split(": ")[0] for message in messages] == [
            f"sql/migrations/{wrong}:1:1",
            f"sql/migrations/{wrong}:3:1",
            f"migrations/{edited}",
        ]


class TestCreate:
    """Creating applies what is pending and adopts what is there."""

    def test_create_applies_every_file_in_order(self, stack: Stack) -> None:
        with stack.host() as host:
            for folder in ("platform", "migrations", "repeatable"):
                told = host.create(folder)
                lines = untimed(told).splitlines()
                assert [line for line in lines if ": NOTICE: " not in line] == [
                    f"applied {folder}/{name}" for name in stack.names(folder)
                ]
                state = stack.state[folder]
                assert state.id == folder
                assert state.outputs == state.inputs
                assert dict(r[:2] for r in stack.ledger(folder)) == state.inputs["files"]
        assert stack.execute("select relrowsecurity from pg_class where relname = 'accounts'") == [
            (True,)
        ]

    def test_verification_gives_the_catalogs_digests(self, applied: Stack) -> None:
        with connect(applied.url) as connection:
            found = catalog.read(connection)
        outputs = applied.state["verification"].outputs
        assert outputs["fingerprint"] == fingerprint(found)
        assert outputs["objects"] == object_digests(found)
        assert "table public.accounts" in outputs["objects"]

    def test_second_create_adopts(self, applied: Stack) -> None:
        before = applied.everything()
        states = dict(applied.state)
        applied.state.clear()
        with applied.host() as host:
            told = [host.create(name) for name in NAMES]
        assert told[:3] == ["", "", ""]
        assert told[3].startswith("verified: no drift, ")
        assert applied.state == states
        assert applied.everything() == before

    def test_state_that_forgot_a_file_adopts_it(self, applied: Stack) -> None:
        """The engine's state is not the truth: an update that failed half-way is not in it."""
        new = applied.add("create table private.added (id int);")
        with applied.host() as host:
            state = applied.state["migrations"]
            before = State(state.id, state.inputs, state.outputs)
            host.update("migrations")
            applied.state["migrations"] = before
            assert host.diff("migrations") == (DIFF_SOME, "")
            assert host.update("migrations") == ""
        assert new.name in applied.state["migrations"].outputs["files"]

    def test_ledger_refuses_what_the_state_does_not_know(self, applied: Stack) -> None:
        applied.state.clear()
        name, before, after = applied.edit("migrations")
        with applied.host() as host:
            message = host.failure(host.create, "migrations")
        assert f"migrations/{name}: was edited" in message
        assert before[:16] in message
        assert after[:16] in message

    def test_failing_migration_is_told_and_the_next_run_goes_on(self, applied: Stack) -> None:
        first = applied.add(SOUND)
        second = applied.add("select 1;\nselect 1 / 0;\n")
        with applied.host() as host:
            message = host.failure(host.update, "migrations")
            assert f"sql/migrations/{second.name}:2:1: division by zero (SQLSTATE 22012)" in message
            assert f"rolled back: {second.name}" in message
            assert f"committed in this run: {first.name}" in message
            assert untimed(host.printed()) == f"applied migrations/{first.name}\n"
            second.write_text("select 1;\n")
            assert host.preview("migrations", second.name) == []
            assert untimed(host.update("migrations")) == f"applied migrations/{second.name}\n"
            assert host.diff("migrations") == (DIFF_NONE, "")

    def test_missing_privilege_is_told(self, stack: Stack) -> None:
        name, password = f"powerless_{secrets.token_hex(4)}", secrets.token_hex(16)
        stack.execute(f"create role {name} login password '{password}'")
        with stack.host(databaseUser=name, databasePassword=password) as host:
            message = host.failure(host.create, "migrations")
        assert "permission denied for database" in message
        assert "what to do: " in message


class TestDiff:
    """A preview says what an update would do, and changes nothing."""

    def test_nothing_pending_is_no_diff(self, applied: Stack) -> None:
        with applied.host() as host:
            assert [host.diff(name) for name in NAMES] == [(DIFF_NONE, "")] * len(NAMES)

    def test_what_is_not_read_is_named(self, applied: Stack) -> None:
        (applied.folder("migrations") / "0099_later.txt").touch()
        (applied.folder("migrations").parent / "migration").mkdir()
        with applied.host() as host:
            changes, told = host.diff("migrations")
            assert host.diff("repeatable") == (DIFF_NONE, "")
        assert changes == DIFF_NONE
        assert told.splitlines() == ["not read: migration", "not read: migrations/0099_later.txt"]

    def test_new_migration_is_pending_until_it_is_applied(self, applied: Stack) -> None:
        name = applied.add(SOUND).name
        before = applied.everything()
        with applied.host() as host:
            assert host.preview("migrations", name) == []
            changes, _ = host.diff("verification")
            assert changes == DIFF_SOME
            assert applied.everything() == before
            assert untimed(host.update("migrations")) == f"applied migrations/{name}\n"
            assert host.diff("migrations") == (DIFF_NONE, "")

    def test_edited_repeatable_is_pending_until_it_is_applied(self, applied: Stack) -> None:
        name, _, _ = applied.edit("repeatable")
        with applied.host() as host:
            assert host.preview("repeatable", name) == []
            assert untimed(host.update("repeatable")) == f"applied repeatable/{name}\n"
            assert host.diff("repeatable") == (DIFF_NONE, "")

    def test_removed_repeatable_is_unrecorded(self, applied: Stack) -> None:
        name = applied.names("repeatable")[-1]
        (applied.folder("repeatable") / name).unlink()
        with applied.host() as host:
            assert host.preview("repeatable", name) == []
            host.update("repeatable")
            assert host.diff("repeatable") == (DIFF_NONE, "")
        assert name not in [row[0] for row in applied.ledger("repeatable")]

    def test_migration_that_only_the_state_knows_is_pending_after_a_refresh(
        self, applied: Stack
    ) -> None:
        name = applied.names("migrations")[-1]
        applied.execute(f"delete from migrate.ledger where name = '{name}'")
        with applied.host() as host:
            told = host.failure(host.diff, "migrations")
            assert f"the stack's state has {name}, and the database has not" in told
            assert "run `python -m migrate up` and then `pulumi up --refresh --run-program`" in told
            applied.state["migrations"] = host.refresh("migrations")
            changes, told = host.diff("migrations")
        assert changes == DIFF_SOME
        assert told.splitlines()[0] == f"pending: migrations/{name}"

    def test_migration_that_would_hurt_is_told_with_its_place(self, applied: Stack) -> None:
        name = applied.add("create index added on public.accounts (created_at);").name
        with applied.host() as host:
            (finding, *_) = host.preview("migrations", name)
        assert finding.startswith(f"finding: sql/migrations/{name}:1:1: ")

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("select 1;\nselect 1 / 0;\n", "sql/migrations/NAME:2:1: division by zero"),
            ("create table private.added ();", "failed check: Every table in public and private"),
        ],
    )
    def test_migration_that_would_fail_fails_the_preview(
        self, applied: Stack, text: str, told: str
    ) -> None:
        name = applied.add(text).name
        before = applied.everything()
        with applied.host() as host:
            message = host.failure(host.diff, "migrations")
        assert "nothing was done to the database itself" in message
        assert told.replace("NAME", name) in message
        assert applied.everything() == before

    def test_failed_rehearsal_shows_the_findings_of_both_folders(self, applied: Stack) -> None:
        name = applied.add("create index late on public.accounts (company_name);\nselect 1 / 0;\n")
        added = applied.project / "sql" / "repeatable" / "zz.sql"
        added.write_text("create index later on public.accounts (company_name);\n")
        with applied.host() as host:
            message = host.failure(host.diff, "migrations")
            shown = host.printed()
        assert message.count("division by zero") == 1
        assert "division by zero" not in shown
        assert f"pending: migrations/{name.name}\nfinding: sql/migrations/{name.name}:1:1" in shown
        assert "pending: repeatable/zz.sql\nfinding: sql/repeatable/zz.sql:1:1: " in shown

    def test_cut_off_run_is_pending_until_it_is_finished(self, applied: Stack) -> None:
        applied.execute("update migrate.catalog set in_progress = '{}'")
        with applied.host() as host:
            for name in ("migrations", "repeatable"):
                told = "the record of what is there is not complete: this completes it\n"
                assert host.diff(name) == (DIFF_SOME, told)
            changes, said = host.diff("verification")
            assert changes == DIFF_SOME
            assert said.startswith(
                "whether the schema has drifted is not known: a run is in progress"
            )
            assert "is not known" in host.failure(host.update, "verification")
            assert host.update("migrations") == ""
            assert [host.diff(name) for name in NAMES] == [(DIFF_NONE, "")] * len(NAMES)

    def test_edited_verification_is_a_diff(self, applied: Stack) -> None:
        applied.edit("verify")
        with applied.host() as host:
            assert host.diff("verification") == (DIFF_SOME, "")


class TestUnreachable:
    """A preview goes on without the database and says so; an update does not."""

    def test_diff_warns_and_create_fails(self, offline: Stack) -> None:
        unknown = {
            "platform": "what is pending in platform/ is not known",
            "migrations": "what is pending in migrations/ is not known",
            "repeatable": "what is pending in repeatable/ is not known",
            "verification": "whether the schema has drifted is not known",
        }
        with offline.host() as host:
            for name in NAMES:
                changes, told = host.diff(name)
                assert changes == DIFF_NONE
                assert told.startswith(
                    f"warning: {unknown[name]}: cannot connect to the database: "
                )
                assert "Connection refused" in told
                message = host.failure(host.create, name)
                assert "cannot connect to the database" in message
                assert "what to do: is the server running, and is the port right?" in message

    def test_diff_still_sees_what_the_files_say(self, offline: Stack) -> None:
        offline.add("select 1;")
        with offline.host() as host:
            assert host.diff("migrations")[0] == DIFF_SOME

    def test_wrong_password_is_told(self, applied: Stack) -> None:
        with applied.host(databasePassword="not the p@ssword") as host:
            changes, told = host.diff("migrations")
            assert changes == DIFF_NONE
            assert "password authentication failed" in told
            message = host.failure(host.update, "migrations")
        assert "password authentication failed" in message
        assert "what to do: check user and password" in message

    def test_missing_database_is_told(self, applied: Stack) -> None:
        with applied.host(databaseName="absent") as host:
            assert host.diff("migrations")[0] == DIFF_SOME
            message = host.failure(host.update, "migrations")
        assert 'database "absent" does not exist' in message


class TestDrift:
    """What was changed behind Pulumi's back is named, by diff, by update and by refresh."""

    def test_row_security_switched_off_is_named_until_it_is_on_again(self, applied: Stack) -> None:
        applied.execute("alter table public.accounts disable row level security")
        with applied.host() as host:
            changes, told = host.diff("verification")
            assert changes == DIFF_SOME
            assert told.splitlines()[0] == "drift: table public.accounts"
            assert "row security t" in told.splitlines()[1]
            assert "row security f" in told.splitlines()[2]
            assert len(told.splitlines()) == 3
            message = host.failure(host.update, "verification")
            assert "1 object is not as the last run left them:\ntable public.accounts" in message
            assert "what to do: undo the change" in message
            assert host.failure(host.create, "verification") == message
            applied.execute("alter table public.accounts enable row level security")
            assert host.diff("verification") == (DIFF_NONE, "")
            assert host.update("verification").startswith("verified: no drift, ")

    def test_refresh_shows_the_drifted_object_by_name(self, applied: Stack) -> None:
        before = applied.state["verification"]
        with applied.host() as host:
            name = applied.config["databaseName"]
            applied.execute(f"alter database {name} set timezone = 'Asia/Tokyo'")
            assert host.refresh("verification") == before
            applied.execute("alter table public.accounts disable row level security")
            found = host.refresh("verification")
        objects, live = before.outputs["objects"], found.outputs["objects"]
        assert {name for name in objects if objects[name] != live[name]} == {
            "table public.accounts"
        }
        assert found.outputs["fingerprint"] != before.outputs["fingerprint"]
        assert found.inputs == before.inputs

    def test_another_run_hides_no_drift(self, applied: Stack) -> None:
        applied.execute("alter table public.accounts disable row level security")
        applied.add("create table private.added (id int);")
        with applied.host() as host:
            host.update("migrations")
            assert "table public.accounts" in host.failure(host.update, "verification")

    def test_failed_check_fails_with_its_text(self, applied: Stack) -> None:
        path = applied.add("-- check: there is no one\nselect 1 as one;\n", "verify")
        with applied.host() as host:
            message = host.failure(host.update, "verification")
        assert f"sql/verify/{path.name}:2:1: failed check: there is no one\n  one=1" in message


class TestRefresh:
    """Reading gives what the database says, not what the state remembers."""

    def test_nothing_changed_is_read_back(self, applied: Stack) -> None:
        with applied.host() as host:
            assert {name: host.refresh(name) for name in NAMES} == applied.state

    def test_ledger_row_deleted_shows_as_removed_and_comes_back(self, applied: Stack) -> None:
        state = applied.state["repeatable"]
        name = applied.names("repeatable")[-1]
        applied.execute(f"delete from migrate.ledger where name = '{name}'")
        with applied.host() as host:
            found = host.refresh("repeatable")
            assert found.inputs["files"] == {
                n: digest for n, digest in state.inputs["files"].items() if n != name
            }
            assert found.inputs["head"] == applied.names("repeatable")[-2]
            assert found.outputs == found.inputs
            applied.state["repeatable"] = found
            assert host.preview("repeatable", name) == []
            assert untimed(host.update("repeatable")) == f"applied repeatable/{name}\n"
            assert host.refresh("repeatable") == state


def test_delete_touches_nothing(applied: Stack) -> None:
    before = applied.everything()
    with applied.host() as host:
        for name in NAMES:
            host.delete(name)
    assert applied.everything() == before
