-- What Stripe said, as far as the platform acts on it. Events arrive late, twice and in any order: the
-- newest word per object is kept here, and an account's rows follow from these words alone
-- (docs/decisions/0006-stripe.md).

create table private.stripe_events (
  event_id text primary key,
  type text not null,
  outcome text not null,
  created_at timestamptz not null,
  received_at timestamptz not null default now(),
  constraint stripe_events_outcome_known check (outcome in ('applied', 'stale', 'unlinked', 'ignored'))
);

alter table private.stripe_events enable row level security;

comment on table private.stripe_events is
  'The events that handle_stripe_event took, each once. Without their content, which is personal.';
comment on column private.stripe_events.outcome is
  'applied; stale: something newer was known; unlinked: kept until the customer is linked to an account; ignored: of a type that means nothing here.';
comment on column private.stripe_events.created_at is 'By Stripe''s clock.';

create table private.stripe_objects (
  kind text not null,
  id text collate "C" not null,
  customer_id text not null,
  account_id uuid references public.accounts (id) on delete cascade,
  -- Which word is newer: the comparison of these five. Deletion is the last word; of two in the same
  -- second the later step of the object's life.
  final boolean not null,
  object_created timestamptz not null,
  said_at timestamptz not null,
  -- squawk-ignore prefer-bigint-over-int
  step integer not null,
  event_id text collate "C" not null,
  status text,
  begun boolean not null,
  tier text references private.tiers (tier),
  price_id text,
  trial_started_at timestamptz,
  trial_ends_at timestamptz,
  period_start timestamptz,
  period_end timestamptz,
  cancelled_at timestamptz,
  primary key (kind, id),
  constraint stripe_objects_kind_known check (kind in ('customer', 'subscription', 'invoice')),
  constraint stripe_objects_subscription_is_whole check (
    kind <> 'subscription' or (status is not null and tier is not null)
  )
);

create index stripe_objects_account_id_idx on private.stripe_objects (account_id);
create index stripe_objects_customer_id_idx on private.stripe_objects (customer_id);
create index stripe_objects_tier_idx on private.stripe_objects (tier);

alter table private.stripe_objects enable row level security;

comment on table private.stripe_objects is
  'The newest word of Stripe on each customer and subscription, and on the last invoice of each subscription.';
comment on column private.stripe_objects.id is 'Stripe''s; an invoice goes by the subscription that it bills, so that only the last one counts.';
comment on column private.stripe_objects.account_id is 'Null until the customer is linked to an account.';
comment on column private.stripe_objects.final is 'The object is deleted, or the subscription over.';
comment on column private.stripe_objects.object_created is 'When Stripe made the object.';
comment on column private.stripe_objects.said_at is 'When Stripe made the event.';
comment on column private.stripe_objects.step is 'How far the object is in its life: of two words of one second the further counts.';
comment on column private.stripe_objects.status is
  'Of a subscription, in the platform''s spelling; of an invoice, paid or failed.';
comment on column private.stripe_objects.begun is
  'The subscription got past its first payment; not so: incomplete and incomplete_expired.';
