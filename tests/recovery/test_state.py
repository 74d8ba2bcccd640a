"""The state is lost, or its cluster was recreated: what `pulumi up` does (docs/recovery.md)."""

import shutil
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from pulumi import automation

from components.authorization import SERVICES
from embedded.cluster import Cluster
from embedded.postgres import Server
from tests.support.engines import Project, changes, execute, live_catalog, make_project
from tests.support.platforms import own_server, stack_config
from tests.support.recovery import lose_state, whole

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not shutil.which("pulumi"), reason="needs the Pulumi CLI on PATH"),
]


def test_lost_state_is_made_again_from_what_is_there(project: Project, server: Server) -> None:
    """From the database, too, unless it would have to be made anew."""
    before = live_catalog(project.url)
    lose_state(project)
    for statement in (
        "alter database mindroom rename to kept",
        "create database mindroom encoding 'LATIN1' locale 'C' template template0",
    ):
        execute(server.url(), statement)
    with pytest.raises(automation.CommandError, match=r"may not be replaced(.|\n)*LATIN1"):
        project.up()
    for statement in ("drop database mindroom", "alter database kept rename to mindroom"):
        execute(server.url(), statement)
    lose_state(project)
    execute(project.url, "alter role stripe_handler connection limit 3 password 'forgotten'")
    execute(project.url, "revoke update on public.subscriptions from stripe_handler")
    assert changes(project.up())["import"] == 1 + len(SERVICES)
    assert live_catalog(project.url) == before
    with psycopg.connect(project.url) as connection:
        found = connection.execute(
            """select rolconnlimit, has_table_privilege(oid, 'public.subscriptions', 'update')
               from pg_roles where rolname = 'stripe_handler'"""
        ).fetchone()
    assert found == (SERVICES["stripe_handler"].connection_limit, True)
    whole(project)


def test_rebuilt_cluster(
    postgres_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "project"
    directory.mkdir()
    cluster = Cluster(tmp_path / "cluster")
    ready = ("get", "deployments", "-n", "mindroom", "-o", "jsonpath={..readyReplicas}")
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    with own_server(tmp_path, postgres_bin) as server, ExitStack() as stack:
        stack.callback(cluster.destroy)
        cluster.start()
        url = server.url("mindroom")
        to = {"kubernetesContext": cluster.context, "renderDirectory": ""}
        project = make_project(directory, stack_config(url, directory, **to), url)
        project.up()
        cluster.destroy()
        cluster.start()
        with pytest.raises(automation.CommandError) as caught:
            project.up()
        assert "namespace-on-the-cluster" in str(caught.value)
        assert "'mindroom-instances' does not exist" in str(caught.value)
        project.up(refresh=True)
        assert cluster.kubectl(*ready) == "2 2"
        assert set(changes(project.preview(expect_no_changes=True, refresh=True))) == {
            "same",
            "read",
        }

        # What is on a cluster is taken over where the operator says so, and else left alone.
        lose_state(project)
        with pytest.raises(automation.CommandError) as caught:
            project.up()
        assert '"mindroom-instances" already exists' in str(caught.value)
        assert "upsertExistingObjects" in str(caught.value)
        monkeypatch.setenv("PULUMI_K8S_UPSERT_EXISTING_OBJECTS", "true")
        project.up()
        monkeypatch.delenv("PULUMI_K8S_UPSERT_EXISTING_OBJECTS")
        assert set(changes(project.preview(expect_no_changes=True, refresh=True))) == {
            "same",
            "read",
        }
        assert cluster.kubectl(*ready) == "2 2"
