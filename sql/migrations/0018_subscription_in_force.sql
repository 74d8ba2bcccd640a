-- Which plan an account has is resolved once, where subscriptions are written, and marked there:
-- whoever asks reads the mark by the account. sql/repeatable/21_subscriptions.sql keeps it.

alter table public.subscriptions add column in_force boolean not null default false;

-- migrate: allow create-index: one row per customer, and Stripe's webhooks are the only writers
create unique index subscriptions_in_force_key on public.subscriptions (account_id) where in_force;

comment on column public.subscriptions.in_force is
  'The account''s plan: its one subscription that is not cancelled, else the one cancelled last. Kept by a trigger.';
