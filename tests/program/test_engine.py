"""The real Pulumi engine through the Automation API, where the CLI is on PATH.

Each test works on a copy of the project, so that it may add and edit migrations, and on a server
of its own, because roles belong to the server.
"""

import re
import shutil
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import yaml
from pulumi import automation

from components import PROJECT, ROOT
from components.automation import SCHEDULES
from components.schema import fingerprint
from docs.examples import stripe_handler
from embedded.cluster import ClusterAccess
from embedded.postgres import Server
from tests.support.engines import (
    Project,
    changes,
    execute,
    live_catalog,
    make_project,
    verification,
)
from tests.support.outputs import breaches
from tests.support.platforms import (
    PASSWORDS,
    SECRETS,
    TOKEN,
    cron_server,
    own_server,
    run,
    sql_files,
    stack_config,
)

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not shutil.which("pulumi"), reason="needs the Pulumi CLI on PATH"),
]


@pytest.fixture(scope="module")
def server(postgres_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with own_server(tmp_path_factory.mktemp("engine"), postgres_bin) as started:
        yield started


@pytest.fixture(scope="module")
def project(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the project, brought up on a plain server."""
    directory = tmp_path_factory.mktemp("project with a space")
    url = server.url("mindroom")
    made = make_project(directory, stack_config(url, directory / "manifests"), url)
    made.up()
    return made


def test_second_preview_and_up_change_nothing(project: Project) -> None:
    assert set(changes(project.preview(expect_no_changes=True))) == {"same"}
    assert set(changes(project.up(expect_no_changes=True))) == {"same"}


def test_no_drift_right_after_up(project: Project) -> None:
    # The Kubernetes provider has no cluster to refresh from when it renders to files.
    targets = [
        resource["urn"]
        for resource in project.resources()
        if not resource["type"].startswith("kubernetes:")
        and "kubernetes" not in resource.get("provider", "")
    ]
    assert set(changes(project.stack.refresh(target=targets, color="never"))) == {"same"}


def test_outputs_by_plain_json(project: Project) -> None:
    outputs = project.stack.outputs()
    assert breaches({name: output.value for name, output in outputs.items()}) == []
    migrations = [path.name for path in sql_files("migrations")]
    assert outputs["applied_migrations"].value == migrations
    assert outputs["schema_fingerprint"].value == fingerprint(live_catalog(project.url))
    assert [name for name, output in outputs.items() if output.secret] == ["service_database_urls"]
    for url in outputs["service_database_urls"].value.values():
        psycopg.connect(url).close()


def test_engine_and_in_process_run_leave_the_same_catalog(
    project: Project, server: Server, tmp_path: Path
) -> None:
    url = server.url("made_in_process")
    run(stack_config(url, tmp_path))
    try:
        assert live_catalog(url) == live_catalog(project.url)
    finally:
        execute(server.url(), "drop database made_in_process with (force)")


def test_new_file_shows_in_the_preview_and_is_applied_by_up(project: Project) -> None:
    name = f"{len(sql_files('migrations')) + 1:04d}_added.sql"
    project.migration(name, "comment on table public.accounts is 'Customers';\n")
    shown = project.shown()
    assert f"pending: migrations/{name}" in shown
    assert "+ " + name in shown.replace('"', "")
    result = project.up()
    assert f"applied migrations/{name}" in result.stdout
    assert result.outputs["schema_version"].value == name.removesuffix(".sql")


def test_preview_lints_and_rehearses_what_is_pending(project: Project) -> None:
    migrations = project.directory / "sql" / "migrations"
    name = f"{len(list(migrations.glob('*.sql'))) + 1:04d}_index.sql"
    path = project.migration(name, "create index late on public.accounts (company_name);\n")
    shown = project.shown()
    assert f"pending: migrations/{name}" in shown
    assert f"finding: sql/migrations/{name}:1:1: create-index: " in shown
    assert "rehearsed in a throwaway PostgreSQL" in shown
    assert "pending files applied 1" in shown
    path.write_text("alter table public.accounts add column full_name text;\n")
    with pytest.raises(automation.CommandError) as caught:
        project.preview()
    assert "the rehearsal failed; nothing was done to the database itself" in str(caught.value)
    assert f'{name}:1:1: column "full_name" of relation' in str(caught.value)
    assert "Traceback" not in str(caught.value)
    path.unlink()


def test_edited_file_fails_the_preview_with_both_digests(project: Project) -> None:
    path = sorted((project.directory / "sql" / "migrations").glob("*.sql"))[1]
    before = path.read_text()
    recorded = project.resources()
    (migrations,) = (r for r in recorded if r["type"].endswith(":MigrationSet"))
    path.write_text(before + "-- edited\n")
    try:
        with pytest.raises(automation.CommandError) as caught:
            project.preview()
    finally:
        path.write_text(before)
    assert f"{path.name}: was edited" in str(caught.value)
    assert migrations["inputs"]["files"][path.name][:16] in str(caught.value)
    assert "present" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_failing_migration_says_where_and_leaves_nothing(project: Project) -> None:
    count = len(list((project.directory / "sql" / "migrations").glob("*.sql")))
    path = project.migration(
        f"{count + 1:04d}_broken.sql",
        "create table public.half ();\n\nselect *\nfrom public.nowhere;\n",
    )
    try:
        with pytest.raises(automation.CommandError) as caught:
            project.up()
        text = str(caught.value)
        assert f"sql/migrations/{path.name}:4:6: relation" in text
        assert "SQLSTATE 42P01" in text
        assert "Traceback" not in text
        assert "table public.half" not in live_catalog(project.url)
    finally:
        path.unlink()
    assert set(changes(project.up())) == {"same"}


def test_drift_and_what_was_given_by_hand_are_named_by_the_preview_and_refused_by_up(
    project: Project,
) -> None:
    given = "stripe_handler: UPDATE (email) on table"
    (by_hand,) = (r["urn"] for r in project.resources() if r["type"].endswith(":GivenByHand"))
    execute(project.url, "alter table public.api_keys disable row level security")
    execute(project.url, "grant update (email) on public.accounts to stripe_handler")
    try:
        shown = project.shown()
        assert "drift: table public.api_keys" in shown
        assert f"not in the authorization data: {given}" in shown
        refreshed = project.shown(refresh=True, target=[verification(project), by_hand])
        assert re.search(r"~ +table public\.api_keys *:", refreshed)
        assert re.search(rf"\+ +{re.escape(given)}", refreshed)
        with pytest.raises(automation.CommandError, match=r"table public\.api_keys"):
            project.up()
    finally:
        execute(project.url, "alter table public.api_keys enable row level security")
    execute(project.url, "create role reader login in role pg_read_all_data")
    try:
        with pytest.raises(automation.CommandError) as caught:
            project.up()
    finally:
        execute(project.url, "drop role reader")
    assert re.search(
        r"reader: membership in pg_read_all_data\n +revoke pg_read_all_data from reader",
        str(caught.value),
    )
    assert "stripe_handler" not in str(caught.value)  # taken back by the run before
    assert "Traceback" not in str(caught.value)
    assert set(changes(project.up())) == {"same"}


def test_unreachable_database_is_a_warning_in_the_preview_and_ends_an_up(project: Project) -> None:
    port = project.config["databasePort"]
    before = project.resources()
    project.stack.set_config(f"{PROJECT}:databasePort", automation.ConfigValue("1"))
    try:
        shown = project.shown()
        with pytest.raises(automation.CommandError, match="Connection refused"):
            project.up()
    finally:
        project.stack.set_config(f"{PROJECT}:databasePort", automation.ConfigValue(str(port)))
    changed = [each for each in project.resources() if each not in before]
    assert {each["type"] for each in changed} <= {"pulumi:pulumi:Stack"}
    assert "warning: what is pending in migrations/ is not known" in shown
    assert "Connection refused" in shown


def test_grant_and_password_changed_by_hand_are_shown_by_refresh_and_repaired_by_up(
    project: Project,
) -> None:
    execute(project.url, "revoke update on public.subscriptions from stripe_handler")
    execute(project.url, "alter role stripe_handler password 'set by hand'")
    changed = [
        resource["urn"]
        for resource in project.resources()
        if resource["urn"].endswith(("::stripe_handler-public.subscriptions", "::stripe_handler"))
    ]
    shown = project.shown(refresh=True, target=changed)
    assert "stripe_handler-public.subscriptions" in shown
    assert "UPDATE" in shown
    assert re.search(r"~ password *: \[secret\]", shown)
    project.up(refresh=True, target=changed)
    url = project.stack.outputs()["service_database_urls"].value["stripe_handler"]
    execute(url, "update public.subscriptions set status = status where false")


def test_rotated_password_changes_its_role_only(project: Project) -> None:
    path = f"{PROJECT}:servicePasswords.stripe_handler"
    word = "another-password-for-it"
    project.stack.set_config(path, automation.ConfigValue(word, secret=True), path=True)
    result = project.up()
    assert word not in result.stdout
    replaced = [
        line for line in result.stdout.splitlines() if "updat" in line and "postgresql:" in line
    ]
    assert replaced
    assert all("stripe_handler" in line for line in replaced)
    psycopg.connect(result.outputs["service_database_urls"].value["stripe_handler"]).close()


@pytest.fixture(scope="module")
def consumer(project: Project) -> automation.Stack:
    """A stack of docs/examples/consumer/ beside the platform's, of which nothing is there yet."""
    directory = project.directory / "docs" / "examples" / "consumer"
    directory.mkdir(parents=True)
    for name in ("Pulumi.yaml", "__main__.py"):
        shutil.copy(ROOT / "docs" / "examples" / "consumer" / name, directory)
    environment = automation.LocalWorkspaceOptions(env_vars=project.stack.workspace.env_vars)
    stack = automation.create_stack("test", work_dir=str(directory), opts=environment)
    image = "registry.example/stripe-handler@sha256:" + "0a" * 32
    values = {"platform": f"organization/{PROJECT}/test", "image": image}
    stack.set_all_config({k: automation.ConfigValue(value) for k, value in values.items()})
    return stack


def environment_of_the_service(manifests: Path) -> dict[str, str]:
    """What the consumer's container would find, as Kubernetes puts it together."""
    found = [yaml.safe_load(path.read_text()) for path in manifests.rglob("*.yaml")]
    secrets = {each["metadata"]["name"]: each for each in found if each["kind"] == "Secret"}
    (deployment,) = (each for each in found if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    references = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"]}
    return {
        name: b64decode(secrets[reference["name"]]["data"][reference["key"]]).decode()
        for name, reference in references.items()
    }


def test_a_consumer_gets_its_own_role_by_the_outputs(
    project: Project, consumer: automation.Stack
) -> None:
    manifests = Path(consumer.workspace.work_dir) / "manifests"
    event = (ROOT / "docs" / "examples" / "customer.subscription.created.json").read_text()
    rotated = f"{PROJECT}:servicePasswords.stripe_handler"
    for word in (None, "a-password-of-the-next-year"):
        if word:
            new = automation.ConfigValue(word, secret=True)
            project.stack.set_config(rotated, new, path=True)
            project.up()
        result = consumer.up(color="never", policy_packs=["../../../policies"])
        url = environment_of_the_service(manifests)["DATABASE_URL"]
        assert url == project.stack.outputs()["service_database_urls"].value["stripe_handler"]
        assert url not in result.stdout
        with psycopg.connect(url, autocommit=True) as connection:
            assert connection.info.user == "stripe_handler"
            body = event.replace("ACCOUNT", str(uuid4()))
            assert stripe_handler.receive(connection, body, lambda id_: pytest.fail(id_)) == 200
    assert set(changes(consumer.preview(expect_no_changes=True))) == {"same"}


def test_a_consumer_refuses_outputs_that_it_does_not_know(consumer: automation.Stack) -> None:
    program = Path(consumer.workspace.work_dir) / "__main__.py"
    text = program.read_text()
    program.write_text(text.replace('CONTRACT = "1"', 'CONTRACT = "2"'))
    with pytest.raises(
        automation.CommandError, match=r"contract_version 1\.\d+\.\d+, and this"
    ) as caught:
        consumer.preview(color="never")
    assert "Traceback" not in str(caught.value)
    program.write_text(text)


def test_no_secret_in_state_or_history(project: Project) -> None:
    words = [*PASSWORDS.values(), TOKEN, project.config["databasePassword"]]
    for path in (project.directory / "backend").rglob("*"):
        if path.is_file():
            text = path.read_text(errors="replace")
            assert not [word for word in words if word in text], path


def test_wrong_config_names_every_problem(project: Project) -> None:
    wrong = {"platform": "oracle", "baseDomain": ""}
    right = {key: project.config[key] for key in wrong}
    for values in (wrong, right):
        project.stack.set_all_config(
            {f"{PROJECT}:{k}": automation.ConfigValue(v) for k, v in values.items()}
        )
        if values is wrong:
            with pytest.raises(automation.CommandError) as caught:
                project.preview()
    assert "mindroom:platform must be 'postgres' or 'supabase', not 'oracle'" in str(caught.value)
    assert "mindroom:baseDomain is missing" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_protected_stack_refuses_destroy(project: Project) -> None:
    key = f"{PROJECT}:protect"
    project.stack.set_config(key, automation.ConfigValue("true"))
    project.up()
    with pytest.raises(automation.CommandError, match="protected"):
        project.stack.destroy(color="never")
    assert "table public.accounts" in live_catalog(project.url)
    project.stack.set_config(key, automation.ConfigValue("false"))
    project.up()


def test_destroy_on_dev_leaves_nothing(project: Project, server: Server) -> None:
    project.stack.destroy(color="never")
    with psycopg.connect(server.url()) as connection:
        names = connection.execute(
            """select datname from pg_database where datname = 'mindroom'
               union all select rolname from pg_roles where rolname = any(%s)""",
            [list(PASSWORDS)],
        ).fetchall()
    assert names == []
    assert not list((project.directory / "manifests").rglob("*.yaml"))


def test_deployed_to_a_cluster(project: Project, deploy_to: ClusterAccess) -> None:
    """Where nothing was left of the stack, it comes up again."""
    ready = ("get", "deployments", "-n", "mindroom", "-o", "jsonpath={..readyReplicas}")
    to = {"kubernetesContext": deploy_to.context, "renderDirectory": ""}
    project.stack.set_all_config(
        {f"{PROJECT}:{key}": automation.ConfigValue(value) for key, value in to.items()}
    )
    project.up()
    assert "table public.accounts" in live_catalog(project.url)
    assert deploy_to.kubectl(*ready) == "2 2"
    assert set(changes(project.preview(expect_no_changes=True, refresh=True))) == {
        "same",
        "read",
    }
    image = automation.ConfigValue("localhost/instance-provisioner:next")
    project.stack.set_config(f"{PROJECT}:provisionerImage", image)
    preview = project.preview()
    assert changes(preview).get("update") == 2 + len(SCHEDULES)  # it is the jobs' image, too
    assert re.search(r"~ kubernetes:apps/v1:Deployment: \(update\)", preview.stdout)
    assert re.search(r'~ image *: ".*:dev" => ".*:next"', preview.stdout)
    project.up()
    used = ("get", "pods", "-n", "mindroom", "-o", "jsonpath={..containers[*].image}")
    assert ":next" in deploy_to.kubectl(*used)
    deploy_to.kubectl("scale", "deployment/instance-provisioner", "-n", "mindroom", "--replicas=1")
    assert changes(project.preview(refresh=True)).get("update") == 1
    project.up(refresh=True)
    assert deploy_to.kubectl(*ready) == "2 2"
    project.stack.destroy(color="never")
    assert "mindroom" not in deploy_to.kubectl("get", "namespaces")


def test_jobs_of_pg_cron_follow_the_stack(tmp_path: Path) -> None:
    directory = tmp_path / "project"
    directory.mkdir()
    with cron_server(tmp_path, "postgres") as server:

        def scheduled() -> list[str]:
            with psycopg.connect(server.url()) as connection:
                rows = connection.execute("select jobname from cron.job order by jobname")
                return [row[0].rpartition(".")[2] for row in rows]

        url = server.url("mindroom")
        config = stack_config(url, directory / "manifests", automation="pg_cron")
        project = make_project(directory, config, url)
        outputs = project.up().outputs
        assert outputs["automation"].value == {"scheduler": "pg_cron", "jobs": SCHEDULES}
        assert scheduled() == sorted(SCHEDULES)
        assert set(changes(project.up())) == {"same"}

        execute(server.url(), "select cron.unschedule(jobid) from cron.job where jobid % 2 = 0")
        (jobs,) = (each["urn"] for each in project.resources() if each["urn"].endswith("::pg-cron"))
        shown = project.shown(refresh=True, target=[jobs])
        assert [name for name in SCHEDULES if f"+ {name}" in shown] == [
            name for name in SCHEDULES if name not in scheduled()
        ]
        project.up(refresh=True, target=[jobs])
        assert scheduled() == sorted(SCHEDULES)
        project.stack.destroy(color="never")
        assert scheduled() == []


@pytest.mark.usefixtures("contexts")
@pytest.mark.parametrize("stack", ["staging", "prod"])
def test_hosted_stack_file_needs_only_its_secrets_image_and_certificate(
    tmp_path: Path, stack: str
) -> None:
    shutil.copy(ROOT / f"Pulumi.{stack}.yaml", tmp_path / "Pulumi.test.yaml")
    committed = yaml.safe_load((ROOT / f"Pulumi.{stack}.yaml").read_text())["config"]
    values = {key.removeprefix(f"{PROJECT}:"): value for key, value in committed.items()}
    made = make_project(tmp_path, values, "")
    with pytest.raises(automation.CommandError) as caught:
        made.preview()
    found = set(re.findall(rf"{PROJECT}:(\w+) ", str(caught.value)))
    assert found == {*SECRETS, "provisionerImage", "databaseSslrootcert"}
