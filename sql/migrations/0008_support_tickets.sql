-- Support tickets: opened and edited by customers, worked on through the admin dashboard.

create table public.support_tickets (
  id uuid primary key default gen_random_uuid(),
  account_id uuid not null default auth.uid() references public.accounts (id) on delete cascade,
  instance_id uuid,
  subject text not null,
  description text not null,
  priority text not null default 'normal',
  status text not null default 'open',
  assignee text,
  resolution text,
  resolved_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  -- With account_id in the key, a ticket cannot name another customer's instance.
  constraint support_tickets_instance_fkey foreign key (instance_id, account_id)
    references public.instances (id, account_id) on delete set null (instance_id),
  constraint support_tickets_subject_length check (
    btrim(subject) <> '' and char_length(subject) <= 200
  ),
  constraint support_tickets_description_length check (
    btrim(description) <> '' and char_length(description) <= 20000
  ),
  constraint support_tickets_priority_known check (priority in ('low', 'normal', 'high', 'urgent')),
  constraint support_tickets_status_known check (
    status in ('open', 'in_progress', 'resolved', 'closed')
  )
);

create index support_tickets_account_id_idx on public.support_tickets (account_id);
create index support_tickets_instance_id_account_id_idx on public.support_tickets (instance_id, account_id);

alter table public.support_tickets enable row level security;

comment on table public.support_tickets is 'Support tickets of customers.';
comment on column public.support_tickets.instance_id is 'One of the account''s own, if any; null once that is deleted.';
comment on column public.support_tickets.priority is
  'high and urgent need priority_support in the features of the account''s live subscription.';
comment on column public.support_tickets.assignee is 'Who of the staff works on it.';
comment on column public.support_tickets.resolved_at is
  'Set when the status becomes resolved or closed, cleared when it is opened again.';
