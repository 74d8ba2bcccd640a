"""The live catalog as a map of object -> definition, to compare and to fingerprint.

It covers the schemas that belong to the role that owns the ledger, and `public`.  Left out are what
an extension brought; the privileges of roles that can log in, which belong to whoever manages the
accounts; default privileges, which are the platform's; and comments.  The owner of the ledger
appears as `us`, so that two databases made by different roles compare equal.
"""

import hashlib
from collections.abc import Mapping

from migrate.connection import Connection, readable
from migrate.errors import Difference
from migrate.ledger import SCHEMA

_QUERY = f"""
with us as (
  select coalesce((select nspowner from pg_namespace where nspname = '{SCHEMA}'),
                  current_user::regrole) as role
),
role (oid, name) as (
  select oid, case when oid = us.role then 'us' else rolname end from pg_roles, us
),
extension as (select classid, objid from pg_depend where deptype = 'e'),
ours as (
  select n.*, role.name as owner
  from pg_namespace n join role on role.oid = n.nspowner, us
  where (n.nspowner = us.role or n.nspname = 'public')
    and n.nspname not in ('{SCHEMA}', 'information_schema') and n.nspname not like 'pg\\_%'
    and not exists (select from extension e where e.classid = 'pg_namespace'::regclass
                    and e.objid = n.oid)
),
relation as (
  select c.*, o.nspname, role.name as owner, format('%I.%I', o.nspname, c.relname) as full_name
  from pg_class c join ours o on o.oid = c.relnamespace join role on role.oid = c.relowner
  where not exists (select from extension e where e.classid = 'pg_class'::regclass
                    and e.objid = c.oid)
),
routine as (
  select p.*, role.name as owner, format('%I.%I(%s)', o.nspname, p.proname,
         pg_get_function_identity_arguments(p.oid)) as full_name
  from pg_proc p join ours o on o.oid = p.pronamespace join role on role.oid = p.proowner
  where not exists (
    select from extension e where e.classid = 'pg_proc'::regclass and e.objid = p.oid)
),
kind as (
  select t.*, format('%I.%I', o.nspname, typname) as full_name
  from pg_type t join ours o on o.oid = t.typnamespace left join pg_class c on c.oid = typrelid
  where typtype in ('e', 'd', 'c', 'r') and coalesce(c.relkind, 'c') = 'c' and not exists (
    select from extension e where e.classid = 'pg_type'::regclass and e.objid = t.oid)
),
privilege (object, acl, owner) as (
  select format('schema %I', nspname), nspacl, nspowner from ours
  union all
  select case relkind when 'S' then 'sequence ' else 'table ' end || full_name, relacl, relowner
  from relation where relkind in ('r', 'p', 'v', 'm', 'S', 'f')
  union all
  select format('column %s.%I', full_name, attname), attacl, relowner
  from relation join pg_attribute on attrelid = relation.oid where attacl is not null
  union all
  select 'function ' || full_name, coalesce(proacl, acldefault('f', proowner)), proowner
  from routine
)
select 'schema ' || quote_ident(nspname), 'owner ' || n.owner from ours n
union all
select format('table %s', full_name),
       format('kind %s, owner %s, row security %s, forced %s, options %s', relkind,
              relation.owner, relrowsecurity, relforcerowsecurity, reloptions)
from relation where relkind in ('r', 'p', 'f')
union all
select format('column %s.%I', full_name, attname),
       concat_ws(' ', format_type(atttypid, atttypmod), case when attnotnull then 'not null' end,
                 case attgenerated when 's' then 'generated' end, nullif(attidentity::text, ''),
                 'default ' || pg_get_expr(adbin, adrelid))
from relation join pg_attribute on attrelid = relation.oid
left join pg_attrdef on adrelid = attrelid and adnum = attnum
where relkind in ('r', 'p', 'f') and attnum > 0 and not attisdropped
union all
select format('constraint %I on %s', conname, full_name), pg_get_constraintdef(k.oid)
from relation join pg_constraint k on conrelid = relation.oid where contype not in ('n', 't')
union all
select format('index %s', full_name), format('valid %s: %s', indisvalid,
                                              pg_get_indexdef(indexrelid))
from relation join pg_index on indexrelid = relation.oid
union all
select format('policy %I on %s', polname, full_name),
       format('%s for %s to %s using (%s) with check (%s)',
              case when polpermissive then 'permissive' else 'restrictive' end, polcmd,
              (select string_agg(coalesce(r.rolname, 'public'), ', ' order by r.rolname)
               from unnest(polroles) as g (oid) left join pg_roles r on r.oid = g.oid),
              pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
from relation join pg_policy on polrelid = relation.oid
union all
select format('trigger %I on %s', tgname, tgrelid::regclass),
       format('%s (enabled %s)', pg_get_triggerdef(t.oid), tgenabled)
from pg_trigger t where not tgisinternal
  and (tgfoid in (select oid from routine) or tgrelid in (select oid from relation))
union all
select format('view %s', full_name),
       format('owner %s, options %s: %s', relation.owner, reloptions, pg_get_viewdef(relation.oid))
from relation where relkind in ('v', 'm')
union all
select format('sequence %s', full_name),
       format('owner %s: %s start %s increment %s from %s to %s cache %s%s', relation.owner,
              format_type(seqtypid, null), seqstart, seqincrement, seqmin, seqmax, seqcache,
              case when seqcycle then ' cycle' end)
from relation join pg_sequence on seqrelid = relation.oid
union all
select format('function %s', full_name),
       format('owner %s: %s', routine.owner, pg_get_functiondef(routine.oid))
from routine where prokind <> 'a'
union all
select format('aggregate %s', full_name),
       format('owner %s: state %s by %s from %s, final %s', routine.owner,
              format_type(aggtranstype, null), aggtransfn, agginitval, aggfinalfn)
from routine join pg_aggregate a on aggfnoid = routine.oid
union all
select format('rule %I on %s', rulename, full_name), pg_get_ruledef(r.oid)
from relation join pg_rewrite r on ev_class = relation.oid where rulename <> '_RETURN'
union all
select format('statistics %I.%I', o.nspname, stxname), pg_get_statisticsobjdef(s.oid)
from pg_statistic_ext s join ours o on o.oid = stxnamespace
union all
select format('type %s', full_name), definition from kind join lateral (
  select 'enum ' || string_agg(quote_literal(enumlabel), ', ' order by enumsortorder)
  from pg_enum where enumtypid = kind.oid
  union all
  select concat_ws(' ', 'domain of', format_type(typbasetype, typtypmod),
                   case when typnotnull then 'not null' end, 'default ' || typdefault)
  where typtype = 'd'
  union all
  select 'composite ' || string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', '
                                    order by attnum)
  from pg_attribute where attrelid = typrelid and attnum > 0 and not attisdropped
  union all
  select 'range of ' || format_type(rngsubtype, null) from pg_range where rngtypid = kind.oid
) as defined (definition) on definition is not null
union all
select format('constraint %I on %s', conname, full_name), pg_get_constraintdef(k.oid)
from kind join pg_constraint k on contypid = kind.oid where contype <> 'n'
union all
select format('privileges of %s on %s', coalesce(r.rolname, 'public'), p.object),
       string_agg(a.privilege_type || case when a.is_grantable then '*' else '' end, ', '
                  order by a.privilege_type)
from privilege p cross join aclexplode(p.acl) a left join pg_roles r on r.oid = a.grantee
where a.grantee <> p.owner and not coalesce(r.rolcanlogin, false)
group by r.rolname, p.object
"""


@readable()
def read(connection: Connection) -> dict[str, str]:
    """Object -> definition of everything that is ours, in one query.

    The ledger's owner tells what is ours; where there is no ledger, the session's role.
    """
    with connection.transaction(force_rollback=True):  # takes the setting back, too
        connection.execute("set local search_path = ''")
        return dict(sorted(connection.execute(_QUERY)))


def object_digests(objects: Mapping[str, str]) -> dict[str, str]:
    """Object -> a short digest of its definition."""
    return {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in objects.items()}


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[Difference]:
    """Every object that differs, by name."""
    return [
        Difference(name, expected.get(name), found.get(name))
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
