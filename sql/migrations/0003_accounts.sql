-- Customer accounts, one per user of Supabase Auth, under the same id. Deleting the user deletes the
-- account and all that belongs to it (the audit log excepted); the triggers on instances and
-- subscriptions refuse that while something still runs or is still billed.

create table public.accounts (
  id uuid primary key references auth.users (id) on delete cascade,
  email text not null,
  full_name text,
  company_name text,
  stripe_customer_id text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint accounts_email_not_empty check (btrim(email) <> ''),
  constraint accounts_full_name_length check (char_length(full_name) <= 200),
  constraint accounts_company_name_length check (char_length(company_name) <= 200),
  constraint accounts_stripe_customer_id_key unique (stripe_customer_id),
  constraint accounts_stripe_customer_id_not_empty check (stripe_customer_id <> '')
);

create unique index accounts_email_key on public.accounts (lower(email));

alter table public.accounts enable row level security;

comment on table public.accounts is 'Customer accounts, one per auth user.';
comment on column public.accounts.id is 'The id of the auth user; what account_id means in every other table.';
comment on column public.accounts.email is 'Follows the auth user''s email; unique whatever its case.';
comment on column public.accounts.stripe_customer_id is 'Written by stripe-handler only.';

-- Users who signed up before this migration. Where auth.users may not be read (not the case on
-- Supabase), they get their account when their email next changes.
do $$
begin
  if pg_catalog.has_table_privilege('auth.users', 'select') then
    insert into public.accounts (id, email, created_at)
    select id, btrim(email), coalesce(created_at, now())
      from auth.users
     where btrim(email) <> ''
    on conflict do nothing;
  end if;
end
$$;
