-- What a user may ask for the own account. SECURITY INVOKER: row-level security decides, so another
-- customer's id gives nothing; the services that may call them read every row.

create or replace function public.get_user_instance(user_id uuid)
returns table (
  id uuid,
  subdomain text,
  frontend_url text,
  api_url text,
  matrix_url text,
  status text,
  tier text,
  config jsonb,
  features jsonb
)
language plpgsql stable rows 1 set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if user_id is null then
    raise exception 'user_id must not be null'
      using errcode = 'null_value_not_allowed', hint = 'Pass the id of the user, which is the account''s.';
  end if;

  return query
  select instance.id, instance.subdomain, instance.frontend_url, instance.api_url, instance.matrix_url,
         instance.status, subscription.tier, instance.config, subscription.features
    from public.subscriptions as subscription
    join public.instances as instance using (account_id)
   where subscription.account_id = user_id
     and subscription.in_force
     and subscription.live_until > now()
     and instance.status = 'running'
   order by instance.created_at desc, instance.id desc
   limit 1;
end
$$;

-- All columns of instances, and of the plan.
-- squawk-ignore ban-drop-function
drop function if exists public.get_all_user_instances(uuid);
create function public.get_all_user_instances(user_id uuid)
returns table (
  id uuid,
  account_id uuid,
  subscription_id uuid,
  runtime text,
  app_name text,
  app_config jsonb,
  subdomain text,
  status text,
  frontend_url text,
  api_url text,
  matrix_url text,
  config jsonb,
  cpu_limit numeric,
  memory_limit_mb integer,
  storage_limit_gb integer,
  health_status text,
  health_details jsonb,
  last_health_check timestamptz,
  error_message text,
  cpu_used numeric,
  memory_used_mb integer,
  storage_used_gb numeric,
  last_active_at timestamptz,
  provisioned_at timestamptz,
  started_at timestamptz,
  stopped_at timestamptz,
  deprovisioned_at timestamptz,
  created_at timestamptz,
  updated_at timestamptz,
  stop_reason text,
  remove_after timestamptz,
  measured_at timestamptz,
  tier text,
  subscription_status text
)
language plpgsql stable rows 10 set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if user_id is null then
    raise exception 'user_id must not be null'
      using errcode = 'null_value_not_allowed', hint = 'Pass the id of the user, which is the account''s.';
  end if;

  return query
  select instance.*, plan.tier, plan.status
    from public.instances as instance
    join public.subscriptions as plan on plan.account_id = instance.account_id and plan.in_force
   where instance.account_id = user_id
   order by instance.created_at desc, instance.id desc;
end
$$;

create or replace function public.has_active_subscription(user_id uuid) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  if user_id is null then
    raise exception 'user_id must not be null'
      using errcode = 'null_value_not_allowed', hint = 'Pass the id of the user, which is the account''s.';
  end if;

  return exists (
    select from public.subscriptions where account_id = user_id and in_force and live_until > now()
  );
end
$$;

create or replace function public.check_user_permission(user_id uuid, permission text) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  if user_id is null or permission is null then
    raise exception 'user_id and permission must not be null'
      using errcode = 'null_value_not_allowed',
            hint = 'Pass the id of the user, which is the account''s, and the name of a feature.';
  end if;

  return exists (
    select from public.subscriptions
     where account_id = user_id and in_force and live_until > now() and features -> permission = 'true'
  );
end
$$;

comment on function public.get_user_instance(uuid) is
  'The newest running instance of a user with a live subscription.';
comment on function public.get_all_user_instances(uuid) is
  'All instances of a user, deprovisioned ones included, newest first; with the tier and the status of the user''s plan.';
comment on function public.has_active_subscription(uuid) is
  'Is a subscription active or trialing, and not past its period or trial?';
comment on function public.check_user_permission(uuid, text) is
  'The feature flag of the user''s plan; false for an unknown permission or without a live subscription.';

revoke all on function
  public.get_user_instance(uuid),
  public.get_all_user_instances(uuid),
  public.has_active_subscription(uuid),
  public.check_user_permission(uuid, text)
from public, anon, authenticated, service_role;
grant execute on function
  public.get_user_instance(uuid),
  public.get_all_user_instances(uuid),
  public.has_active_subscription(uuid),
  public.check_user_permission(uuid, text)
to authenticated, service_role;
