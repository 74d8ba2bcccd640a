"""A new table is written in three places; verification, documents and tests follow from these."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from components import ROOT
from tests.support.platforms import copy_project, sql_files

MIGRATION = """\
-- What customers are asked to pay.

create table public.invoices (
  id uuid primary key default gen_random_uuid(),
  account_id uuid not null default auth.uid() references public.accounts (id) on delete cascade,
  number bigint generated always as identity,
  status text not null default 'open',
  amount numeric(10, 2) not null,
  note text,
  lines jsonb not null default '[]',
  paid_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint invoices_number_key unique (number),
  constraint invoices_status_known check (status in ('open', 'paid', 'void')),
  constraint invoices_amount_finite check (amount >= 0 and amount <> 'NaN'),
  constraint invoices_times_readable check (
    least(paid_at, created_at, updated_at) >= '0001-01-02 00:00+00'
    and greatest(paid_at, created_at, updated_at) <= '9999-12-31 00:00+00'
  )
);

create index invoices_account_id_idx on public.invoices (account_id);

alter table public.invoices enable row level security;

comment on table public.invoices is 'Invoices of customers.';
"""

REPEATABLE = """\
-- invoices: customers read theirs and note something on them; stripe-handler writes them.

create or replace trigger invoices_set_updated_at
  before update on public.invoices
  for each row execute function private.set_updated_at();

create or replace trigger invoices_bound_lines
  before insert or update of lines on public.invoices
  for each row execute function private.bound_json('65536', 'lines');

revoke all on public.invoices from public, anon, authenticated, service_role;
grant select, update (note) on public.invoices to authenticated;
grant select, insert, update, delete on public.invoices to service_role;

drop policy if exists "users read their own invoices" on public.invoices;
create policy "users read their own invoices" on public.invoices
  for select to authenticated
  using (account_id = (select auth.uid()));

drop policy if exists "users note something on their own invoices" on public.invoices;
create policy "users note something on their own invoices" on public.invoices
  for update to authenticated
  using (account_id = (select auth.uid()))
  with check (account_id = (select auth.uid()));

drop policy if exists "services read every invoice" on public.invoices;
create policy "services read every invoice" on public.invoices
  for select to platform_service
  using (true);

drop policy if exists "services write invoices" on public.invoices;
create policy "services write invoices" on public.invoices
  for insert to platform_service
  with check (true);

drop policy if exists "service_role has full access" on public.invoices;
create policy "service_role has full access" on public.invoices
  for all to service_role
  using (true)
  with check (true);
"""

AUTHORIZATION = """\
    "public.invoices": {
        "authenticated": READ | {"UPDATE": ("note",)},
        "service_role": FULL,
        "stripe_handler": READ | {"INSERT": ("account_id", "amount", "lines")},
    },
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with the table in the three places."""
    copy_project(tmp_path)
    for name in ("docs", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    number = len(sql_files("migrations")) + 1
    (tmp_path / f"sql/migrations/{number:04d}_invoices.sql").write_text(MIGRATION)
    (tmp_path / "sql/repeatable/28_invoices.sql").write_text(REPEATABLE)
    authorization = tmp_path / "components" / "authorization.py"
    before, first, after = authorization.read_text().partition('    "private.tiers": {')
    authorization.write_text(before + AUTHORIZATION + first + after)
    return tmp_path


TESTS = (
    "tests/database/test_authorization.py",
    "tests/database/test_reference.py",
    "tests/database/test_tables.py::test_a_table_takes_no_time_that_a_client_cannot_read",
    "tests/database/test_tables.py::test_a_user_goes_with_everything_but_the_audit_log",
    "tests/database/test_verify.py::test_every_promise_holds",
)
"""Those that look at every table."""


def run(project: Path, module: str, *arguments: str) -> tuple[int, str]:
    """The exit code and what was printed."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_three_places_are_enough(project: Path, database: str) -> None:
    engine = ("migrate", "--database-url", database)
    tests = ("pytest", "-q", "-n", "0", "--postgres", "18", "-k", "not supabase")
    for command in (
        ("docs.generate",),
        (*engine, "up", "--platform"),
        (*engine, "verify"),
        (*tests, *TESTS),
    ):
        code, printed = run(project, *command)
        assert code == 0, printed
    for name in ("docs/authorization.md", "docs/reference.md", "sql/all-migrations.sql"):
        assert "public.invoices" in (project / name).read_text()


def test_what_is_not_as_the_data_says_is_named(project: Path, database: str) -> None:
    repeatable = project / "sql" / "repeatable" / "28_invoices.sql"
    text = repeatable.read_text()
    text, _, full = text.partition('drop policy if exists "services write invoices"')
    repeatable.write_text(
        text.replace("update (note)", "update (note, amount)") + full[full.index("drop policy") :]
    )
    run(project, "docs.generate")
    code, printed = run(project, "migrate", "--database-url", database, "up", "--platform")
    assert code == 0, printed
    code, printed = run(project, "migrate", "--database-url", database, "verify")
    assert code == 1
    for name, found in (
        ("The policies are", "role=platform_service, command=insert, policies=0, expected=1"),
        ("The privileges of", "column=amount, role=authenticated, privilege=UPDATE, problem=too"),
    ):
        assert re.search(f"failed check: {name} .*\n  table=invoices, {found}", printed), printed
