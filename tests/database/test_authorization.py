"""The authorization matrix of components/authorization.py, every cell of it run on a real server.

A cell is role x table x command x column x row (the user's own or another customer's), or role x
function x whose id it is given. Its statement runs for real, is rolled back, and its outcome has to
be what the matrix says; nothing here says a second time who may do what. Two customers have a row
in every table. All of it holds on a plain server and under both of Supabase's default privileges.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple
from uuid import NAMESPACE_OID, uuid5

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import ForeignKeyViolation, InsufficientPrivilege

from components.authorization import (
    API_ROLES,
    AUTHORIZATION,
    FUNCTIONS,
    GROUP,
    SERVICES,
    TABLES,
    USER_FUNCTIONS,
)
from tests.support.platforms import Platform, run, server_major, stack_config, supabase
from tests.support.samples import Column, Row, Table, insert, sample_rows, tables_of

OWN, FOREIGN = "own", "foreign"
WHICH = ("first", "second")
COMMANDS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
BY_COLUMN = ("SELECT", "INSERT", "UPDATE")
PUBLIC_TABLES = [table for table in TABLES if table.startswith("public.")]

DONE = "done"
DENIED = "no privilege"
ROW_REFUSED = "refused by row-level security"
NO_ROW = "no such row"

AUTH_HELPERS = {"auth.email", "auth.jwt", "auth.role", "auth.uid"}
"""Supabase's functions that say who is asking: everybody's."""

NOBODY = {
    "absent": None,
    "empty": "",
    "null": "null",
    "without-sub": "{}",
    "sub-null": '{"sub": null}',
    "sub-empty": '{"sub": ""}',
    "unknown-user": '{"sub": "00000000-0000-4000-8000-000000000000"}',
}
"""Claims that name no customer."""

Statement = tuple[bytes, list[str | None]]
"""A query and its values."""


class Actor(NamedTuple):
    """A role of the matrix and who takes it: the administrator, or the service that logged in."""

    role: str
    login: str

    def __str__(self) -> str:
        """Its name in a test's id."""
        return self.role if self.login in ("", self.role) else f"{self.login}-as-{self.role}"


AUTHENTICATED = Actor("authenticated", "")
ACTORS = [
    *(Actor(role, "") for role in API_ROLES),
    *(Actor(role, role) for role in SERVICES),
    *(
        Actor(role, name)
        for name, service in SERVICES.items()
        if not service.inherit
        for role in service.member_of
    ),
]


class Cell(NamedTuple):
    """One thing to try; without a column where the command knows none."""

    command: str
    column: Column | None
    whose: str

    def __str__(self) -> str:
        """As it is called in a failure."""
        return " ".join([self.command, *([self.column.name] if self.column else []), self.whose])


@dataclass(frozen=True)
class World:
    """A platform with two customers.

    Attributes:
        platform: where it is.
        connections: login -> connection; the administrator's is the empty name's.
        tables: every table that there is.
        rows: customer and which -> table -> row: the `first` ones exist, the `second` ones could be
            inserted; each of them may be deleted.
    """

    platform: Platform
    connections: Mapping[str, psycopg.Connection]
    tables: Mapping[str, Table]
    rows: Mapping[tuple[str, str], Mapping[str, Row]]


def uid(customer: str, thing: str) -> str:
    return str(uuid5(NAMESPACE_OID, f"{thing} of the {customer} customer"))


def key_hash(customer: str, which: str) -> str:
    return sha256(f"{which} key of {customer}".encode()).hexdigest()


def rows(tables: Mapping[str, Table], customer: str) -> tuple[dict[str, Row], dict[str, Row]]:
    """A customer's rows: the first exist, the second could be inserted; each may be deleted."""

    def given(which: str, user: str) -> dict[str, Row]:
        return {
            "public.accounts": {"id": user, "email": f"{which}-{customer}@customers.example"},
            "public.instances": {"subscription_id": uid(customer, "live subscription")},
            "public.audit_logs": {"account_id": uid(customer, "account")},
            "public.api_keys": {"key_hash": key_hash(customer, which)},
            "private.api_key_hashes": {"key_hash": key_hash(customer, which)},
        }

    users = given("first", uid(customer, "account")), given("second", uid(customer, "newcomer"))
    # It is no place for other names: cleanup stops at them.
    users[0]["private.retention"] = {
        "table_name": {OWN: "api_keys", FOREIGN: "audit_logs"}[customer]
    }
    first = sample_rows(tables, f"first-of-{customer}", users[0])
    return first, sample_rows(tables, f"second-of-{customer}", users[1], first)


def add_customer(world: "World", customer: str) -> list[str]:
    """Made as it would be: a user signs up; subscribed to a plan that has every feature.

    Returns the tables that took the customer's first row: triggers make some rows by themselves.
    """
    connection = world.connections[""]
    account, newcomer = (world.rows[customer, which]["public.accounts"] for which in WHICH)
    users = "insert into auth.users (id, email) values (%s, %s), (%s, null)"
    connection.execute(users, [account["id"], account["email"], newcomer["id"]])
    live = {"id": uid(customer, "live subscription"), "account_id": account["id"]}
    connection.execute(*insert("public.subscriptions", live | {"tier": "enterprise"}))
    taken = []
    for table, row in world.rows[customer, "first"].items():
        query, values = insert(table, row)
        if connection.execute(query + b" on conflict do nothing", values).rowcount:
            taken.append(table)
    return taken


def remove_customer(world: "World", customer: str, taken: Iterable[str]) -> None:
    """With what is said of it in the audit log, so that other tests see a platform as it was."""
    connection = world.connections[""]
    ids = [world.rows[customer, which]["public.accounts"]["id"] for which in WHICH]
    connection.execute("delete from auth.users where id = any(%s)", [ids])
    connection.execute("delete from public.audit_logs where account_id = any(%s)", [ids])
    for table in reversed([*taken]):
        where, values = by_key(world.tables[table], world.rows[customer, "first"][table])
        connection.execute(f"delete from {table} where {where}".encode(), values)


def by_key(shape: Table, row: Row) -> tuple[str, list[str | None]]:
    """The condition that names a row."""
    return " and ".join(f"{name} = %s" for name in shape.key), [row[name] for name in shape.key]


HOSTED = {"supabase-grants-all": True, "supabase-grants-nothing": False}
"""Supabase's two default privileges: those of older projects, those of newer ones."""


@pytest.fixture(scope="module", params=["plain", *HOSTED])
def world(
    request: pytest.FixtureRequest,
    postgres_bin: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    """The platform with two customers and a connection per login, on each kind of server."""
    with ExitStack() as stack:
        if request.param == "plain":
            platform: Platform = request.getfixturevalue("platform")
        else:
            directory, grants_all = tmp_path_factory.mktemp("supabase"), HOSTED[request.param]
            url = stack.enter_context(supabase(postgres_bin, directory, grants_all=grants_all)).url
            config = stack_config(url, directory / "manifests", platform="supabase")
            platform = Platform(url, config, run(config))
        urls = {"": platform.url} | {role: platform.service_url(role) for role in SERVICES}
        connections = {
            login: stack.enter_context(
                psycopg.connect(url, autocommit=True, prepare_threshold=None)
            )
            for login, url in urls.items()
        }
        admin = connections[""]
        admin.execute("set search_path = ''")
        tables = tables_of(admin)
        samples = {
            (customer, which): row
            for customer in (OWN, FOREIGN)
            for which, row in zip(WHICH, rows(tables, customer), strict=True)
        }
        world = World(platform, connections, tables, samples)
        with admin.transaction():
            for customer in (OWN, FOREIGN):
                stack.callback(remove_customer, world, customer, add_customer(world, customer))
        yield world


@contextmanager
def acting(connection: psycopg.Connection, actor: Actor, claims: str | None) -> Iterator[None]:
    """Act in a transaction that is rolled back, with a savepoint for the outcome of each cell."""
    with connection.transaction(force_rollback=True):
        if claims is not None:
            connection.execute("select set_config('request.jwt.claims', %s, true)", [claims])
        if actor.role != actor.login:
            connection.execute(sql.SQL("set local role {}").format(sql.Identifier(actor.role)))
        connection.execute("savepoint cell")
        yield


def claims_of(actor: Actor, customer: str = OWN) -> str:
    """Every role claims to be the customer, also those to whom that gives nothing."""
    return json.dumps({"sub": uid(customer, "account"), "role": actor.role})


def may(role: str, table: str, command: str, column: Column | None = None) -> bool:
    """Whether the matrix gives the privilege."""
    columns = AUTHORIZATION[role].tables.get(table, {}).get(command)
    return columns is not None and (not columns or (column is not None and column.name in columns))


def expected(role: str, table: str, cell: Cell) -> str:
    """The outcome that follows from the matrix."""
    if not may(role, table, cell.command, cell.column):
        return DENIED
    if cell.whose == FOREIGN and AUTHORIZATION[role].rows == "own":
        return ROW_REFUSED if cell.command == "INSERT" else NO_ROW
    return DONE


def cells(columns: list[Column]) -> Iterator[Cell]:
    for command in COMMANDS:
        for column in columns if command in BY_COLUMN else [None]:
            for whose in (OWN, FOREIGN):
                yield Cell(command, column, whose)


def statement(world: World, role: str, table: str, cell: Cell) -> Statement:
    """What tries a cell, such that only the cell's own privilege can be missing.

    A row is named by its key where the role may read the key; an inserted row has the cell's
    column beside all those that the role may give.
    """
    name = cell.column.name if cell.column else ""
    if cell.command == "INSERT":
        row = world.rows[cell.whose, "second"][table]
        given = [
            each
            for each in world.tables[table].columns
            if each == cell.column or may(role, table, "INSERT", each)
        ]
        return insert(table, {each.name: row.get(each.name) for each in given})
    if cell.command == "TRUNCATE":
        return f"truncate {table}".encode(), []
    readable = cell.column is None or may(role, table, "SELECT", cell.column)
    same = name if readable and cell.column and not cell.column.generated else "default"
    text = {
        "SELECT": f"select {name} from {table}",
        "UPDATE": f"update {table} set {name} = {same}",
        "DELETE": f"delete from {table}",
    }[cell.command]
    shape = world.tables[table]
    if not all(may(role, table, "SELECT", each) for each in shape.columns if each.key):
        return text.encode(), []
    where, values = by_key(shape, world.rows[cell.whose, "first"][table])
    return f"{text} where {where}".encode(), values


TRY_EACH = """
    do $$
    declare
      tried text;
      touched bigint;
      came text[] := '{}';
    begin
      for tried in select json_array_elements_text(current_setting('cells.tried')::json) loop
        begin
          execute tried;
          get diagnostics touched = row_count;
          raise exception using errcode = 'UNDO0';
        exception when others then
          came := came || case sqlstate when 'UNDO0' then touched::text
                                        else format('%s %s', sqlstate, sqlerrm) end;
        end;
      end loop;
      perform set_config('cells.came', to_json(came)::text, true);
    end
    $$"""
"""Runs statements and undoes each: one message to the server, and not two for each."""


def outcomes(connection: psycopg.Connection, statements: Sequence[Statement]) -> list[str]:
    cursor = psycopg.ClientCursor(connection)
    tried = json.dumps([cursor.mogrify(*each) for each in statements])
    cursor.execute("select set_config('cells.tried', %s, true)", [tried])
    cursor.execute(TRY_EACH)
    [[came]] = cursor.execute("select current_setting('cells.came')").fetchall()
    return [outcome(each) for each in json.loads(came)]


def outcome(came: str) -> str:
    """Of a statement that touched so many rows, or failed with this state and message."""
    if re.match("42501 permission denied for (table|schema) ", came):
        return DENIED
    if came.startswith("42501 ") and "row-level security" in came:
        return ROW_REFUSED
    return (DONE if int(came) else NO_ROW) if came.isdecimal() else came


def deviations(
    world: World,
    connection: psycopg.Connection,
    role: str,
    tables: Iterable[str],
    *,
    nobody: bool = False,
) -> list[str]:
    """The cells of a role that are not as the matrix says; to `nobody` all is foreign."""
    found = []
    for table in tables:
        tried = list(cells(world.tables[table].columns))
        statements = [statement(world, role, table, cell) for cell in tried]
        for cell, came in zip(tried, outcomes(connection, statements), strict=True):
            wanted = expected(role, table, cell._replace(whose=FOREIGN) if nobody else cell)
            if came != wanted:
                found.append(f"{table} {cell}: {came}, not {wanted}")
    return found


def test_every_table_is_in_the_matrix(world: World) -> None:
    assert set(world.tables) == set(TABLES)
    matrix = {role: set(access.tables) for role, access in AUTHORIZATION.items()}
    assert {role for roles in TABLES.values() for role in roles} <= set(matrix)
    for role, tables in matrix.items():
        assert tables == {table for table, roles in TABLES.items() if role in roles}


@pytest.mark.parametrize("actor", ACTORS, ids=str)
def test_every_cell_is_as_the_matrix_says(world: World, actor: Actor) -> None:
    connection = world.connections[actor.login]
    with acting(connection, actor, claims_of(actor)):
        found = deviations(world, connection, actor.role, TABLES)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("claims", NOBODY.values(), ids=NOBODY)
def test_who_names_no_customer_reaches_no_row(world: World, claims: str | None) -> None:
    with psycopg.connect(world.platform.url, autocommit=True) as connection:  # no claims before
        connection.execute("set search_path = ''")
        with acting(connection, AUTHENTICATED, claims):
            found = deviations(world, connection, "authenticated", PUBLIC_TABLES, nobody=True)
    assert not found, "\n".join(found)


def owner(table: str) -> str:
    return "id" if table == "public.accounts" else "account_id"


def count_of(connection: psycopg.Connection, table: str, customer: str) -> int:
    """How many rows a customer has, by the administrator's word."""
    query = f"select 1 from {table} where {owner(table)} = %s"
    return connection.execute(query.encode(), [uid(customer, "account")]).rowcount


@pytest.mark.parametrize("customer", [OWN, FOREIGN])
@pytest.mark.parametrize("table", PUBLIC_TABLES)
def test_select_star_gives_a_user_all_own_rows_and_no_hash(
    world: World, table: str, customer: str
) -> None:
    admin = world.connections[""]
    with acting(admin, AUTHENTICATED, claims_of(AUTHENTICATED, customer)):
        cursor = admin.execute(f"select * from {table}".encode())
        assert cursor.description is not None
        names = [column.name for column in cursor.description]
        found = [dict(zip(names, row, strict=True)) for row in cursor]
    assert names == [column.name for column in world.tables[table].columns]
    assert {str(row[owner(table)]) for row in found} == {uid(customer, "account")}
    assert len(found) == count_of(admin, table, customer)
    hashes = {key_hash(each, "first") for each in (OWN, FOREIGN)}
    assert not [row for row in found if hashes & {str(value) for value in row.values()}]


def user_tables(*wanted: str) -> list[str]:
    """Where the matrix gives users one of these privileges, or a privilege on one such column."""
    return [
        table
        for table, privileges in AUTHORIZATION["authenticated"].tables.items()
        if set(wanted) & {*privileges, *chain(*privileges.values())}
    ]


@pytest.mark.parametrize("table", user_tables("UPDATE", "DELETE"))
def test_a_write_that_names_no_row_touches_a_users_own_only(world: World, table: str) -> None:
    """To name a row takes the policy for reading; this asks those for writing by themselves."""
    admin, row = world.connections[""], world.rows[OWN, "first"][table]
    writes: list[Statement] = [
        (f"update {table} set {column.name} = %s".encode(), [row[column.name]])
        for column in world.tables[table].columns
        if may("authenticated", table, "UPDATE", column)
    ]
    if may("authenticated", table, "DELETE"):
        writes.append((f"delete from {table}".encode(), []))
    for write in writes:
        with acting(admin, AUTHENTICATED, claims_of(AUTHENTICATED)):
            touched = admin.execute(*write).rowcount
        assert touched == count_of(admin, table, OWN) > 0


@pytest.mark.parametrize("table", user_tables("instance_id"))
def test_a_users_row_cannot_name_a_foreign_instance(world: World, table: str) -> None:
    admin = world.connections[""]
    given = AUTHORIZATION["authenticated"].tables[table]["INSERT"]
    foreign = world.rows[FOREIGN, "first"]["public.instances"]["id"]
    row = {name: world.rows[OWN, "second"][table][name] for name in given}
    with acting(admin, AUTHENTICATED, claims_of(AUTHENTICATED)):
        assert admin.execute(*insert(table, row)).rowcount == 1
        with pytest.raises(ForeignKeyViolation):
            admin.execute(*insert(table, row | {"instance_id": foreign}))


def live_privileges(connection: psycopg.Connection) -> set[tuple[str, str, str, str]]:
    """(role, table, column or nothing, privilege), of all but the owners and who asks."""
    found = connection.execute(
        """with relation as (
             select c.oid, c.oid::regclass::text as name, c.relowner, c.relacl from pg_class c
             where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
               and c.relnamespace::regnamespace::text not in ('pg_catalog', 'information_schema')
           ), granted as (
             select name, '' as attname, relowner, acl.* from relation, aclexplode(relacl) as acl
             union all
             select name, attname, relowner, acl.* from relation
             join pg_attribute on attrelid = oid, aclexplode(attacl) as acl
           )
           select case grantee when 0 then 'PUBLIC' else grantee::regrole::text end, name, attname,
                  privilege_type || case when is_grantable then ' WITH GRANT OPTION' else '' end
           from granted where grantee not in (relowner, current_user::regrole)"""
    )
    return {(role, table, column, privilege) for role, table, column, privilege in found}


def test_privileges_of_the_live_catalog_are_exactly_the_matrix(world: World) -> None:
    matrix = {
        (role, table, column, privilege)
        for role, access in AUTHORIZATION.items()
        for table, privileges in access.tables.items()
        for privilege, columns in privileges.items()
        for column in columns or [""]
    }
    live = live_privileges(world.connections[""])
    assert {"too much": live - matrix, "missing": matrix - live} == {
        "too much": set(),
        "missing": set(),
    }


@pytest.mark.parametrize("role", [*AUTHORIZATION, GROUP, "public"])
def test_nobody_may_truncate_a_table_refer_to_it_or_put_a_trigger_on_it(
    world: World, role: str
) -> None:
    admin = world.connections[""]
    maintain = ["MAINTAIN"] if server_major(admin) >= 17 else []
    found = admin.execute(
        """select t, privilege from unnest(%s::text[]) as t, unnest(%s::text[]) as privilege
           where has_table_privilege(%s, t, privilege)
              or privilege = 'REFERENCES' and has_any_column_privilege(%s, t, privilege)""",
        [list(TABLES), ["TRUNCATE", "REFERENCES", "TRIGGER", *maintain], role, role],
    )
    assert found.fetchall() == []


@pytest.mark.parametrize("role", [*AUTHORIZATION, GROUP])
def test_a_role_creates_nothing_and_enters_private_only_for_its_tables(
    world: World, role: str
) -> None:
    def schemas(privilege: str) -> set[str]:
        found = world.connections[""].execute(
            "select nspname from pg_namespace where has_schema_privilege(%s, oid, %s)",
            [role, privilege],
        )
        return {row[0] for row in found}

    tables = AUTHORIZATION[role].tables if role in AUTHORIZATION else {}
    assert schemas("CREATE") == set()
    assert ("private" in schemas("USAGE")) == any(table.startswith("private.") for table in tables)
    assert "public" in schemas("USAGE")
    assert "migrate" not in schemas("USAGE")


@pytest.fixture
def running(world: World) -> Iterator[None]:
    """A running instance of each customer; not for longer, as its account cannot be deleted."""
    admin = world.connections[""]
    for customer in (OWN, FOREIGN):
        name = f"running-of-{customer}"
        instance = {
            "id": uid(customer, "running instance"),
            "account_id": uid(customer, "account"),
            "subscription_id": uid(customer, "live subscription"),
            "app_name": name,
            "subdomain": name,
            "status": "running",
        }
        admin.execute(*insert("public.instances", instance))
    yield
    for status in ("deprovisioning", "deprovisioned"):
        admin.execute(
            "update public.instances set status = %s where app_name like 'running-of-%%'", [status]
        )
    admin.execute("delete from public.instances where app_name like 'running-of-%'")


def executable(connection: psycopg.Connection, role: str) -> set[str]:
    """The functions outside of the system's schemas, by name."""
    found = connection.execute(
        """select pronamespace::regnamespace || '.' || proname from pg_proc
           where pronamespace::regnamespace::text not in ('pg_catalog', 'information_schema')
             and has_function_privilege(%s, oid, 'EXECUTE')""",
        [role],
    )
    return {row[0] for row in found}


@pytest.mark.parametrize("role", [*AUTHORIZATION, GROUP, "public"])
def test_executable_functions_are_exactly_the_matrix_and_those_that_say_who_asks(
    world: World, role: str
) -> None:
    functions = AUTHORIZATION[role].functions if role in AUTHORIZATION else ()
    matrix = {f"public.{name}" for name in functions}
    assert executable(world.connections[""], role) == AUTH_HELPERS | matrix


def test_every_function_of_public_is_in_the_matrix_once(world: World) -> None:
    found = world.connections[""].execute(
        "select proname from pg_proc where pronamespace = 'public'::regnamespace order by 1"
    )
    assert [row[0] for row in found] == sorted(FUNCTIONS)


ARGUMENTS = {
    "user_id": "account",
    "account_id": "account",
    "instance_id": "running instance",
    "subscription_id": "live subscription",
}
"""Parameter -> the thing of a customer that it names."""

OTHERS = {
    "permission": "api_access",
    "start_date": "2026-01-01",
    "end_date": "2026-12-31",
    "status": "critical",
    "events": '[{"id": "a", "type": "sent"}]',
    "token_hash": "0a" * 32,
    "key_hash": "0a" * 32,
    "event": '{"id": "evt_ping", "type": "ping", "created": 0, "data": {"object": {}}}',
    "object": '{"id": "cus_1", "object": "customer", "created": 1}',
    "observed_at": "2026-01-01 00:00+00",
}
"""Parameter -> a value that makes sense; the rest have defaults."""


def call(connection: psycopg.Connection, function: str, customer: str) -> Statement:
    """A call by names, as PostgREST makes it, about a customer."""
    [[names]] = connection.execute(
        """select proargnames[1:pronargs - pronargdefaults] from pg_proc
           where oid = %s::regproc""",
        [f"public.{function}"],
    )
    values = {
        name: uid(customer, ARGUMENTS[name]) if name in ARGUMENTS else OTHERS[name]
        for name in names or []
    }
    given = ", ".join(f"{name} => %s" for name in values)
    return f"select * from public.{function}({given})".encode(), [*values.values()]


def answer(connection: psycopg.Connection, query: bytes, values: list[str | None]) -> str:
    """DENIED, NO_ROW for nothing or `false`, else DONE."""
    try:
        found = connection.execute(query, values).fetchall()
    except psycopg.Error as error:
        message = error.diag.message_primary or ""
        if message.startswith("permission denied for function "):
            return DENIED
        return f"{error.sqlstate} {message}"
    finally:
        connection.execute("rollback to savepoint cell")
    return NO_ROW if all(row[0] is False for row in found) else DONE


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("actor", ACTORS, ids=str)
def test_every_call_is_as_the_matrix_says(world: World, actor: Actor) -> None:
    connection, access = world.connections[actor.login], AUTHORIZATION[actor.role]
    wanted, came = {}, {}
    with acting(connection, actor, claims_of(actor)):
        for function, whose in product(FUNCTIONS, (OWN, FOREIGN)):
            outcome = DONE if function in access.functions else DENIED
            if outcome == DONE and access.rows == "own" and whose == FOREIGN:
                outcome = NO_ROW
            if function == "auto_pause_inactive_instances" and outcome == DONE:
                outcome = NO_ROW  # nobody is on a plan that pauses
            if function == "verify_api_key" and outcome == DONE:
                outcome = NO_ROW  # no key has this hash
            if function == "start_instance" and outcome == DONE:
                outcome = NO_ROW  # it runs
            elif function == "start_instance" and outcome == NO_ROW:
                outcome = f"P0002 no instance {uid(whose, 'running instance')}"
            wanted[function, whose] = outcome
            came[function, whose] = answer(
                connection, *call(world.connections[""], function, whose)
            )
    assert came == wanted


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("claims", NOBODY.values(), ids=NOBODY)
def test_who_names_no_customer_is_answered_nothing(world: World, claims: str | None) -> None:
    with psycopg.connect(world.platform.url, autocommit=True) as connection:  # no claims before
        connection.execute("set search_path = ''")
        with acting(connection, AUTHENTICATED, claims):
            answers = {
                function: answer(connection, *call(world.connections[""], function, OWN))
                for function in USER_FUNCTIONS
            }
    assert answers == dict.fromkeys(USER_FUNCTIONS, NO_ROW)


@pytest.mark.parametrize("actor", ACTORS, ids=str)
def test_nobody_calls_a_private_function(world: World, actor: Actor) -> None:
    functions = world.connections[""].execute(
        """select p.proname, coalesce((select string_agg('null::' || t::regtype, ', ' order by n)
                  from unnest(p.proargtypes) with ordinality as a (t, n)), '')
           from pg_proc p where p.pronamespace = 'private'::regnamespace"""
    )
    connection = world.connections[actor.login]
    with acting(connection, actor, claims_of(actor)):
        for name, arguments in functions.fetchall():
            with pytest.raises(InsufficientPrivilege), connection.transaction():
                connection.execute(f"select private.{name}({arguments})".encode())


@pytest.mark.parametrize("role", [*AUTHORIZATION, GROUP, "public"])
def test_what_is_made_later_is_granted_to_nobody(world: World, role: str) -> None:
    admin = world.connections[""]
    with admin.transaction(force_rollback=True):
        for schema in ("public", "private"):
            admin.execute(f"create table {schema}.later (id bigserial)".encode())
            admin.execute(f"create function {schema}.later() returns int return 1".encode())
            found = admin.execute(
                """select has_table_privilege(%(role)s, %(table)s, privilege),
                          has_function_privilege(%(role)s, %(table)s || '()', 'EXECUTE'),
                          has_sequence_privilege(%(role)s, %(table)s || '_id_seq', 'USAGE')
                   from unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[])
                     as privilege""",
                {"role": role, "table": f"{schema}.later"},
            )
            assert not any(chain(*found))


@pytest.mark.parametrize("role", SERVICES)
def test_a_service_takes_no_role_but_those_it_is_a_member_of(world: World, role: str) -> None:
    connection = world.connections[role]
    everyone = [row[0] for row in connection.execute("select rolname from pg_roles")]
    assert {"service_role", "authenticated", *SERVICES} < set(everyone)

    def taken(how: str) -> set[str]:
        found = set()
        for other in everyone:
            with suppress(InsufficientPrivilege), connection.transaction(force_rollback=True):
                connection.execute(sql.SQL(how).format(sql.Identifier(other)))
                found.add(other)
        return found

    assert taken("set local role {}") == {role, *SERVICES[role].member_of}
    assert taken("set local session authorization {}") == {role}


@pytest.mark.parametrize("role", [*API_ROLES, GROUP])
def test_a_role_that_is_taken_leads_to_no_other(world: World, role: str) -> None:
    found = world.connections[""].execute(
        "select roleid::regrole::text from pg_auth_members where member = %s::regrole", [role]
    )
    assert found.fetchall() == []
