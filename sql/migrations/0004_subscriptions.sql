-- Which plan an account has. Only Stripe's webhooks write here, through stripe-handler. Limits and
-- features are copied from private.tiers by trigger, so that a single customer may have other ones.
-- Limits, sizes and one day's counts stay far below 2^31.
-- squawk-ignore-file prefer-bigint-over-int

create table public.subscriptions (
  id uuid primary key default gen_random_uuid(),
  account_id uuid not null references public.accounts (id) on delete cascade,
  tier text not null default 'free' references private.tiers (tier),
  status text not null default 'active',
  stripe_subscription_id text,
  stripe_price_id text,
  max_messages_per_day integer not null,
  max_storage_gb integer not null,
  max_agents integer not null,
  max_platforms integer not null,
  max_team_members integer not null,
  features jsonb not null,
  storage_used_gb numeric(12, 3) not null default 0,
  trial_started_at timestamptz,
  trial_ends_at timestamptz,
  current_period_start timestamptz,
  current_period_end timestamptz,
  cancelled_at timestamptz,
  -- The one definition of a live subscription: now() < live_until. Not infinity, which Python's
  -- datetime cannot hold.
  live_until timestamptz generated always as (
    case status
      when 'active' then coalesce(current_period_end, '9999-01-01 00:00+00')
      when 'trialing' then coalesce(trial_ends_at, current_period_end, '9999-01-01 00:00+00')
    end
  ) stored,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  -- What the composite foreign keys of instances refer to.
  constraint subscriptions_account_id_id_key unique (account_id, id),
  constraint subscriptions_stripe_subscription_id_key unique (stripe_subscription_id),
  constraint subscriptions_stripe_subscription_id_not_empty check (stripe_subscription_id <> ''),
  constraint subscriptions_status_known check (
    status in ('trialing', 'active', 'past_due', 'paused', 'incomplete', 'cancelled')
  ),
  constraint subscriptions_limits_known check (
    max_messages_per_day >= -1 and max_storage_gb >= -1 and max_agents >= -1
    and max_platforms >= -1 and max_team_members >= -1
  ),
  constraint subscriptions_features_is_object check (jsonb_typeof(features) = 'object'),
  constraint subscriptions_storage_used_not_negative check (storage_used_gb >= 0),
  constraint subscriptions_trial_in_order check (trial_ends_at >= trial_started_at),
  constraint subscriptions_period_in_order check (current_period_end >= current_period_start),
  constraint subscriptions_cancelled_at_known check (
    status <> 'cancelled' or cancelled_at is not null
  )
);

-- At most one that is not cancelled; any number of cancelled ones.
create unique index subscriptions_one_live_per_account
  on public.subscriptions (account_id) where status <> 'cancelled';
create index subscriptions_tier_idx on public.subscriptions (tier);

alter table public.subscriptions enable row level security;

comment on table public.subscriptions is
  'The plan of an account, with its limits and features. Modified only by Stripe''s webhooks.';
comment on column public.subscriptions.max_messages_per_day is
  'From the tier unless stated by the writer; -1 = unlimited, as in every max_ column. On a change of tier a limit that is left as it was, or set to null, follows the new tier.';
comment on column public.subscriptions.max_storage_gb is 'Of all instances together.';
comment on column public.subscriptions.max_agents is 'In the config of one instance.';
comment on column public.subscriptions.features is 'Feature flags; from the tier unless stated by the writer.';
comment on column public.subscriptions.storage_used_gb is 'Over all instances; kept by calculate_storage_usage().';
comment on column public.subscriptions.cancelled_at is
  'When it was cancelled. May be set while still active: Stripe cancels at the end of a period.';
comment on column public.subscriptions.live_until is
  'Live until then, if active or trialing: the end of its period or trial. Null = not live. Computed.';
