"""A server with its settings as they come (shared_buffers apart), and databases with a history."""

import os
from pathlib import Path

import psycopg

from bench.migrations import ROOT, STATE
from embedded.postgres import Server, embedded_bin
from migrate.__main__ import main as migrate

HISTORIES = {"hundred_thousand": (1_000, 100), "year": (1_000, 365), "ten_million": (27_400, 365)}
"""Database -> accounts, each with one instance, and days of usage of each."""

PREPARE = """
insert into auth.users (id, email)
select md5('account ' || n)::uuid, n || '@bench.example' from generate_series(1, {accounts}) n;

update accounts set stripe_customer_id = 'cus_' || id;

insert into subscriptions (id, account_id, tier, stripe_subscription_id)
select id, id, 'enterprise', 'sub_' || id from accounts;

insert into instances (id, account_id, subscription_id, app_name, subdomain, status, last_active_at)
select id, id, id, 'i' || substr(id::text, 1, 18), 'i' || substr(id::text, 1, 18), 'running', now()
  from accounts;

-- The past, without the triggers and foreign keys, which would take an hour.
set session_replication_role = replica;
insert into usage_metrics (
  account_id, instance_id, usage_date, messages_sent, messages_received,
  agent_counts, tool_counts, platforms_active
)
select id, id, (now() at time zone 'utc')::date - day, 60, 40,
       '{{"ada": 50, "bob": 50}}', '{{"search": 70, "shell": 30}}', '{{matrix}}'
  from generate_series({days} - 1, 1, -1) day cross join accounts;
reset session_replication_role;
select count(track_usage(id, 'ada', 'search', 'matrix')) from instances;

-- What the statements to compare with write: of the same width, with a primary key and no more.
create table bare_usage as
select * from usage_metrics where usage_date = (now() at time zone 'utc')::date;
alter table bare_usage
  alter messages_sent type integer, alter messages_received type integer,
  alter error_count type integer, alter response_count type integer,
  alter response_time_ms type bigint, alter storage_used_gb type numeric(12, 3),
  alter usage_date set default (now() at time zone 'utc')::date,
  add primary key (instance_id, usage_date), set (fillfactor = 70);
create table bare_subscriptions (like subscriptions including defaults);
alter table bare_subscriptions add primary key (id), set (fillfactor = 70);
insert into bare_subscriptions select * from subscriptions;
"""


def server(major: int) -> Server:
    """A server of its own, started; it keeps its databases for the next time."""
    binaries = embedded_bin() if major == 18 else Path(f"/usr/lib/postgresql/{major}/bin")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4 >> 20
    settings = {"shared_buffers": f"{memory}MB", "max_wal_size": "8GB"}
    found = Server(STATE / f"database-{major}", binaries, settings=settings)
    found.start()
    return found


def connect(server: Server, database: str = "postgres") -> psycopg.Connection:
    """The superuser's session, in autocommit."""
    return psycopg.connect(server.url(database), autocommit=True)


def prepare(server: Server, database: str) -> None:
    """Make a database with its history, unless it is there; begin the day in it."""
    accounts, days = HISTORIES[database]
    with connect(server) as connection:
        query = "select 1 from pg_database where datname = %s"
        known = connection.execute(query, [database]).fetchone()
        if not known:
            connection.execute("drop database if exists making with (force)")
            connection.execute("create database making")
    if not known:
        with connect(server, "making") as connection:
            for path in sorted((ROOT / "sql" / "platform").glob("*.sql")):
                connection.execute(path.read_bytes())
        if migrate(["--database-url", server.url("making"), "up"]):
            raise SystemExit("the migrations could not be applied")
        with connect(server, "making") as connection:
            connection.execute(PREPARE.format(accounts=accounts, days=days).encode())
            connection.execute("vacuum analyze")
        with connect(server) as connection:
            connection.execute(f"alter database making rename to {database}".encode())
    with connect(server, database) as connection:
        connection.execute(
            "select count(track_usage(id, 'ada', 'search', 'matrix')) from instances"
        )
        connection.execute("checkpoint")
