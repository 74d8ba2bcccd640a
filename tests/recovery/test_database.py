"""The database, or its ledger, is not the one that the state knows (docs/recovery.md)."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from pulumi import automation

from components import PROJECT
from embedded.postgres import Server
from tests.support.engines import Project, execute
from tests.support.platforms import own_server
from tests.support.recovery import RENDERED, pulumi, whole

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not shutil.which("pulumi"), reason="needs the Pulumi CLI on PATH"),
]


def restore(admin_url: str, postgres_bin: Path, backup: Path) -> None:
    execute(admin_url, "drop database if exists mindroom with (force)")
    command = [f"{postgres_bin}/pg_restore", "--create", f"--dbname={admin_url}", str(backup)]
    subprocess.run(command, check=True)


def back_up(url: str, postgres_bin: Path, backup: Path) -> None:
    command = [f"{postgres_bin}/pg_dump", "--format=custom", f"--file={backup}", url]
    subprocess.run(command, check=True)


def todays_release(project: Project) -> Path:
    """A table that stripe_handler may read; returns its migration."""
    count = len(list((project.directory / "sql" / "migrations").glob("*.sql")))
    path = project.migration(
        f"{count + 1:04d}_today.sql",
        "create table public.today (id int primary key);\n"
        "comment on table public.today is 'Of today''s release.';\n"
        "alter table public.today enable row level security;\n"
        "revoke all on public.today from public, anon, authenticated, service_role;\n",
    )
    authorization = project.directory / "components" / "authorization.py"
    before = authorization.read_text()
    first = '"public.accounts": {'
    row = '"public.today": {"stripe_handler": READ},'
    authorization.write_text(before.replace(first, f"{row} {first}", 1))
    assert authorization.read_text() != before
    check = project.directory / "sql" / "verify" / "80_access.sql"  # as `make generate` would
    named = "('table', 'public.accounts', 'stripe_handler', 'SELECT', '{}'),"
    added = named.replace("accounts", "today")
    check.write_text(check.read_text().replace(named, f"{named} {added}"))
    assert added in check.read_text()
    return path


def refreshed(project: Project) -> automation.UpResult:
    return project.up(refresh=True, run_program=True, exclude=RENDERED)


def test_restored_from_yesterdays_backup(
    project: Project, server: Server, postgres_bin: Path, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    data = ("components/authorization.py", "sql/verify/80_access.sql")
    yesterday = {name: (project.directory / name).read_text() for name in data}
    back_up(project.url, postgres_bin, backup)
    path = todays_release(project)
    project.up()
    execute(server.url(), "drop database mindroom with (force)")
    with pytest.raises(automation.CommandError, match='database "mindroom" does not exist'):
        project.up()
    restore(server.url(), postgres_bin, backup)
    with pytest.raises(automation.CommandError, match="up --refresh") as caught:
        project.up()
    assert f"the stack's state has {path.name}, and the database has not" in str(caught.value)
    engine = ("-m", "migrate", "--database-url", project.url, "up")
    subprocess.run([sys.executable, *engine], cwd=project.directory, check=True)
    refreshed(project)
    with psycopg.connect(
        project.stack.outputs()["service_database_urls"].value["stripe_handler"]
    ) as c:
        c.execute("select from public.today")
    whole(project)

    # Today's release was the reason, and is taken back.
    restore(server.url(), postgres_bin, backup)
    path.unlink()
    for name, text in yesterday.items():
        (project.directory / name).write_text(text)
    with pytest.raises(automation.CommandError, match="up --refresh") as caught:
        project.up()
    assert f"{path.name}: was applied" in str(caught.value)
    refreshed(project)
    with pytest.raises(automation.CommandError, match=r'relation "public.today" does not exist'):
        project.up()
    (grant,) = (r["urn"] for r in project.resources() if r["urn"].endswith("-public.today"))
    pulumi(project, "state", "delete", grant, "--yes").check_returncode()
    project.up()
    whole(project)


def test_a_role_that_is_gone_is_told_and_made_again(project: Project) -> None:
    execute(project.url, "drop owned by stripe_handler")
    execute(project.url, "drop role stripe_handler")
    with pytest.raises(automation.CommandError, match="up --refresh") as caught:
        project.up()
    assert "the role stripe_handler, and the server has not" in str(caught.value)
    refreshed(project)
    whole(project)


def test_a_deleted_ledger_is_written_again_unless_something_was_changed(project: Project) -> None:
    execute(project.url, "drop schema migrate cascade")
    execute(project.url, "alter table public.api_keys add column extra text")
    with pytest.raises(automation.CommandError) as caught:
        project.up()
    assert re.search(
        r"column public\.api_keys\.extra\s+expected: \(absent\)\s+found: +text", str(caught.value)
    )
    execute(project.url, "alter table public.api_keys drop column extra")
    result = project.up()
    assert "equal to what the files make: a run only records that" in result.stdout
    assert "applied migrations/" not in result.stdout
    whole(project)


def test_deleted_rows_of_the_ledger_are_told(project: Project) -> None:
    """What to do then is to delete the whole ledger, which the test above does."""
    with psycopg.connect(project.url, autocommit=True) as connection:
        for which in ("min", "max"):
            name = f"(select {which}(name) from migrate.ledger where folder = 'migrations')"
            delete = f"delete from migrate.ledger where name = {name} returning *"
            (row,) = connection.execute(delete.encode())
            with pytest.raises(
                automation.CommandError, match=r"state has \d+_\w+\.sql, and the database has"
            ):
                project.up()
            values = ", ".join(["%s"] * len(row))
            connection.execute(f"insert into migrate.ledger values ({values})".encode(), row)
    whole(project)


def test_moved_to_another_server_when_the_old_one_is_gone(
    project: Project, server: Server, postgres_bin: Path, tmp_path: Path
) -> None:
    """The last test: the project stays there."""
    roles, backup = tmp_path / "roles.sql", tmp_path / "backup"
    port, password = (f"{PROJECT}:{key}" for key in ("databasePort", "databasePassword"))
    command = [f"{postgres_bin}/pg_dumpall", "--globals-only", f"--dbname={server.url()}"]
    subprocess.run([*command, f"--file={roles}"], check=True)
    back_up(project.url, postgres_bin, backup)
    server.stop()
    try:
        with own_server(tmp_path, postgres_bin) as other:
            psql = [f"{postgres_bin}/psql", f"--dbname={other.url()}", f"--file={roles}"]
            subprocess.run(psql, check=True, capture_output=True)
            admin, url = (
                each.replace(f":{server.port}/", f":{other.port}/")
                for each in (server.url(), project.url)
            )
            restore(admin, postgres_bin, backup)
            engine = ("-m", "migrate", "--database-url", url, "up")
            subprocess.run([sys.executable, *engine], cwd=project.directory, check=True)
            execute(url, "revoke update on public.subscriptions from stripe_handler")
            project.stack.set_config(port, automation.ConfigValue(str(other.port)))
            told = refreshed(project).stdout
            assert not re.findall(r"postgresql:.* (?:replac|delet|creat)", told)
            urls = project.stack.outputs()["service_database_urls"].value
            for each in urls.values():
                assert f":{other.port}/" in each
                psycopg.connect(each).close()
            execute(urls["stripe_handler"], "update public.subscriptions set status = status")

            execute(url, "alter role postgres password 'reset-on-the-dashboard'")
            reset = automation.ConfigValue("reset-on-the-dashboard", secret=True)
            project.stack.set_config(password, reset)
            refreshed(project)
            project.up()  # and what is rendered from it
            whole(replace(project, url=url.replace(server.password, "reset-on-the-dashboard")))
    finally:
        server.start()
