"""The whole program, run in-process against real servers."""

import base64
import stat
import subprocess
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]
import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict
from pulumi.runtime.mocks import MockResourceArgs

from components import ROOT
from components.authorization import API_ROLES, SERVICES
from components.automation import SCHEDULES
from components.schema import fingerprint
from dev.in_process import Executor, InProcessError
from embedded.cluster import ClusterAccess
from migrate import catalog, verify
from migrate.connection import connect
from tests.support.migrating import query
from tests.support.outputs import breaches
from tests.support.platforms import PASSWORDS, TOKEN, Platform, run, sql_files, stack_config


def catalog_of(url: str) -> dict[str, str]:
    with connect(url) as connection:
        return catalog.read(connection)


def psql(bin_directory: Path, url: str, *files: Path) -> None:
    arguments = [f"--file={file}" for file in files]
    subprocess.run(
        [
            bin_directory / "psql",
            "--no-psqlrc",
            "--quiet",
            "--set=ON_ERROR_STOP=1",
            *arguments,
            url,
        ],
        check=True,
        capture_output=True,
        cwd=ROOT,
    )


def test_outputs_are_the_contract(platform: Platform) -> None:
    outputs = platform.result.outputs
    migrations = [path.name for path in sql_files("migrations")]
    to = conninfo_to_dict(platform.url)
    assert breaches(outputs) == []
    assert outputs["schema_version"] == migrations[-1].removesuffix(".sql")
    assert outputs["applied_migrations"] == migrations
    assert outputs["schema_fingerprint"] == fingerprint(catalog_of(platform.url))
    assert outputs["database"] == {
        "host": to["host"],
        "port": int(str(to["port"])),
        "name": to["dbname"],
        "sslmode": "disable",
        "platform": "postgres",
    }
    assert outputs["api_roles"] == list(API_ROLES)
    assert set(outputs["service_database_urls"]) == set(SERVICES)
    assert outputs["instance_provisioner"]["service_account"] == "instance-provisioner"
    assert outputs["automation"] == {"scheduler": "kubernetes", "jobs": SCHEDULES}
    assert platform.result.secrets == {"service_database_urls"}


def test_second_run_changes_nothing(platform: Platform) -> None:
    again = run(platform.config)
    assert again.changed == []
    assert again.unchanged == len(platform.result.changed) + platform.result.unchanged
    assert again.outputs == platform.result.outputs


@pytest.mark.parametrize("role", SERVICES)
def test_service_logs_in_with_its_limits_and_no_more(platform: Platform, role: str) -> None:
    service = SERVICES[role]
    with psycopg.connect(platform.service_url(role)) as connection:
        row = connection.execute(
            """select rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolconnlimit, rolinherit,
                      current_setting('statement_timeout')::interval,
                      current_setting('lock_timeout')::interval
               from pg_roles where rolname = current_user"""
        ).fetchone()
    assert row is not None
    assert row[:6] == (False, False, False, False, service.connection_limit, service.inherit)
    assert row[6].total_seconds() * 1000 == service.statement_timeout
    assert row[7].total_seconds() * 1000 == service.lock_timeout


def test_rotated_password_is_the_only_change(platform: Platform) -> None:
    changed = PASSWORDS | {"stripe_handler": "another-password-for-it"}
    result = run(platform.config | {"servicePasswords": changed})
    try:
        assert result.changed == ["stripe_handler"]
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(platform.service_url("stripe_handler"))
        psycopg.connect(result.outputs["service_database_urls"]["stripe_handler"]).close()
    finally:
        run(platform.config)


def test_privilege_changed_behind_its_back_is_repaired(platform: Platform) -> None:
    with psycopg.connect(platform.url, autocommit=True) as connection:
        connection.execute("revoke update on subscriptions from stripe_handler")
        connection.execute("grant delete on subscriptions to stripe_handler")
    changed = ["given-by-hand", "stripe_handler-public.subscriptions"]
    assert run(platform.config).changed == changed
    assert run(platform.config).changed == []
    with psycopg.connect(platform.service_url("stripe_handler")) as connection:
        connection.execute("select from subscriptions for update")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("delete from subscriptions")


def test_bundle_by_psql_gives_the_same_catalog_and_the_program_adopts_it(
    platform: Platform, database: str, postgres_bin: Path, tmp_path: Path
) -> None:
    psql(postgres_bin, database, *sql_files("platform"), ROOT / "sql" / "all-migrations.sql")
    assert catalog_of(database) == catalog_of(platform.url)
    result = run(stack_config(database, tmp_path))
    assert not {"database", "migrations", "repeatable", "verification"} & set(result.changed)
    assert catalog_of(database) == catalog_of(platform.url)
    with psycopg.connect(database) as connection:
        count = connection.execute(
            "select count(*) from migrate.ledger where folder <> 'platform'"
        ).fetchone()
    assert count == (len(sql_files("migrations")) + len(sql_files("repeatable")),)


def test_a_restored_database_is_no_drift_and_is_taken_over_without_its_ledger(
    platform: Platform, database: str, postgres_bin: Path, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    dump = [f"{postgres_bin}/pg_dump", "--format=custom", f"--file={backup}", platform.url]
    restore = [f"{postgres_bin}/pg_restore", "--clean", "--if-exists", f"--dbname={database}"]
    for command in (dump, [*restore, str(backup)]):
        subprocess.run(command, check=True, capture_output=True)
    with connect(database) as connection:
        assert verify.drift(connection) == []
        name = conninfo_to_dict(database)["dbname"]  # a backup has no privileges on the database
        connection.execute(f"revoke temporary on database {name} from public")
        connection.execute("drop schema migrate cascade")
        # A backup has the privileges on the database only for one of the same name.
        connection.execute(
            f"revoke temporary on database {connection.info.dbname} from public".encode()
        )
    for setting in ("timezone = 'Asia/Tokyo'", "datestyle = 'SQL, DMY'", "search_path = private"):
        query(database, f"alter database {name} set {setting}")
    result = run(stack_config(database, tmp_path / "manifests"))
    assert result.outputs["schema_fingerprint"] == platform.result.outputs["schema_fingerprint"]
    assert catalog.portable(catalog_of(database)) == catalog_of(platform.url)


def test_manifests_are_valid_and_private(platform: Platform) -> None:
    paths = sorted(Path(platform.config["renderDirectory"]).rglob("*.yaml"))
    manifests = [yaml.safe_load(path.read_text()) for path in paths]
    kinds = sorted(manifest["kind"] for manifest in manifests)
    assert kinds == sorted(
        [
            *["ConfigMap"] * 2,
            *["CronJob"] * len(SCHEDULES),
            *["Deployment"] * 2,
            *["Namespace"] * 2,
            *["NetworkPolicy"] * 3,
            *["PodDisruptionBudget"] * 2,
            "Role",
            "RoleBinding",
            *["Secret"] * 2,
            *["Service"] * 2,
            "ServiceAccount",
        ]
    )
    for path, manifest in zip(paths, manifests, strict=True):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
        text = path.read_text()
        assert ("postgresql://" in text) == (manifest["kind"] == "Secret")
        assert (TOKEN in text) == (path.name == "v1-secret-mindroom-instance-provisioner.yaml")


@pytest.mark.postgres("18")
def test_deployed_to_a_cluster(deploy_to: ClusterAccess, database: str, tmp_path: Path) -> None:
    to = {"kubernetesContext": deploy_to.context, "renderDirectory": ""}
    config = stack_config(database, tmp_path, **to)
    assert {"mindroom", "mindroom-instances", "instance-provisioner"} <= set(run(config).changed)
    deployment = ("deployment/instance-provisioner", "-n", "mindroom")
    ready = ("get", *deployment, "-o", "jsonpath={.status.readyReplicas}")
    assert deploy_to.kubectl(*ready) == "2"
    content = "jsonpath={.data.API_TOKEN}"
    secret = ("get", "secret", "instance-provisioner", "-n", "mindroom", "-o", content)
    assert base64.b64decode(deploy_to.kubectl(*secret)).decode() == TOKEN
    assert run(config).changed == []
    deploy_to.kubectl("scale", *deployment, "--replicas=1")
    assert run(config).changed == ["instance-provisioner"]
    assert deploy_to.kubectl(*ready) == "2"
    assert not list(tmp_path.rglob("*.yaml"))


@pytest.mark.postgres("18")
@pytest.mark.usefixtures("contexts")
def test_a_cluster_that_does_not_answer(database: str, tmp_path: Path) -> None:
    config = stack_config(database, tmp_path, kubernetesContext="production", renderDirectory="")
    with pytest.raises(InProcessError, match=r"(?s)kubectl get .*127.0.0.1:1") as caught:
        run(config)
    assert TOKEN not in str(caught.value)


def test_a_resource_that_is_not_known_is_refused() -> None:
    declared = MockResourceArgs("aws:s3/bucket:Bucket", "assets", {}, custom=True)
    with pytest.raises(InProcessError, match="assets: resources of type aws:s3/bucket:Bucket"):
        Executor({}).new_resource(declared)


def test_wrong_password_is_refused_and_not_shown(platform: Platform) -> None:
    with pytest.raises(InProcessError, match="password authentication failed") as caught:
        run(platform.config | {"databasePassword": "not-it-at-all"})
    assert "not-it-at-all" not in str(caught.value)
