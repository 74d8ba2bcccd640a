"""The linter finds what its document says that it finds, and what squawk is not asked."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import psycopg
import pytest

from components import ROOT
from migrate.lint import RULES, lint
from tests.support.linting import HURTS, found, rules_of, written

# --- the document ----------------------------------------------------------------------------

SHOP = """
create table customers (id bigint primary key, name text);
create type priority as enum ('low', 'high');
create table orders (
  id bigint primary key,
  customer_id bigint,
  number integer,
  total numeric(10, 2),
  status text,
  note text,
  created_at timestamp not null default now()
);
create index orders_created_at_idx on orders (created_at);
create table tickets (id bigint primary key, priority priority not null);
create table plans (id bigint primary key, seats integer);
create domain sku as text;
create table items (id bigint primary key, sku sku);
create view open_orders with (security_invoker) as select id from orders where status = 'new';
create materialized view order_totals as select customer_id, sum(total) from orders group by 1;
create table visits (id bigint, day date not null) partition by range (day);
create table visits_2026 partition of visits for values from ('2026-01-01') to ('2027-01-01');
create table visits_2027 (id bigint, day date not null);
"""
"""What the examples of the document work on."""


def sections() -> dict[str, list[str]]:
    """Rule -> the SQL in its section."""
    _, *parts = re.split(r"^## (.+)\n", (ROOT / "docs" / "lint.md").read_text(), flags=re.M)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {rule: re.findall(r"```sql\n(.*?)```", text, re.S) for rule, text in pairs}


def test_every_rule_has_its_section_and_no_section_is_left() -> None:
    assert list(sections()) == list(RULES)
    links = re.findall(r"\]\(#(.+?)\)", (ROOT / "docs" / "lint.md").read_text())
    assert set(links) <= set(RULES)


EXAMPLES = [rule for rule in RULES if HURTS[rule]]


@pytest.mark.parametrize("rule", EXAMPLES)
def test_the_document_shows_what_is_found_and_what_is_not(tmp_path: Path, rule: str) -> None:
    shop = written(tmp_path / "shop", SHOP)
    hurts, *safe = sections()[rule]
    assert rule in rules_of(found(tmp_path, hurts, shop))
    instead = written(tmp_path / "safe", *safe) if safe else []
    assert [finding for finding in lint(instead, shop) if not finding.reason] == []


@pytest.mark.parametrize("rule", EXAMPLES)
def test_the_safe_way_of_the_document_runs(database: str, tmp_path: Path, rule: str) -> None:
    _, *safe = sections()[rule]
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(SHOP.encode())
        for file in written(tmp_path / "safe", *safe) if safe else []:
            if file.script.transactional:
                connection.execute(file.content)
            else:
                for statement in file.script.statements():
                    connection.execute(statement.text.encode())


# --- beside squawk ---------------------------------------------------------------------------

SQUAWK = str(Path(sys.executable).parent / "squawk")


def squawk(folder: Path, *arguments: str) -> list[tuple[str, str]]:
    """What it finds in the files of a folder: name of the file, and rule."""
    command = [SQUAWK, *arguments, "--reporter", "gcc", *map(str, sorted(folder.glob("*.sql")))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode in (0, 1), result.stderr
    return re.findall(r"^.*?([^/]+\.sql):\d+:\d+: \w+: (\S+)", result.stdout, re.MULTILINE)


def test_squawk_agrees_with_what_the_documents_recommend(tmp_path: Path) -> None:
    recipes = (ROOT / "docs" / "migrations.md").read_text()
    blocks = re.findall(r"```sql\n(.*?)```", recipes, re.S)
    texts = [text for block in blocks for text in re.split(r"^-- \d{4}.*\n", block, flags=re.M)]
    safe = [text for section in sections().values() for text in section[1:]]
    written(tmp_path, *filter(None, texts), *safe)
    assert squawk(tmp_path, "--config", ".squawk.toml") == []


def test_what_squawk_is_not_asked_is_found_here(tmp_path: Path) -> None:
    config = tomllib.loads((ROOT / ".squawk.toml").read_text())
    of_the_engine = {"require-lock-timeout", "require-statement-timeout", "prefer-robust-stmts"}
    written(tmp_path, *(text for texts in HURTS.values() for text in texts))
    options = ["--pg-version", config["pg_version"], "--assume-in-transaction"]
    met = {rule for _, rule in squawk(tmp_path, "--config", "/dev/null", *options)}
    assert set(config["excluded_rules"]) - of_the_engine <= met
