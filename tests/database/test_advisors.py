"""Supabase's published advisor rules, written from their descriptions, find nothing here.

Each rule is a query for what breaks it, in every schema of ours and not only in the API's. Each is
shown to find a violation that is made on purpose and rolled back.
"""

import pytest

from tests.support.customers import Db

OURS = "('public'::regnamespace, 'private'::regnamespace)"

POLICIES = f"""
    select polrelid, polname, polroles, polpermissive,
           pg_get_expr(expression, polrelid) as condition,
           case polcmd when '*' then '{{r,a,w,d}}' else array[polcmd] end as commands
      from pg_policy join pg_class on pg_class.oid = polrelid
     cross join lateral (values (polqual), (polwithcheck)) as clause (expression)
     where relnamespace in {OURS}
"""

RULES = {
    "rls_disabled": f"""
        select oid::regclass from pg_class
         where relnamespace in {OURS} and relkind in ('r', 'p') and not relrowsecurity""",
    "policy_exists_rls_disabled": f"""
        select distinct polrelid::regclass from ({POLICIES}) as policy
         join pg_class on oid = polrelid where not relrowsecurity""",
    "rls_enabled_no_policy": f"""
        select oid::regclass from pg_class
         where relnamespace in {OURS} and relrowsecurity
           and not exists (select from pg_policy where polrelid = pg_class.oid)""",
    # A call that is the whole of a sub-select is made once, any other one for each row.
    "auth_rls_initplan": f"""
        select polrelid::regclass, polname from ({POLICIES}) as policy
         where regexp_replace(condition, '\\( SELECT [\\w.]+\\([^()]*\\) AS \\w+\\)', '', 'g')
               ~* '\\m(auth\\.\\w+|current_setting)\\('""",
    "multiple_permissive_policies": f"""
        select polrelid::regclass, rolname, command
          from ({POLICIES}) as policy cross join unnest(commands) as command
          join pg_roles on pg_roles.oid = any (polroles) or polroles = '{{0}}'
         where polpermissive and rolname !~ '^pg_'
         group by 1, 2, 3 having count(distinct polname) > 1""",
    "rls_references_user_metadata": f"""
        select polrelid::regclass, polname from ({POLICIES}) as policy
         where condition ~ 'user_metadata'""",
    # The columns of the key, in whatever order, begin an index over all rows.
    "unindexed_foreign_keys": f"""
        select conrelid::regclass, conname from pg_constraint
         where contype = 'f' and connamespace in {OURS} and not exists (
           select from pg_index
            where indrelid = conrelid and indisvalid and indpred is null
              and (string_to_array(indkey::text, ' ')::int2[])[1:cardinality(conkey)] @> conkey)""",
    # The same but for its name; or the beginning of another one, and unique for nobody.
    "duplicate_index": f"""
        select one.indexrelid::regclass, other.indexrelid::regclass
          from pg_index as one
          join pg_index as other
            on other.indrelid = one.indrelid and other.indexrelid <> one.indexrelid
          join pg_class as a on a.oid = one.indexrelid
          join pg_class as b on b.oid = other.indexrelid and b.relam = a.relam
         where a.relnamespace in {OURS}
           and coalesce(pg_get_expr(one.indpred, one.indrelid), '')
               = coalesce(pg_get_expr(other.indpred, other.indrelid), '')
           and coalesce(pg_get_expr(one.indexprs, one.indrelid), '')
               = coalesce(pg_get_expr(other.indexprs, other.indrelid), '')
           and (other.indkey::text || ' ') like (one.indkey::text || ' %')
           and (other.indclass::text || ' ') like (one.indclass::text || ' %')
           and (other.indoption::text || ' ') like (one.indoption::text || ' %')
           and (not one.indisunique or one.indkey = other.indkey and other.indisunique)""",
    "function_search_path_mutable": f"""
        select oid::regprocedure from pg_proc
         where pronamespace in {OURS} and not exists (
           select from unnest(proconfig) as setting where setting like 'search_path=%')""",
    "security_definer_function_executable": f"""
        select oid::regprocedure, role from pg_proc
         cross join unnest('{{public,anon,authenticated}}'::text[]) as role
         where pronamespace in {OURS} and prosecdef
           and has_function_privilege(role, pg_proc.oid, 'EXECUTE')""",
    "security_definer_view": f"""
        select oid::regclass from pg_class
         where relnamespace in {OURS} and relkind = 'v' and not exists (
           select from pg_options_to_table(reloptions)
            where option_name = 'security_invoker' and option_value::boolean)""",
    "materialized_view_in_api": f"""
        select oid::regclass from pg_class
         where relnamespace in {OURS} and relkind in ('m', 'f')""",
    "auth_users_exposed": f"""
        select distinct ev_class::regclass from pg_rewrite
          join pg_class on pg_class.oid = ev_class
          join pg_depend on classid = 'pg_rewrite'::regclass and objid = pg_rewrite.oid
         where relnamespace in {OURS} and refobjid = 'auth.users'::regclass""",
    "extension_in_public": """
        select extname from pg_extension where extnamespace = 'public'::regnamespace""",
    "no_primary_key": f"""
        select oid::regclass from pg_class
         where relnamespace in {OURS} and relkind in ('r', 'p') and not exists (
           select from pg_index where indrelid = pg_class.oid and indisprimary)""",
}

TABLE = "create table public.made (id uuid primary key, account_id uuid, other uuid);"
SECURE = f"{TABLE} alter table public.made enable row level security;"
POLICY = "create policy p on public.made for select to authenticated using"
FOREIGN_KEY = "alter table public.made add foreign key (account_id) references public.accounts;"
FUNCTION = "create function public.made() returns int language sql"

VIOLATIONS = [
    ("rls_disabled", TABLE),
    ("rls_disabled", "alter table private.tiers disable row level security"),
    ("policy_exists_rls_disabled", f"{TABLE} {POLICY} (true)"),
    ("rls_enabled_no_policy", SECURE),
    ("auth_rls_initplan", f"{SECURE} {POLICY} (account_id = auth.uid())"),
    ("auth_rls_initplan", f"{SECURE} {POLICY} (id = (select auth.uid()) or other = auth.uid())"),
    ("auth_rls_initplan", f"{SECURE} {POLICY} (id::text = current_setting('a.b'))"),
    (
        "auth_rls_initplan",
        f"{SECURE} create policy p on public.made for insert with check (id = auth.uid())",
    ),
    (
        "multiple_permissive_policies",
        "create policy p on public.accounts for select to authenticated using (false)",
    ),
    ("multiple_permissive_policies", "create policy p on public.accounts using (false)"),
    (
        "multiple_permissive_policies",
        "create policy p on public.audit_logs for all to platform_service using (true)",
    ),
    (
        "rls_references_user_metadata",
        f"{SECURE} {POLICY} ((select auth.jwt()) -> 'user_metadata' ->> 'a' = 'b')",
    ),
    ("unindexed_foreign_keys", f"{SECURE} {FOREIGN_KEY}"),
    (
        "unindexed_foreign_keys",
        f"{SECURE} {FOREIGN_KEY} create index on public.made (other, account_id)",
    ),
    (
        "unindexed_foreign_keys",
        f"{SECURE} {FOREIGN_KEY} create index on public.made (account_id) where other is null",
    ),
    ("duplicate_index", "create index on public.api_keys (account_id)"),
    ("duplicate_index", "create index on public.instances (app_name)"),
    ("duplicate_index", "create index on public.audit_logs (account_id)"),
    ("duplicate_index", "create unique index on public.accounts (lower(email))"),
    ("function_search_path_mutable", f"{FUNCTION} as 'select 1'"),
    ("function_search_path_mutable", "alter function public.track_usage reset search_path"),
    (
        "security_definer_function_executable",
        "grant execute on function public.track_usage to authenticated",
    ),
    (
        "security_definer_function_executable",
        "grant execute on function public.handle_stripe_event to public",
    ),
    (
        "security_definer_function_executable",
        f"{FUNCTION} security definer as 'select 1'; grant execute on function public.made to anon",
    ),
    ("security_definer_view", "create view public.made as select 1 as a"),
    (
        "security_definer_view",
        "create view public.made with (security_invoker = off) as select 1 as a",
    ),
    ("materialized_view_in_api", "create materialized view public.made as select 1 as a"),
    (
        "auth_users_exposed",
        "create view public.made with (security_invoker) as select email from auth.users",
    ),
    (
        "extension_in_public",
        "update pg_extension set extnamespace = 'public'::regnamespace where extname = 'plpgsql'",
    ),
    ("no_primary_key", "create table public.made (id uuid)"),
]

FINE = [
    f"{SECURE} {POLICY} (id = (select auth.uid()))",
    f"{SECURE} {POLICY} (true); create policy q on public.made for insert to authenticated"
    " with check (true); create policy r on public.made for select to anon using (true)",
    f"{SECURE} {POLICY} (true); {FOREIGN_KEY}"
    " create index on public.made (account_id, other); create index on public.made (other)",
    f"{FUNCTION} set search_path = pg_catalog, pg_temp as 'select 1'",
    "create view public.made with (security_invoker) as select id from public.accounts",
]


def findings(db: Db) -> dict[str, list[tuple[object, ...]]]:
    return {rule: found for rule, query in RULES.items() if (found := db.run(query))}


def test_no_rule_finds_anything(db: Db) -> None:
    assert findings(db) == {}


def test_every_rule_is_shown_to_find_something() -> None:
    assert {rule for rule, _ in VIOLATIONS} == set(RULES)


@pytest.mark.parametrize(("rule", "violation"), VIOLATIONS)
def test_a_rule_finds_what_breaks_it(db: Db, rule: str, violation: str) -> None:
    db.run(violation)
    assert rule in findings(db)


@pytest.mark.parametrize("change", FINE)
def test_what_keeps_the_rules_is_not_found(db: Db, change: str) -> None:
    db.run(change)
    assert findings(db) == {}
