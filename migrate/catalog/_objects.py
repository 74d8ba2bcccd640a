"""What is told of each system catalog: queries as data.

Which of their columns are told, and why the others are not, is in `tests/migrate/test_catalog.py`.
"""

from typing import NamedTuple


class Query(NamedTuple):
    """The objects of a system catalog; each field but the first is SQL.

    Attributes:
        catalog: by which name comments and dependencies know the objects.
        name: an object's name.
        definition: its definition; null for an object that is told of by another one.
        source: what follows FROM.
        oid: what identifies the object in its catalog.
        column: the number of a column, 0 for anything else.
        owner: the oid of the owner of what has privileges.
        acl: its privileges.
        kind: its kind as `acldefault` has it.
    """

    catalog: str
    name: str
    definition: str
    source: str
    oid: str = "oid"
    column: str = "0"
    owner: str = "null"
    acl: str = "null"
    kind: str = "null"


def _who(role: str) -> str:
    """A role's name."""
    return (
        f"case when {role} = (select role from us) then 'us' when {role} = 0 then 'public'"
        f" else pg_get_userbyid({role}) end"
    )


def _sorted(options: str) -> str:
    """Options in order, without the number that PostgreSQL 15.20 keeps among those of columns."""
    return f"""(select array_agg(o order by o collate "C") from unnest({options}) o
                where not starts_with(o, 'pg_attver='))"""


def _foreign(options: str) -> str:
    """Options of a foreign object; of what may be a secret, its name only."""
    name = "split_part(o, '=', 1)"
    return f"""(select 'options ' || string_agg(
        case when {name} ~* 'pass|secret|key|token|credential' then {name} else o end, ', '
        order by o collate "C") from unnest({options}) o)"""


def _collation(collation: str, of_type: str) -> str:
    """A collation that is not the type's own."""
    return f"""case when {collation} <> {of_type} then (
        select format('collate %I.%I', nspname, collname)
        from pg_collation c join pg_namespace n on n.oid = collnamespace
        where c.oid = {collation}) end"""


def _tablespace(tablespace: str) -> str:
    return f"'tablespace ' || (select spcname from pg_tablespace where oid = {tablespace})"


def _privileges(acl: str, owner: str, kind: str) -> str:
    """A row for each grantee who is not managed elsewhere; the owner if he has lost any.

    All that a table knows are ALL, because newer major versions know more.
    """
    number = f"(select number from privileges_of where privileges_of.kind = {kind})"
    return f"""(
      select {_who("grantee")} as grantee, coalesce(
        case when {kind} = 'r' and count(type) = {number} and bool_and(grantable) then 'ALL*'
          when {kind} = 'r' and count(type) = {number} and not bool_or(grantable) then 'ALL' end,
        string_agg(type || case when grantable then '*' else '' end, ', '
                   order by type collate "C"),
        'none') as privileges
      from (
        select grantee, privilege_type as type, bool_or(is_grantable) as grantable
        from aclexplode({acl}) group by 1, 2
        union all select {owner}, null, null
      ) as granted
      where grantee = {owner} or grantee not in (select oid from login)
      group by grantee
      having grantee <> {owner} or count(type) <> coalesce({number}, 0)
    )"""


def _grants(acl: str, owner: str, kind: str) -> str:
    """The same as one text; null where there is no row."""
    return f"""(select string_agg(grantee || ': ' || privileges, '; ' order by grantee collate "C")
                from {_privileges(acl, owner, kind)} as p)"""


_RELATION = f"""concat_ws(', ',
  case when relpersistence = 'u' then 'unlogged' end,
  'access method ' || (select amname from pg_am where oid = relam and amname <> 'heap'),
  {_tablespace("reltablespace")},
  'TOAST options ' || (select {_sorted("t.reloptions")}::text from pg_class t
                       where t.oid = relation.reltoastrelid))"""

QUERIES = (
    Query(
        "pg_namespace",
        "format('schema %I', nspname)",
        f"'owner ' || {_who('nspowner')}",
        "ours",
        owner="nspowner",
        acl="nspacl",
        kind="'n'",
    ),
    Query(
        "pg_class",
        "format('table %s', full_name)",
        f"""concat_ws(', ',
          format('kind %s, owner %s, row security %s, forced %s, options %s', relkind,
                 {_who("relowner")}, relrowsecurity, relforcerowsecurity, {_sorted("reloptions")}),
          nullif({_RELATION}, ''),
          case relreplident when 'n' then 'replica identity nothing'
            when 'f' then 'replica identity full' when 'i' then 'replica identity by index' end,
          'of ' || format_type(nullif(reloftype, 0), null),
          'partitioned by ' || pg_get_partkeydef(relation.oid),
          case when relispartition then 'partition of ' else 'inherits ' end || (
            select string_agg(
              inhparent::regclass || case when inhdetachpending then ' (detaching)' else '' end,
              ', ' order by inhseqno)
            from pg_inherits where inhrelid = relation.oid),
          pg_get_expr(relpartbound, relation.oid),
          (select concat_ws(', ', format('server %I', srvname), {_foreign("ftoptions")})
           from pg_foreign_table join pg_foreign_server s on s.oid = ftserver
           where ftrelid = relation.oid))""",
        "relation where relkind in ('r', 'p', 'f')",
        owner="relowner",
        acl="relacl",
        kind="'r'",
    ),
    Query(
        "pg_class",
        "format('view %s', full_name)",
        f"""concat_ws(', ', 'owner ' || {_who("relowner")}, nullif({_RELATION}, ''),
          (select 'enabled ' || ev_enabled::text from pg_rewrite
           where ev_class = relation.oid and rulename = '_RETURN' and ev_enabled <> 'O'),
          format('options %s: %s', {_sorted("reloptions")}, pg_get_viewdef(oid)))""",
        "relation where relkind in ('v', 'm')",
        owner="relowner",
        acl="relacl",
        kind="'r'",
    ),
    Query(
        "pg_class",
        "format('sequence %s', full_name)",
        f"""concat_ws(', ',
          format('owner %s: %s start %s increment %s from %s to %s cache %s%s',
                 {_who("relowner")}, format_type(seqtypid, null), seqstart, seqincrement, seqmin,
                 seqmax, seqcache, case when seqcycle then ' cycle' end),
          nullif({_RELATION}, ''),
          (select format('of column %s.%I', refobjid::regclass, attname)
           from pg_depend join pg_attribute on attrelid = refobjid and attnum = refobjsubid
           where classid = 'pg_class'::regclass and objid = seqrelid and deptype in ('a', 'i')
             and refclassid = 'pg_class'::regclass))""",
        "relation join pg_sequence on seqrelid = oid",
        owner="relowner",
        acl="relacl",
        kind="'s'",
    ),
    Query(
        "pg_class",
        "format('index %s', relation.full_name)",
        f"""concat_ws(', ', format('valid %s: %s', indisvalid, pg_get_indexdef(indexrelid)),
          case when indisclustered then 'clustered' end,
          case when indisreplident then 'replica identity' end,
          {_tablespace("relation.reltablespace")},
          'partition of ' || (select inhparent::regclass from pg_inherits
                              where inhrelid = indexrelid),
          (select string_agg(format('statistics %s of %s', attstattarget, attname), ', '
                             order by attnum)
           from pg_attribute where attrelid = indexrelid and attstattarget >= 0))""",
        """relation join pg_index on indexrelid = relation.oid
          join relation as indexed on indexed.oid = indrelid""",
        oid="relation.oid",
    ),
    Query(
        "pg_class",
        "format('column %s.%I', full_name, attname)",
        f"""nullif(concat_ws(' ',
          case when relkind in ('r', 'p', 'f') then concat_ws(' ',
            format_type(atttypid, atttypmod), {_collation("attcollation", "typcollation")},
            case when attnotnull then 'not null' end,
            (select concat_ws(' ', case when not convalidated then 'not valid' end,
                                   case when connoinherit then 'no inherit' end)
             from pg_constraint where conrelid = attrelid and contype = 'n'
               and conkey[1] = attnum and (connoinherit or not convalidated)),
            case attgenerated when 's' then 'generated' when 'v' then 'virtual' end,
            nullif(attidentity::text, '')) end,
          'default ' || pg_get_expr(adbin, adrelid),
          case when attstorage <> typstorage then 'storage ' || attstorage::text end,
          'compression ' || nullif(attcompression::text, ''),
          'statistics ' || nullif(attstattarget, -1), 'options ' || {_sorted("attoptions")}::text,
          case when attislocal and attinhcount > 0 and not relispartition then 'also local' end,
          {_foreign("attfdwoptions")}), '')""",
        """relation join pg_attribute on attrelid = relation.oid
          left join pg_type on pg_type.oid = atttypid
          left join pg_attrdef on adrelid = attrelid and adnum = attnum
        where relkind in ('r', 'p', 'f', 'v', 'm', 'c') and attnum > 0 and not attisdropped""",
        oid="attrelid",
        column="attnum",
        owner="relowner",
        acl="attacl",
        kind="'c'",
    ),
    Query(
        "pg_class",
        "'column order of ' || full_name",
        "string_agg(quote_ident(attname), ', ' order by attnum)",
        """relation join pg_attribute on attrelid = oid
        where relkind in ('r', 'p', 'f') and attnum > 0 and not attisdropped
          and (relispartition or oid not in (select inhrelid from pg_inherits))
        group by full_name""",
        oid="0",
    ),
    Query(
        "pg_constraint",
        "format('constraint %I on %s', conname, full_name)",
        """concat_ws(', ', pg_get_constraintdef(k.oid),
          case when conislocal and coninhcount > 0 and not relispartition then 'also local' end)""",
        """relation join pg_constraint k on conrelid = relation.oid
        where contype not in ('n', 't') and (contype <> 'f' or conparentid = 0)""",
        oid="k.oid",
    ),
    Query(
        "pg_constraint",
        "format('constraint %I on %s', conname, full_name)",
        "pg_get_constraintdef(k.oid)",
        "kind join pg_constraint k on contypid = kind.oid where contype <> 'n'",
        oid="k.oid",
    ),
    Query(
        "pg_policy",
        "format('policy %I on %s', polname, full_name)",
        f"""format('%s for %s to %s using (%s) with check (%s)',
          case when polpermissive then 'permissive' else 'restrictive' end, polcmd,
          (select string_agg(name, ', ' order by name collate "C")
           from unnest(polroles) as role, lateral (select {_who("role")} as name) as named),
          pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))""",
        "relation join pg_policy p on polrelid = relation.oid",
        oid="p.oid",
    ),
    Query(
        "pg_trigger",
        "format('trigger %I on %s', tgname, tgrelid::regclass)",
        "format('%s (enabled %s)', pg_get_triggerdef(oid), tgenabled)",
        """pg_trigger where not tgisinternal
          and (tgfoid in (select oid from routine) or tgrelid in (select oid from relation))""",
    ),
    Query(
        "pg_trigger",
        "format('triggers of constraint %I on %s', conname, conrelid::regclass)",
        """string_agg(format('enabled %s on %s', tgenabled, tgrelid::regclass), ', '
                      order by tgrelid::regclass::text collate "C", tgtype, tgenabled)""",
        """pg_trigger t join pg_constraint c on c.oid = tgconstraint
        where tgisinternal and tgenabled <> 'O' and tgrelid in (select oid from relation)
        group by conname, conrelid""",
        oid="0",
    ),
    Query(
        "pg_rewrite",
        "format('rule %I on %s', rulename, full_name)",
        "concat_ws(', ', pg_get_ruledef(r.oid), 'enabled ' || nullif(ev_enabled, 'O')::text)",
        "relation join pg_rewrite r on ev_class = relation.oid where rulename <> '_RETURN'",
        oid="r.oid",
    ),
    Query(
        "pg_statistic_ext",
        "format('statistics %I.%I', nspname, stxname)",
        f"""concat_ws(', ', pg_get_statisticsobjdef(s.oid), 'owner ' || {_who("stxowner")},
                      'target ' || nullif(stxstattarget, -1))""",
        "pg_statistic_ext s join ours on ours.oid = stxnamespace",
        oid="s.oid",
    ),
    Query(
        "pg_proc",
        "format('function %s', full_name)",
        f"format('owner %s: %s', {_who('proowner')}, pg_get_functiondef(oid))",
        "routine where prokind <> 'a'",
        owner="proowner",
        acl="proacl",
        kind="'f'",
    ),
    Query(
        "pg_proc",
        "format('aggregate %s', full_name)",
        f"""concat_ws(', ',
          format('owner %s: state %s by %s from %s', {_who("proowner")},
                 format_type(aggtranstype, null), aggtransfn, agginitval),
          format('final %s %s %s', aggfinalfn, aggfinalextra, aggfinalmodify),
          format('kind %s with %s direct', nullif(aggkind, 'n'), aggnumdirectargs),
          'combine ' || nullif(aggcombinefn, 0)::regproc,
          'serial ' || nullif(aggserialfn, 0)::regproc,
          'deserial ' || nullif(aggdeserialfn, 0)::regproc,
          'space ' || nullif(aggtransspace, 0), 'parallel ' || nullif(proparallel, 'u')::text,
          'sort ' || nullif(aggsortop, 0)::regoperator,
          case when aggmtranstype <> 0 then
            format('moving %s by %s and %s from %s space %s, final %s %s %s',
                   format_type(aggmtranstype, null), aggmtransfn, aggminvtransfn, aggminitval,
                   aggmtransspace, aggmfinalfn, aggmfinalextra, aggmfinalmodify) end)""",
        "routine join pg_aggregate on aggfnoid = oid",
        owner="proowner",
        acl="proacl",
        kind="'f'",
    ),
    Query(
        "pg_type",
        "format('type %s', full_name)",
        f"""format('owner %s: %s', {_who("typowner")}, case
          when not typisdefined then 'shell'
          when typtype = 'e' then (
            select 'enum ' || string_agg(quote_literal(enumlabel), ', ' order by enumsortorder)
            from pg_enum where enumtypid = kind.oid)
          when typtype = 'd' then concat_ws(' ', 'domain of', format_type(typbasetype, typtypmod),
            {
            _collation(
                "typcollation",
                "(select b.typcollation from pg_type b where b.oid = kind.typbasetype)",
            )
        },
            case when typnotnull then 'not null' end, 'default ' || pg_get_expr(typdefaultbin, 0))
          when typtype = 'c' then (
            select 'composite ' || string_agg(
              concat_ws(' ', quote_ident(attname), format_type(atttypid, atttypmod),
                        {_collation("attcollation", "b.typcollation")}), ', ' order by attnum)
            from pg_attribute join pg_type b on b.oid = atttypid
            where attrelid = kind.typrelid and attnum > 0 and not attisdropped)
          when typtype = 'r' then (
            select concat_ws(', ', 'range of ' || format_type(rngsubtype, null),
              'multirange ' || format_type(rngmultitypid, null),
              {_collation("rngcollation", "b.typcollation")},
              (select format('operator class %I.%I', nspname, opcname)
               from pg_opclass c join pg_namespace n on n.oid = opcnamespace
               where c.oid = rngsubopc),
              'canonical ' || nullif(rngcanonical, 0)::regproc,
              'difference ' || nullif(rngsubdiff, 0)::regproc)
            from pg_range join pg_type b on b.oid = rngsubtype where rngtypid = kind.oid)
          else concat_ws(', ',
            format('base, input %s, output %s, receive %s, send %s, typmod %s %s, analyze %s',
                   typinput, typoutput, typreceive, typsend, typmodin, typmodout, typanalyze),
            format('length %s, by value %s, alignment %s, storage %s, category %s, preferred %s',
                   typlen, typbyval, typalign, typstorage, typcategory, typispreferred),
            'element ' || format_type(nullif(typelem, 0), null), 'delimiter ' || typdelim::text,
            'subscript ' || nullif(typsubscript, 0)::regproc, 'default ' || typdefault,
            case when typcollation <> 0 then 'collatable' end) end)""",
        "kind",
        owner="typowner",
        acl="typacl",
        kind="'T'",
    ),
    Query(
        "pg_cast",
        "format('cast (%s as %s)', format_type(castsource, null), format_type(casttarget, null))",
        "concat_ws(' ', castcontext, castmethod, nullif(castfunc, 0)::regprocedure)",
        "pg_cast where oid >= (select first from made)",
    ),
    Query(
        "pg_transform",
        "format('transform of %s for %I', format_type(trftype, null), lanname)",
        "format('from %s, to %s', trffromsql::oid::regprocedure, trftosql::oid::regprocedure)",
        """pg_transform t join pg_language l on l.oid = trflang
        where t.oid >= (select first from made)""",
        oid="t.oid",
    ),
    Query(
        "pg_operator",
        "'operator ' || o.oid::regoperator",
        f"""concat_ws(', ', 'owner ' || {_who("oprowner")}, 'returns ' || oprresult::regtype,
          'by ' || nullif(oprcode::oid, 0)::regprocedure,
          'commutator ' || nullif(oprcom, 0)::regoperator,
          'negator ' || nullif(oprnegate, 0)::regoperator,
          'restrict ' || nullif(oprrest::oid, 0)::regprocedure,
          'join ' || nullif(oprjoin::oid, 0)::regprocedure,
          case when oprcanhash then 'hashes' end, case when oprcanmerge then 'merges' end)""",
        "pg_operator o join ours on ours.oid = oprnamespace",
        oid="o.oid",
    ),
    Query(
        "pg_opfamily",
        "'operator family ' || full_name",
        f"'owner ' || {_who('opfowner')}",
        "family where is_ours",
    ),
    Query(
        "pg_opclass",
        "format('operator class %I.%I using %I', nspname, opcname, amname)",
        f"""concat_ws(', ', 'owner ' || {_who("opcowner")}, 'for ' || opcintype::regtype,
          case when opcdefault then 'default' end, 'family ' || full_name,
          'storage ' || nullif(opckeytype, 0)::regtype)""",
        """pg_opclass c join ours on ours.oid = opcnamespace join family on family.oid = opcfamily
          join pg_am on pg_am.oid = opcmethod""",
        oid="c.oid",
    ),
    Query(
        "pg_amop",
        """format('operator %s (%s, %s) of family %s', amopopr::regoperator,
                  amoplefttype::regtype, amoprighttype::regtype, full_name)""",
        """string_agg(concat_ws(' ', 'strategy', amopstrategy, amoppurpose, 'ordered by '
             || (select s.full_name from family s where s.oid = amopsortfamily)), ', '
           order by amopstrategy)""",
        """pg_amop a join family on family.oid = amopfamily join pg_operator o on o.oid = amopopr
        where (is_ours or oprnamespace in (select oid from ours))
          and not exists (select from member where (classid, objid)
                                                 = ('pg_operator'::regclass, amopopr))
        group by amopopr, amoplefttype, amoprighttype, full_name""",
        oid="0",
    ),
    Query(
        "pg_amproc",
        """format('function %s (%s, %s) of family %s', amprocnum, amproclefttype::regtype,
                  amprocrighttype::regtype, full_name)""",
        "amproc::oid::regprocedure::text",
        """pg_amproc a join family on family.oid = amprocfamily
        where is_ours or amproc in (select oid from routine)""",
        oid="a.oid",
    ),
    Query(
        "pg_am",
        "format('access method %I', amname)",
        "concat_ws(' ', amtype, amhandler)",
        "pg_am where oid >= (select first from made)",
    ),
    Query(
        "pg_collation",
        "format('collation %I.%I', nspname, collname)",
        f"""concat_ws(', ', 'owner ' || {_who("collowner")}, 'provider ' || collprovider::text,
          case when not collisdeterministic then 'nondeterministic' end,
          'encoding ' || nullif(collencoding, -1), collcollate, collctype,
          coalesce(to_jsonb(c) ->> 'colllocale', to_jsonb(c) ->> 'colliculocale'),
          'rules ' || (to_jsonb(c) ->> 'collicurules'))""",
        "pg_collation c join ours on ours.oid = collnamespace",
        oid="c.oid",
    ),
    Query(
        "pg_conversion",
        "format('conversion %I.%I', nspname, conname)",
        f"""concat_ws(', ', 'owner ' || {_who("conowner")},
          format('from %s to %s by %s', pg_encoding_to_char(conforencoding),
                 pg_encoding_to_char(contoencoding), conproc),
          case when condefault then 'default' end)""",
        "pg_conversion c join ours on ours.oid = connamespace",
        oid="c.oid",
    ),
    Query(
        "pg_language",
        "format('language %I', lanname)",
        f"""concat_ws(', ', 'owner ' || {_who("lanowner")},
          case when lanpltrusted then 'trusted' end,
          'handler ' || nullif(lanplcallfoid, 0)::regprocedure,
          'inline ' || nullif(laninline, 0)::regprocedure,
          'validator ' || nullif(lanvalidator, 0)::regprocedure)""",
        "pg_language where lanispl and lanowner = (select role from us)",
        owner="lanowner",
        acl="lanacl",
        kind="'l'",
    ),
    Query(
        "pg_ts_parser",
        "format('text search parser %I.%I', nspname, prsname)",
        """concat_ws(', ', 'start ' || prsstart, 'token ' || prstoken, 'end ' || prsend,
                     'headline ' || prsheadline, 'types ' || prslextype)""",
        "pg_ts_parser p join ours on ours.oid = prsnamespace",
        oid="p.oid",
    ),
    Query(
        "pg_ts_template",
        "format('text search template %I.%I', nspname, tmplname)",
        "concat_ws(', ', 'init ' || tmplinit, 'lexize ' || tmpllexize)",
        "pg_ts_template t join ours on ours.oid = tmplnamespace",
        oid="t.oid",
    ),
    Query(
        "pg_ts_dict",
        "format('text search dictionary %I.%I', ours.nspname, dictname)",
        f"""concat_ws(', ', 'owner ' || {_who("dictowner")},
          format('template %I.%I', n.nspname, tmplname), dictinitoption)""",
        """pg_ts_dict d join ours on ours.oid = dictnamespace
          join pg_ts_template t on t.oid = dicttemplate
          join pg_namespace n on n.oid = tmplnamespace""",
        oid="d.oid",
    ),
    Query(
        "pg_ts_config",
        "format('text search configuration %I.%I', ours.nspname, cfgname)",
        f"""concat_ws(', ', 'owner ' || {_who("cfgowner")},
          format('parser %I.%I', n.nspname, prsname),
          (select string_agg(tokens || ' by ' || dictionaries, ', ' order by tokens collate "C")
           from (select alias as tokens, string_agg(mapdict::regdictionary::text, ' '
                                                    order by mapseqno) as dictionaries
                 from pg_ts_config_map
                   left join ts_token_type(cfgparser) on tokid = maptokentype
                 where mapcfg = c.oid group by alias) as mapped))""",
        """pg_ts_config c join ours on ours.oid = cfgnamespace
          join pg_ts_parser p on p.oid = cfgparser join pg_namespace n on n.oid = prsnamespace""",
        oid="c.oid",
    ),
    Query(
        "pg_extension",
        "format('extension %I', extname)",
        "format('in schema %I', nspname)",
        "extension",
    ),
    Query(
        "pg_extension",
        """format('version of extension %s on PostgreSQL %s', quote_ident(extname),
                  current_setting('server_version_num')::int / 10000)""",
        "extversion",
        "extension where oid >= (select first from made)",
        oid="0",
    ),
    Query(
        "pg_foreign_data_wrapper",
        "format('foreign-data wrapper %I', fdwname)",
        f"""concat_ws(', ', 'owner ' || {_who("fdwowner")},
          'handler ' || nullif(fdwhandler, 0)::regprocedure,
          'validator ' || nullif(fdwvalidator, 0)::regprocedure, {_foreign("fdwoptions")})""",
        "pg_foreign_data_wrapper where fdwowner = (select role from us)",
        owner="fdwowner",
        acl="fdwacl",
        kind="'F'",
    ),
    Query(
        "pg_foreign_server",
        "format('server %I', srvname)",
        f"""concat_ws(', ', 'owner ' || {_who("srvowner")}, format('wrapper %I', fdwname),
          'type ' || srvtype, 'version ' || srvversion, {_foreign("srvoptions")})""",
        """pg_foreign_server s join pg_foreign_data_wrapper w on w.oid = srvfdw
        where srvowner = (select role from us)""",
        oid="s.oid",
        owner="srvowner",
        acl="srvacl",
        kind="'S'",
    ),
    Query(
        "pg_user_mapping",
        f"""format('user mapping of %s for server %I', {_who("umuser")}, s.srvname)""",
        "'there'",
        """pg_user_mappings m join pg_foreign_server s on s.oid = srvid
        where srvowner = (select role from us)""",
        oid="umid",
    ),
    Query(
        "pg_event_trigger",
        "format('event trigger %I', evtname)",
        f"""concat_ws(', ', 'owner ' || {_who("evtowner")}, 'on ' || evtevent,
          'tags ' || {_sorted("evttags")}::text, 'by ' || evtfoid::regprocedure,
          'enabled ' || evtenabled::text)""",
        """pg_event_trigger
        where evtowner = (select role from us) or evtfoid in (select oid from routine)""",
    ),
    Query(
        "pg_publication",
        "format('publication %I', pubname)",
        f"""concat_ws(', ', 'owner ' || {_who("pubowner")},
          case when puballtables then 'all tables' end,
          case when pubinsert then 'insert' end, case when pubupdate then 'update' end,
          case when pubdelete then 'delete' end, case when pubtruncate then 'truncate' end,
          case when pubviaroot then 'via root' end,
          'generated ' || nullif(to_jsonb(p) ->> 'pubgencols', 'n'))""",
        "pg_publication p where pubowner = (select role from us)",
    ),
    Query(
        "pg_publication_rel",
        "format('table %s in publication %I', prrelid::regclass, pubname)",
        """concat_ws(' ', 'columns ' || coalesce(
            (select string_agg(quote_ident(attname), ', ' order by attname)
             from pg_attribute where attrelid = prrelid and attnum = any(prattrs)), 'all'),
          'where ' || pg_get_expr(prqual, prrelid))""",
        """pg_publication_rel r join pg_publication p on p.oid = prpubid
        where pubowner = (select role from us) or prrelid in (select oid from relation)""",
        oid="r.oid",
    ),
    Query(
        "pg_publication_namespace",
        "format('schema %I in publication %I', nspname, pubname)",
        "'all tables'",
        """pg_publication_namespace s join pg_publication p on p.oid = pnpubid
          join pg_namespace n on n.oid = pnnspid
        where pubowner = (select role from us) or pnnspid in (select oid from ours)""",
        oid="s.oid",
    ),
    Query(
        "pg_subscription",
        "format('subscription %I', subname)",
        # What an older version has not is taken from `older`, by PostgreSQL's rules of scope.
        f"""(select concat_ws(', ', 'owner ' || {_who("subowner")}, 'enabled ' || subenabled,
            'binary ' || subbinary, 'streaming ' || substream::text,
            'two-phase ' || (subtwophasestate <> 'd'), 'disable on error ' || subdisableonerr,
            'slot ' || subslotname, 'commit ' || subsynccommit,
            'publications ' || {_sorted("subpublications")}::text,
            case when not subpasswordrequired then 'no password' end,
            case when subrunasowner then 'run as owner' end,
            'origin ' || nullif(suborigin, 'any'), case when subfailover then 'failover' end)
          from pg_subscription s where s.oid = subscription.oid)""",
        """(values (true, false, 'any', false))
            as older (subpasswordrequired, subrunasowner, suborigin, subfailover),
          lateral (select oid, subname from pg_subscription s
                   where subdbid = (select oid from this) and subowner = (select role from us))
            as subscription""",
    ),
    Query(
        "pg_default_acl",
        f"""format('default privileges of %s%s on %s', {_who("defaclrole")},
                  ' in schema ' || (select quote_ident(nspname) from pg_namespace n
                                    where n.oid = defaclnamespace),
                  case defaclobjtype when 'r' then 'tables' when 'S' then 'sequences'
                    when 'f' then 'functions' when 'T' then 'types' when 'n' then 'schemas'
                    else 'large objects' end)""",
        "nullif(given, by_default)",
        f"""pg_default_acl,
          lateral (select case defaclobjtype when 'S' then 's' else defaclobjtype end as code,
                          case when defaclnamespace = 0 then defaclrole else 0 end as holder) as k,
          lateral (select
            coalesce({_grants("defaclacl", "holder", "code")}, 'nobody') as given,
            coalesce(case when defaclnamespace = 0 then {
            _grants("acldefault(code, defaclrole)", "holder", "code")
        } end, 'nobody') as by_default) as t
        where defaclrole = (select role from us) or defaclnamespace in (select oid from ours)""",
    ),
    Query(
        "pg_db_role_setting",
        f"""format('setting %s of %s', split_part(setting, '=', 1), case when setrole = 0
                  then 'the database' else 'role ' || {_who("setrole")} end)""",
        "substr(setting, strpos(setting, '=') + 1)",
        """pg_db_role_setting, unnest(setconfig) as setting
        where setdatabase = (select oid from this) and setrole not in (select oid from login)""",
        oid="0",
    ),
)
"""In whatever order: each object's name is its own."""

_PRIVILEGES_OF_OTHERS = {
    "pg_class": ("relacl", "relowner", "case relkind when 'S' then 's' else 'r' end::\"char\""),
    "pg_proc": ("proacl", "proowner", "'f'"),
    "pg_type": ("typacl", "typowner", "'T'"),
    "pg_namespace": ("nspacl", "nspowner", "'n'"),
    "pg_language": ("lanacl", "lanowner", "'l'"),
    "pg_foreign_data_wrapper": ("fdwacl", "fdwowner", "'F'"),
    "pg_foreign_server": ("srvacl", "srvowner", "'S'"),
}
"""Catalogs with objects of PostgreSQL's or an extension's, whose privileges we may change."""


def _select(query: Query) -> str:
    return f"""
select '{query.catalog}'::regclass::oid, {query.oid}::oid, {query.column}::int,
       {query.name}, ({query.definition})::text, {query.owner}::oid, {query.acl}::aclitem[],
       {query.kind}::"char"
from {query.source}"""


def _of_others(catalog: str, acl: str, owner: str, kind: str) -> str:
    """Privileges that differ from those with which an object that is not ours was made."""
    at_first = f"coalesce(initprivs, acldefault({kind}, {owner}))"
    now = f"coalesce({acl}, acldefault({kind}, {owner}))"
    return f"""
select format('privileges on %s %s', type, identity)
         || coalesce(' of extension ' || quote_ident(extname), ''), coalesce(now, 'nobody: none')
from {catalog} c
  left join pg_init_privs i on i.objoid = c.oid and i.classoid = '{catalog}'::regclass
    and i.objsubid = 0
  left join (pg_depend d join pg_extension e on e.oid = refobjid)
    on classid = '{catalog}'::regclass and objid = c.oid and d.objsubid = 0 and deptype = 'e',
  lateral (select {_grants(now, owner, kind)} as now,
                  {_grants(at_first, owner, kind)} as at_first) as grants,
  lateral pg_identify_object('{catalog}'::regclass, c.oid, 0)
where {acl} is distinct from initprivs and {owner} = (select role from us)
  and (c.oid < (select first from made) or extname is not null)
  and now is distinct from at_first and coalesce(schema, name) <> 'information_schema'"""


SQL = f"""
with us as materialized (
  select coalesce((select nspowner from pg_namespace where nspname = 'migrate'),
                  current_user::regrole) as role
),
this as materialized (select oid from pg_database where datname = current_database()),
made (first) as (values (16384::oid)),  -- the first that is not PostgreSQL's own
login as materialized (select oid from pg_roles where rolcanlogin),
privileges_of as materialized (
  select kind, (select count(*) from aclexplode(acldefault(kind, 10::oid)) where grantee = 10)
    as number
  from unnest('{{r,s,n,F,S,f,l,T}}'::"char"[]) as kind
),
member as materialized (select classid, objid from pg_depend where deptype = 'e'),
ours as materialized (
  select n.* from pg_namespace n
  where (nspowner = (select role from us) or nspname = 'public')
    and nspname not in ('migrate', 'information_schema') and nspname not like 'pg\\_%'
    and not exists (select from member where (classid, objid) = ('pg_namespace'::regclass, n.oid))
),
relation as materialized (
  select c.*, format('%I.%I', nspname, relname) as full_name
  from pg_class c join ours on ours.oid = relnamespace
  where not exists (select from member where (classid, objid) = ('pg_class'::regclass, c.oid))
),
routine as materialized (
  select p.*, format('%I.%I(%s)', nspname, proname, pg_get_function_identity_arguments(p.oid))
    as full_name
  from pg_proc p join ours on ours.oid = pronamespace
  where not exists (select from member where (classid, objid) = ('pg_proc'::regclass, p.oid))
),
kind as materialized (
  select t.*, format('%I.%I', nspname, typname) as full_name
  from pg_type t join ours on ours.oid = typnamespace left join pg_class c on c.oid = typrelid
  where typtype <> 'm' and coalesce(relkind, 'c') = 'c'
    and not exists (select from pg_type e where e.typarray = t.oid)
),
family as materialized (
  select f.*, format('%I.%I using %I', nspname, opfname, amname) as full_name,
         opfnamespace in (select oid from ours) as is_ours
  from pg_opfamily f join pg_namespace n on n.oid = opfnamespace join pg_am on pg_am.oid = opfmethod
  where not exists (select from member where (classid, objid) = ('pg_opfamily'::regclass, f.oid))
),
extension as materialized (
  select e.*, nspname from pg_extension e join pg_namespace n on n.oid = extnamespace
  where e.oid < (select first from made) or extowner = (select role from us)
    or extnamespace in (select oid from ours)
),
object (classid, objid, objsubid, name, definition, owner, acl, kind) as materialized (
  select * from ({" union all".join(map(_select, QUERIES))}
  ) as o (classid, objid, objsubid, name, definition, owner, acl, kind)
  where not exists (select from member m where (m.classid, m.objid) = (o.classid, o.objid))
)
select name, definition from object where definition is not null
union all
select format('privileges of %s on %s', grantee, name), privileges
from object o,
  lateral {_privileges("coalesce(o.acl, acldefault(o.kind, o.owner))", "o.owner", "o.kind")} as p
where acl is not null or kind in ('f', 'T', 'l')
union all
select 'comment on ' || name, description
from object o join pg_description d on (d.classoid, d.objoid, d.objsubid)
                                     = (o.classid, o.objid, o.objsubid)
where classid <> 'pg_extension'::regclass
union all
select format('label of %s on %s', provider, name), label
from object o join pg_seclabel l on (l.classoid, l.objoid, l.objsubid)
                                  = (o.classid, o.objid, o.objsubid)
union all
select format('dependence of %s on extension %I', name, extname), 'there'
from object o join pg_depend d on (d.classid, d.objid, d.objsubid)
                                = (o.classid, o.objid, o.objsubid)
  join pg_extension e on e.oid = refobjid
where deptype = 'x' and refclassid = 'pg_extension'::regclass
union all
{" union all".join(_of_others(name, *parts) for name, parts in _PRIVILEGES_OF_OTHERS.items())}
"""
"""Name and definition of every object, in one query."""
