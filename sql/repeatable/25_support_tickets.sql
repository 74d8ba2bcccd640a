-- support_tickets: opened, edited and closed by customers, except for what the staff decides (any other
-- status, assignee, resolution); worked on through admin-dashboard.

create or replace function private.check_ticket_priority() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if new.priority in ('high', 'urgent') and not public.check_user_permission(new.account_id, 'priority_support') then
    raise exception 'priority % needs a plan with priority support', new.priority
      using errcode = 'check_violation',
            hint = 'Choose low or normal, or upgrade the plan (priority_support in the subscription''s features).';
  end if;
  return null;
end
$$;

create or replace function private.check_ticket_status() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if private.acting_as_user() and new.status <> 'closed' then
    raise exception 'users cannot set the status of a ticket to %', new.status
      using errcode = 'insufficient_privilege',
            hint = 'Close the ticket, or open a new one.';
  end if;
  return null;
end
$$;

create or replace function private.note_resolution() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if new.status in ('resolved', 'closed') then
    new.resolved_at := coalesce(new.resolved_at, now());
  else
    new.resolved_at := null;
  end if;
  return new;
end
$$;

comment on function private.check_ticket_priority() is
  'high and urgent need a plan with priority_support.';
comment on function private.check_ticket_status() is
  'A user may close a ticket; any other status is the staff''s to set.';
comment on function private.note_resolution() is
  'resolved_at is when the ticket was resolved or closed, and null while it is open.';

revoke all on function
  private.check_ticket_priority(),
  private.check_ticket_status(),
  private.note_resolution()
from public, anon, authenticated, service_role;

create or replace trigger support_tickets_note_resolution
  before insert or update of status, resolved_at on public.support_tickets
  for each row execute function private.note_resolution();

create or replace trigger support_tickets_set_updated_at
  before update on public.support_tickets
  for each row execute function private.set_updated_at();

create or replace trigger support_tickets_check_first_priority
  after insert on public.support_tickets
  for each row execute function private.check_ticket_priority();

create or replace trigger support_tickets_check_priority
  after update of priority on public.support_tickets
  for each row when (old.priority is distinct from new.priority)
  execute function private.check_ticket_priority();

create or replace trigger support_tickets_check_status
  after update of status on public.support_tickets
  for each row when (old.status is distinct from new.status)
  execute function private.check_ticket_status();

revoke all on public.support_tickets from public, anon, authenticated, service_role;
grant
  select,
  insert (account_id, instance_id, subject, description, priority),
  update (subject, description, priority, status)
on public.support_tickets to authenticated;
grant select, insert, update, delete on public.support_tickets to service_role;

drop policy if exists "users read their own tickets" on public.support_tickets;
create policy "users read their own tickets" on public.support_tickets
  for select to authenticated
  using (account_id = (select auth.uid()));

drop policy if exists "users open tickets of their own" on public.support_tickets;
create policy "users open tickets of their own" on public.support_tickets
  for insert to authenticated
  with check (account_id = (select auth.uid()));

drop policy if exists "users edit their own tickets" on public.support_tickets;
create policy "users edit their own tickets" on public.support_tickets
  for update to authenticated
  using (account_id = (select auth.uid()))
  with check (account_id = (select auth.uid()));

drop policy if exists "services read every ticket" on public.support_tickets;
create policy "services read every ticket" on public.support_tickets
  for select to platform_service
  using (true);

drop policy if exists "services open tickets" on public.support_tickets;
create policy "services open tickets" on public.support_tickets
  for insert to platform_service
  with check (true);

drop policy if exists "services work on every ticket" on public.support_tickets;
create policy "services work on every ticket" on public.support_tickets
  for update to platform_service
  using (true)
  with check (true);

drop policy if exists "service_role has full access" on public.support_tickets;
create policy "service_role has full access" on public.support_tickets
  for all to service_role
  using (true)
  with check (true);
