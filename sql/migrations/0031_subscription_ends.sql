-- What happens when a subscription ends: its instances stop, are kept for a while, and are removed. And
-- how many instances a plan has.
-- Limits stay far below 2^31.
-- squawk-ignore-file prefer-bigint-over-int

alter table private.tiers
  add column max_instances integer not null default 1,
  add column grace_days integer not null default 3,
  add column instance_retention_days integer not null default 7,
  add constraint tiers_ends_known check (
    max_instances >= -1 and grace_days >= 0 and instance_retention_days >= 0
  ) not valid;

comment on column private.tiers.max_instances is 'Instances of an account; -1 = unlimited.';
comment on column private.tiers.grace_days is
  'Days past the end of its period or trial after which a subscription counts as ended when Stripe says nothing.';
comment on column private.tiers.instance_retention_days is
  'How long the instances of an ended subscription are kept, stopped, before they are removed.';

alter table public.subscriptions add column unpaid boolean not null default false;
alter table private.stripe_subscriptions add column unpaid boolean not null default false;

comment on column public.subscriptions.unpaid is
  'past_due, and Stripe has given up collecting: the entitlement has ended.';
comment on column private.stripe_subscriptions.unpaid is 'Stripe''s status unpaid, which is past_due here.';

alter table public.instances
  add column stop_reason text,
  add column remove_after timestamptz,
  add constraint instances_stop_reason_known check (
    stop_reason in ('unused', 'subscription ended')
  ) not valid,
  -- squawk-ignore ban-drop-constraint
  drop constraint instances_times_readable,
  add constraint instances_times_readable check (
    least(
      last_health_check, last_active_at, provisioned_at, started_at, stopped_at, deprovisioned_at,
      remove_after, created_at, updated_at
    ) >= '0001-01-02 00:00+00'
    and greatest(
      last_health_check, last_active_at, provisioned_at, started_at, stopped_at, deprovisioned_at,
      remove_after, created_at, updated_at
    ) <= '9999-12-31 00:00+00'
  ) not valid;

comment on column public.instances.stop_reason is
  'Why the platform stopped it; null where somebody asked for it.';
comment on column public.instances.remove_after is
  'The account''s subscription has ended: when the instance is removed, unless another one begins; null = it is kept.';
