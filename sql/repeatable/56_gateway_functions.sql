-- What the instance gateway asks: whose token is this, and what may this API key do. Both are looked up
-- by the SHA-256 of what was presented, so how long the search takes says nothing of what is stored.

create or replace function public.instance_of_token(token_hash text) returns uuid
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if token_hash is null or token_hash !~ '^[0-9a-f]{64}$' then
    raise exception 'token_hash is no SHA-256'
      using errcode = 'invalid_parameter_value',
            hint = 'Pass the hash of the token as 64 lower-case hexadecimal digits.';
  end if;
  return (
    select instance.id
      from private.instance_secrets as secret
      join public.instances as instance on instance.id = secret.instance_id
     where secret.name = 'PLATFORM_USAGE_TOKEN'
       and sha256(replace(secret.value, '\', '\\')::bytea) = decode(token_hash, 'hex')
       and instance.status <> 'deprovisioned'
  );
end
$$;

-- Every key is judged by the same statement, whatever is wrong with it, and every refusal is noted by the
-- same one.
create or replace function public.verify_api_key(key_hash text, instance_id uuid, permission text)
returns table (valid boolean, account_id uuid, scopes text[], reason text, upstream_key text)
language plpgsql security definer rows 1 set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  judged record;
begin
  if key_hash is null or instance_id is null or permission is null then
    raise exception 'key_hash, instance_id and permission must not be null'
      using errcode = 'null_value_not_allowed',
            hint = 'Pass the SHA-256 of the key, the instance that it is used on and what it is to do there.';
  end if;
  if key_hash !~ '^[0-9a-f]{64}$' then
    raise exception 'key_hash is no SHA-256'
      using errcode = 'invalid_parameter_value',
            hint = 'Pass the hash of the key as 64 lower-case hexadecimal digits.';
  end if;

  select instance.account_id as of_instance, key.*,
         case
           when key.id is null then 'unknown'
           when key.account_id is distinct from instance.account_id then 'account'
           when key.expires_at <= now() then 'expired'
           when not key.is_active then 'revoked'
           when plan.id is null then 'plan'
           when verify_api_key.permission <> all (key.permissions) then 'scope'
         end as refused
    into judged
    from (values (verify_api_key.key_hash, verify_api_key.instance_id)) as asked (key_hash, instance_id)
    left join private.api_key_hashes as hash on hash.key_hash = asked.key_hash
    left join public.api_keys as key on key.id = hash.api_key_id
    left join public.instances as instance on instance.id = asked.instance_id
    left join public.subscriptions as plan
      on plan.account_id = key.account_id
     and plan.in_force
     and plan.live_until > now()
     and plan.features -> 'api_access' = 'true';

  -- MindRoom reports no request to its API that runs agents: each counts as a message here.
  if judged.refused is null and verify_api_key.permission = 'execute' then
    if (select messages_remaining from public.check_usage_limits(verify_api_key.instance_id)) = 0 then
      judged.refused := 'limit';
    else
      perform public.record_usage(
        verify_api_key.instance_id,
        jsonb_build_array(jsonb_build_object('id', gen_random_uuid(), 'type', 'received', 'platform', 'api'))
      );
    end if;
  end if;

  valid := judged.refused is null;
  reason := judged.refused;
  if valid then
    account_id := judged.account_id;
    scopes := judged.permissions;
    select secret.value into upstream_key
      from private.instance_secrets as secret
     where secret.instance_id = verify_api_key.instance_id and secret.name = 'OPENAI_COMPAT_API_KEYS';
    -- Whoever holds the row at this moment notes it, or the next use does.
    update public.api_keys
       set last_used_at = now()
     where id = (
       select id from public.api_keys
        where id = judged.id and (last_used_at is null or last_used_at <= now() - interval '1 minute')
          for no key update skip locked
     );
  elsif judged.of_instance is not null then
    perform private.note_refused_key(
      judged.of_instance, verify_api_key.instance_id, judged.id, judged.refused
    );
  end if;
  return next;
end
$$;

-- One row a day for a key, an instance and a reason, which counts: its id follows from these. That a key is
-- another customer's is not for the instance's owner to know.
create or replace function private.note_refused_key(
  account_id uuid, instance_id uuid, key_id uuid, reason text
) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  today constant date := (now() at time zone 'utc')::date;
  key constant uuid := case when note_refused_key.reason <> 'account' then note_refused_key.key_id end;
  told constant text := case note_refused_key.reason when 'account' then 'unknown' else note_refused_key.reason end;
begin
  insert into public.audit_logs as log (
    id, account_id, action, category, resource_type, resource_id, details, success
  )
  values (
    encode(
      substr(
        sha256(
          convert_to(format('api_key.refused %s %s %s %s', note_refused_key.instance_id, key, told, today), 'UTF8')
        ),
        1, 16
      ),
      'hex'
    )::uuid,
    note_refused_key.account_id,
    'api_key.refused',
    'security',
    case when key is null then 'instance' else 'api_key' end,
    coalesce(key, note_refused_key.instance_id),
    jsonb_build_object('day', today, 'instance', note_refused_key.instance_id, 'reason', told, 'count', 1),
    false
  )
  on conflict (id) do update
    set details = jsonb_set(log.details, '{count}', to_jsonb((log.details ->> 'count')::bigint + 1));
end
$$;

comment on function public.instance_of_token(text) is
  'The instance with this PLATFORM_USAGE_TOKEN, by its SHA-256; null without one, or when it is deprovisioned.';
comment on function public.verify_api_key(text, uuid, text) is
  'May the API key with this SHA-256 do this on this instance? Then account_id and scopes say whose it is and what it may do, and upstream_key is the instance''s own, OPENAI_COMPAT_API_KEYS, which MindRoom wants to see. Else reason, for the log and never for who presented it: unknown, account (another''s, or no such instance), expired, revoked, plan (without API access), scope or limit (of messages, today). Counts a message received where the permission is execute. Notes last_used_at once a minute, and counts refusals in one audit row a day.';
comment on function private.note_refused_key(uuid, uuid, uuid, text) is
  'Counts a refused API key in the audit log of the instance''s account.';

revoke all on function
  public.instance_of_token(text),
  public.verify_api_key(text, uuid, text),
  private.note_refused_key(uuid, uuid, uuid, text)
from public, anon, authenticated, service_role;
grant execute on function
  public.instance_of_token(text),
  public.verify_api_key(text, uuid, text)
to service_role;
