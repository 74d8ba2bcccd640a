"""A backup counts when it was restored and found whole: real PostgreSQL, a real S3 server."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import psycopg
import pytest
from moto.server import ThreadedMotoServer

from components import ROOT
from embedded.errors import UserError
from ops import database_backup
from ops.database_backup import DUMP, back_up
from tests.support.platforms import Platform

BUCKET = "backups"
URL = f"s3://{BUCKET}/dev"
SECRET = "a-secret-of-the-tests"


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """The variables by which a server with a bucket is reached."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "an-id",
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    client(variables).create_bucket(Bucket=BUCKET)
    yield variables
    server.stop()


@pytest.fixture
def reachable(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """S3, by the variables of this process."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)


def client(s3: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=s3["AWS_ENDPOINT_URL"],
        region_name=s3["AWS_REGION"],
        aws_access_key_id=s3["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=s3["AWS_SECRET_ACCESS_KEY"],
    )


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ops.database_backup"],
        env=os.environ | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def proven(platform: Platform) -> list[str]:
    with psycopg.connect(platform.url) as connection:
        rows = connection.execute("select location from private.database_backups order by 1")
        return [location for (location,) in rows]


def refused(platform: Platform, url: str = URL, database_url: str = "") -> str:
    """What a backup that fails says; nothing is recorded, and no secret shown."""
    before = proven(platform)
    with pytest.raises(UserError) as caught:
        back_up(database_url or platform.url, url)
    assert proven(platform) == before
    assert SECRET not in str(caught.value)
    assert caught.value.remedy
    return str(caught.value)


def test_a_backup_is_uploaded_restored_and_recorded(platform: Platform, s3: dict[str, str]) -> None:
    with psycopg.connect(platform.url, autocommit=True) as connection:
        connection.execute("delete from private.database_backups")
    done = run(DATABASE_URL=platform.url, BACKUP_URL=URL, **s3)
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said["checks"] > 40
    assert said["row_counts"]["private.tiers"] == 4
    assert proven(platform) == [said["location"]]
    keys = [item["Key"] for item in client(s3).list_objects_v2(Bucket=BUCKET)["Contents"]]
    folder = said["location"].removeprefix(f"s3://{BUCKET}/")
    assert keys == [f"{folder}/database.dump", f"{folder}/roles.sql"]
    assert SECRET not in done.stdout


def test_variables_that_are_missing_are_named() -> None:
    done = run(DATABASE_URL="", BACKUP_URL="")
    assert done.returncode == 2
    assert done.stderr == "error: DATABASE_URL and BACKUP_URL must be set\n"


@pytest.mark.usefixtures("reachable")
class TestRefusals:
    """Each leaves nothing recorded, and says what to do."""

    @pytest.mark.parametrize(
        ("url", "problem"),
        [
            ("backups", "BACKUP_URL"),
            ("nfs://backups", "BACKUP_URL"),
            ("s3://no-such-bucket/dev", "cannot be uploaded"),
        ],
    )
    def test_of_a_store(self, platform: Platform, url: str, problem: str) -> None:
        assert problem in refused(platform, url)

    def test_of_a_store_that_is_away(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert "cannot be uploaded" in refused(platform)

    @pytest.mark.parametrize(
        ("url", "problem"),
        [
            ("postgresql://nobody:secret@127.0.0.1:9/x", "DATABASE_URL: "),
            ("postgresql://[", "it is not postgresql://USER"),
        ],
    )
    def test_of_a_database(self, platform: Platform, url: str, problem: str) -> None:
        assert problem in refused(platform, database_url=url)

    def test_of_a_backup_that_was_damaged(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        download = database_backup._download

        def damaged(store: Any, key: str, path: Path) -> None:
            download(store, key, path)
            if key.endswith(DUMP):
                path.write_bytes(path.read_bytes()[:-1000])

        monkeypatch.setattr(database_backup, "_download", damaged)
        assert "pg_restore: " in refused(platform)

    def test_of_a_backup_that_lacks_rows(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        count = database_backup._row_counts

        def counted(database: psycopg.Connection) -> dict[str, int]:
            more = database.info.dbname == platform_name and not restored
            restored.append(1)
            return count(database) | ({"private.tiers": 5} if more else {})

        platform_name, restored = "mindroom", list[int]()
        monkeypatch.setattr(database_backup, "_row_counts", counted)
        assert "the restored backup has other rows: private.tiers" in refused(platform)

    def test_of_a_database_that_has_drifted(self, platform: Platform) -> None:
        with psycopg.connect(platform.url, autocommit=True) as connection:
            connection.execute("create table public.by_hand (id int primary key)")
            try:
                assert "table public.by_hand" in refused(platform)
            finally:
                connection.execute("drop table public.by_hand")
