-- What the tables' own files build on: timestamps, who is acting, the audit log.
--
-- Every function sets search_path = pg_catalog, pg_temp. An empty path is not enough: PostgreSQL then
-- looks for types in the caller's pg_temp first, where a domain named text runs the caller's code in its
-- CHECK, with the rights of the function's owner. Named last, pg_temp is searched last. For the same
-- reason no function that runs as its owner calls one of another schema but pg_catalog.
--
-- Functions behind triggers live in private. Those that read or write more than their own row are
-- SECURITY DEFINER, because the writer (a user, a service) may not; nobody needs EXECUTE on a trigger
-- function, so nobody has it. A trigger that judges a user's row runs AFTER, when row-level security
-- has already refused a row of another account: it cannot be asked about other customers.

create or replace function private.set_updated_at() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_nargs = 0 or to_jsonb(new) - tg_argv is distinct from to_jsonb(old) - tg_argv then
    new.updated_at := now();
  else
    new.updated_at := old.updated_at;
  end if;
  return new;
end
$$;

-- A trigger that runs before: a constraint that fails writes the row into its error as text, where each
-- number like 1e131071 has that many digits. So has every client that reads it.
create or replace function private.bound_json() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  max_bytes constant integer := tg_argv[0]::integer;
  new_row constant jsonb := to_jsonb(new);
  name text;
  value jsonb;
  bytes integer;
begin
  foreach name in array tg_argv[1:] loop
    value := new_row -> name;
    bytes := pg_column_size(value);
    if bytes <= max_bytes then
      if exists (
        select
          from jsonb_path_query(value, 'strict $.** ? (@.type() == "number")') as number
         where abs(number::numeric) >= 1e308 or scale(number::numeric) > 400
      ) then
        raise exception '% of % has a number that clients cannot read', name, tg_table_name
          using errcode = 'check_violation',
                hint = 'A number is below 1e308 and has at most 400 decimals, like a double; send any other as a string.';
      end if;
      bytes := octet_length(value::text);
    end if;
    if bytes > max_bytes then
      raise exception '% of % has % bytes, the limit is %', name, tg_table_name, bytes, max_bytes
        using errcode = 'check_violation',
              hint = 'Keep what is larger elsewhere, and a reference to it here.';
    end if;
  end loop;
  return new;
end
$$;

-- Reads the role that was set, since current_user is the owner inside SECURITY DEFINER functions.
create or replace function private.acting_as_user() returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(nullif(current_setting('role', true), 'none'), session_user) in ('anon', 'authenticated');
end
$$;

-- A request's settings are JSON objects that PostgREST, or a service in its place, sets. A malformed one
-- is the caller's mistake: no change is audited without knowing whose it is.
create or replace function private.request_setting(name text) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  given constant text := nullif(current_setting(name, true), '');
begin
  if given is null or jsonb_typeof(given::jsonb) in ('object', 'null') then
    return given::jsonb;
  end if;
  raise data_exception;
exception
  when data_exception then
    raise exception 'the setting % is no JSON object', name
      using errcode = 'invalid_text_representation',
            hint = 'Set it as PostgREST does, or not at all.';
end
$$;

-- Not auth.uid(): that is Supabase's, under a search_path that we do not decide.
create or replace function private.acting_user_id() returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  subject constant text := coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    nullif(private.request_setting('request.jwt.claims') ->> 'sub', '')
  );
begin
  return subject::uuid;
exception
  when invalid_text_representation then
    raise exception 'the claim sub of the request is no uuid'
      using errcode = 'invalid_text_representation',
            hint = 'sub is the id of a user in auth.users; leave it out where no user acts.';
end
$$;

-- The role that acts is the default of its column.
create or replace function private.log_audit(
  account_id uuid,
  action text,
  category text,
  resource_type text,
  resource_id uuid,
  details jsonb default '{}',
  success boolean default true
) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  headers constant jsonb := private.request_setting('request.headers');
begin
  insert into public.audit_logs (
    account_id, actor_user_id, action, category, resource_type, resource_id,
    details, forwarded_for, user_agent, success
  )
  values (
    account_id, private.acting_user_id(), action, category, resource_type, resource_id,
    details, left(headers ->> 'x-forwarded-for', 500), left(headers ->> 'user-agent', 500), success
  );
end
$$;

create or replace function private.audit_change() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  resource constant text := tg_argv[0];
  category constant text := tg_argv[1];
  told constant text[] := string_to_array(tg_argv[2], ' ');
  bookkeeping constant text[] := string_to_array(tg_argv[3], ' ') || array['updated_at'];
  old_row constant jsonb := to_jsonb(old);
  new_row constant jsonb := to_jsonb(new);
  any_row constant jsonb := coalesce(new_row, old_row);
  -- Any session can set it, and no function that gives a reason is open to users.
  reason constant text := case
    when not private.acting_as_user() then nullif(current_setting('mindroom.audit_reason', true), '')
  end;
  changed text[];
  old_told jsonb;
  new_told jsonb;
  details jsonb := '{}'::jsonb;
begin
  select array_agg(key order by key),
         coalesce(jsonb_object_agg(key, old_row -> key) filter (where key = any (told)), '{}'),
         coalesce(jsonb_object_agg(key, new_row -> key) filter (where key = any (told)), '{}')
    into changed, old_told, new_told
    from jsonb_object_keys(any_row) as key
   where old_row -> key is distinct from new_row -> key
     and key <> all (bookkeeping);
  if changed is null then
    return null;
  end if;

  if tg_op = 'UPDATE' then
    details := jsonb_build_object('changed', changed);
  end if;
  if reason is not null then
    details := details || jsonb_build_object('reason', reason);
  end if;
  if tg_op in ('UPDATE', 'DELETE') then
    details := details || jsonb_build_object('old', old_told);
  end if;
  if tg_op in ('UPDATE', 'INSERT') then
    details := details || jsonb_build_object('new', new_told);
  end if;

  perform private.log_audit(
    -- accounts have no account_id: their id is what account_id means elsewhere
    coalesce(any_row ->> 'account_id', any_row ->> 'id')::uuid,
    resource || case tg_op
      when 'INSERT' then '.created' when 'UPDATE' then '.updated' else '.deleted'
    end,
    category,
    resource,
    (any_row ->> 'id')::uuid,
    details
  );
  return null;
end
$$;

comment on function private.set_updated_at() is
  'updated_at is now, whatever the writer says. Arguments: columns that may change without that, updated_at among them.';
comment on function private.bound_json() is
  'Bounds the columns of jsonb that are written. Arguments: how many bytes each may have, stored or as text; their names. It is done before anything turns them into text: 36 kB of numbers like 1e131071 are half a gigabyte of it.';
comment on function private.acting_as_user() is
  'Is this a request that a user made through the API?';
comment on function private.request_setting(text) is
  'A setting of the request that the API makes, as JSON; null without one.';
comment on function private.acting_user_id() is
  'The user of the request that the API makes, null without one.';
comment on function private.log_audit(uuid, text, text, text, uuid, jsonb, boolean) is
  'The one door to the audit log for functions and triggers. User, addresses and program come from the request, if there is one; only the user is verified.';
comment on function private.audit_change() is
  'Audits a change of a row, and only a change: an update that leaves all but bookkeeping as it was writes nothing. Arguments: what the row is called, the category, the columns whose values may be told (those of all others stay out: they may be personal or secret), the columns that are bookkeeping. Why is in the setting mindroom.audit_reason, which counts as the reason that the acting service states; a user''s is ignored.';

revoke all on function
  private.set_updated_at(),
  private.bound_json(),
  private.acting_as_user(),
  private.request_setting(text),
  private.acting_user_id(),
  private.log_audit(uuid, text, text, text, uuid, jsonb, boolean),
  private.audit_change()
from public, anon, authenticated, service_role;
