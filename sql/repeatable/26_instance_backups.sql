-- instance_backups: a user may ask for a manual one; the instance-provisioner does the rest.

create or replace function private.apply_backup_retention() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  new.retention_days := coalesce(
    new.retention_days,
    (
      select tiers.backup_retention_days
        from public.instances
        join public.subscriptions using (account_id)
        join private.tiers using (tier)
       where instances.id = new.instance_id and account_id = new.account_id and in_force
    ),
    -- No such instance of this account: a value that lets the policy or the foreign key say so.
    1
  );
  return new;
end
$$;

comment on function private.apply_backup_retention() is
  'retention_days comes from the tier unless stated.';

revoke all on function private.apply_backup_retention() from public, anon, authenticated, service_role;

create or replace trigger instance_backups_apply_retention
  before insert on public.instance_backups
  for each row execute function private.apply_backup_retention();

create or replace trigger instance_backups_set_updated_at
  before update on public.instance_backups
  for each row execute function private.set_updated_at();

revoke all on public.instance_backups from public, anon, authenticated, service_role;
grant
  select,
  insert (account_id, instance_id, backup_type)
on public.instance_backups to authenticated;
grant select, insert, update, delete on public.instance_backups to service_role;

drop policy if exists "users read their own backups" on public.instance_backups;
create policy "users read their own backups" on public.instance_backups
  for select to authenticated
  using (account_id = (select auth.uid()));

drop policy if exists "users request manual backups of their own" on public.instance_backups;
create policy "users request manual backups of their own" on public.instance_backups
  for insert to authenticated
  with check (account_id = (select auth.uid()) and backup_type = 'manual');

drop policy if exists "services read every backup" on public.instance_backups;
create policy "services read every backup" on public.instance_backups
  for select to platform_service
  using (true);

drop policy if exists "services create backups" on public.instance_backups;
create policy "services create backups" on public.instance_backups
  for insert to platform_service
  with check (true);

drop policy if exists "services update every backup" on public.instance_backups;
create policy "services update every backup" on public.instance_backups
  for update to platform_service
  using (true)
  with check (true);

drop policy if exists "service_role has full access" on public.instance_backups;
create policy "service_role has full access" on public.instance_backups
  for all to service_role
  using (true)
  with check (true);
