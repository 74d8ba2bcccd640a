-- What Stripe's customers and subscriptions are, each in a table of its own, in Stripe's terms
-- (docs/decisions/0006-stripe.md). Invoices are no longer kept: whether a subscription is past due is
-- its own status. An account that a failed invoice made past_due before follows its subscription's
-- status with Stripe's next event or reconciliation.

create table private.stripe_prices (
  price_id text primary key,
  tier text references private.tiers (tier),
  source text not null default 'operator',
  observed_at timestamptz not null default now(),
  constraint stripe_prices_price_id_not_empty check (price_id <> ''),
  constraint stripe_prices_source_known check (source in ('operator', 'stripe')),
  constraint stripe_prices_stripe_names_a_tier check (source = 'operator' or tier is not null)
);

create index stripe_prices_tier_idx on private.stripe_prices (tier);

alter table private.stripe_prices enable row level security;

comment on table private.stripe_prices is
  'The tier that each of Stripe''s prices buys. Operators edit it; what prices name themselves is added.';
comment on column private.stripe_prices.tier is
  'Null: the price is not of this platform. Subscriptions of such prices alone are ignored.';
comment on column private.stripe_prices.source is
  'operator: goes before whatever Stripe''s objects name. stripe: the tier last named by the price or its product.';
comment on column private.stripe_prices.observed_at is 'When it was named, by Stripe''s clock; or when an operator wrote it.';

insert into private.stripe_prices (price_id, tier)
values
  ('price_example_starter_monthly', 'starter'),
  ('price_example_professional_monthly', 'professional'),
  ('price_example_enterprise_yearly', 'enterprise'),
  ('price_example_of_another_product', null);

create table private.stripe_customers (
  customer_id text primary key,
  account_id uuid references public.accounts (id) on delete cascade,
  created_at timestamptz,
  deleted boolean not null default false,
  livemode boolean,
  recorded_at timestamptz not null default now()
);

create index stripe_customers_account_id_idx on private.stripe_customers (account_id);
create index stripe_customers_unlinked_idx on private.stripe_customers (recorded_at)
  where account_id is null;
create index stripe_customers_livemode_idx on private.stripe_customers (livemode) where livemode;

alter table private.stripe_customers enable row level security;

comment on table private.stripe_customers is
  'Stripe''s customers, and whose they are. An account may have several; accounts.stripe_customer_id is one of them.';
comment on column private.stripe_customers.account_id is 'Null until the customer is linked to an account.';
comment on column private.stripe_customers.created_at is 'By Stripe''s clock; null until Stripe describes the customer.';
comment on column private.stripe_customers.livemode is 'Null until Stripe says so. With one that is live, events in test mode are refused.';
comment on column private.stripe_customers.recorded_at is 'Customers that stay without an account are deleted by cleanup_expired_data().';

create table private.stripe_subscriptions (
  subscription_id text primary key,
  customer_id text not null references private.stripe_customers (customer_id) on delete cascade,
  created_at timestamptz not null,
  observed_at timestamptz not null,
  event_id text,
  status text not null,
  begun boolean not null,
  tier text references private.tiers (tier),
  price_id text,
  trial_started_at timestamptz,
  trial_ends_at timestamptz,
  period_start timestamptz,
  period_end timestamptz,
  cancelled_at timestamptz,
  constraint stripe_subscriptions_status_known check (
    status in ('trialing', 'active', 'past_due', 'paused', 'incomplete', 'cancelled')
  )
);

create index stripe_subscriptions_customer_id_idx on private.stripe_subscriptions (customer_id);
create index stripe_subscriptions_tier_idx on private.stripe_subscriptions (tier);

alter table private.stripe_subscriptions enable row level security;

comment on table private.stripe_subscriptions is 'The newest snapshot of each of Stripe''s subscriptions.';
comment on column private.stripe_subscriptions.created_at is 'When Stripe made the subscription.';
comment on column private.stripe_subscriptions.observed_at is 'When it was as it is here, by Stripe''s clock, in whole seconds.';
comment on column private.stripe_subscriptions.event_id is 'The event that the snapshot is from; null where the object was fetched.';
comment on column private.stripe_subscriptions.status is 'In the spelling of public.subscriptions.';
comment on column private.stripe_subscriptions.begun is 'It got past its first payment: not so while incomplete or incomplete_expired.';
comment on column private.stripe_subscriptions.tier is 'Null where neither the event nor an earlier one named it.';

insert into private.stripe_customers (customer_id, account_id, created_at, deleted)
select customer_id,
       max(account_id::text)::uuid,
       max(object_created) filter (where kind = 'customer'),
       coalesce(bool_or(final) filter (where kind = 'customer'), false)
  from private.stripe_objects
 group by customer_id;

insert into private.stripe_customers (customer_id, account_id)
select stripe_customer_id, id from public.accounts where stripe_customer_id is not null
on conflict (customer_id) do update set account_id = excluded.account_id;

insert into private.stripe_subscriptions (
  subscription_id, customer_id, created_at, observed_at, event_id, status, begun, tier, price_id,
  trial_started_at, trial_ends_at, period_start, period_end, cancelled_at
)
select id, customer_id, object_created, said_at, event_id, status, begun, tier, price_id,
       trial_started_at, trial_ends_at, period_start, period_end, cancelled_at
  from private.stripe_objects
 where kind = 'subscription';

-- Its rows are in the tables above, but for the invoices. The functions are replaced by
-- sql/repeatable/.
-- squawk-ignore ban-drop-function
drop function if exists private.read_stripe_event(jsonb);
-- squawk-ignore ban-drop-function
drop function if exists private.apply_stripe_objects(uuid);
-- squawk-ignore ban-drop-table
-- migrate: allow drop: no client has a privilege on it; its rows were copied above
drop table private.stripe_objects;

alter table private.stripe_events
  add column customer_id text,
  add column livemode boolean,
  add column error text,
  add column payload jsonb,
  -- squawk-ignore ban-drop-constraint
  drop constraint stripe_events_outcome_known,
  add constraint stripe_events_outcome_known check (
    outcome in ('applied', 'stale', 'ambiguous', 'unlinked', 'ignored', 'refused')
  ) not valid;

-- migrate: allow create-index: 90 days of events, and only Stripe's webhooks write, which are sent again
create index stripe_events_unlinked_idx on private.stripe_events (customer_id) where outcome = 'unlinked';
-- migrate: allow create-index: 90 days of events, and only Stripe's webhooks write, which are sent again
create index stripe_events_refused_idx on private.stripe_events (received_at) where outcome = 'refused';

comment on table private.stripe_events is
  'The events that handle_stripe_event took, each once, with what became of it. To replay one: select handle_stripe_event(payload).';
comment on column private.stripe_events.outcome is
  'applied; stale: something newer was known; ambiguous: another event of the same second may be newer; unlinked: kept until the customer is linked to an account; ignored: means nothing here; refused: see error.';
comment on column private.stripe_events.error is 'Why it was refused, and what to do.';
comment on column private.stripe_events.payload is
  'The event, reduced to what handle_stripe_event reads: no name, email, address or card. Null for a type that means nothing here.';

insert into private.retention (table_name, keep_days)
values ('stripe_customers', 90);

comment on column private.retention.keep_days is
  'Days after they were written; for backups and API keys, days after their expires_at; of stripe_customers only those without an account.';
