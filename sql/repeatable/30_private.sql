-- The private tables: no API role reaches them, service_role included. What a service needs of them is
-- granted to its login role by name; these policies bound what could be granted.

revoke all on schema private from public, anon, authenticated, service_role;
revoke all on
  private.tiers,
  private.retention,
  private.instance_status_transitions,
  private.reserved_subdomains,
  private.released_subdomains,
  private.instance_secrets,
  private.provisioning,
  private.api_key_hashes,
  private.usage_events,
  private.database_backups,
  private.erasures,
  private.stripe_events,
  private.stripe_prices,
  private.stripe_customers,
  private.stripe_subscriptions
from public, anon, authenticated, service_role;

create or replace trigger tiers_bound_json
  before insert or update of features on private.tiers
  for each row execute function private.bound_json('65536', 'features');

create or replace trigger instance_secrets_set_updated_at
  before update on private.instance_secrets
  for each row execute function private.set_updated_at();

drop policy if exists "services read the tier catalogue" on private.tiers;
create policy "services read the tier catalogue" on private.tiers
  for select to platform_service
  using (true);

drop policy if exists "services read the retention" on private.retention;
create policy "services read the retention" on private.retention
  for select to platform_service
  using (true);

drop policy if exists "services read the transitions" on private.instance_status_transitions;
create policy "services read the transitions" on private.instance_status_transitions
  for select to platform_service
  using (true);

drop policy if exists "services read the reserved subdomains" on private.reserved_subdomains;
create policy "services read the reserved subdomains" on private.reserved_subdomains
  for select to platform_service
  using (true);

drop policy if exists "services read the released subdomains" on private.released_subdomains;
create policy "services read the released subdomains" on private.released_subdomains
  for select to platform_service
  using (true);

drop policy if exists "services keep the secrets of instances" on private.instance_secrets;
create policy "services keep the secrets of instances" on private.instance_secrets
  for all to platform_service
  using (true)
  with check (true);

-- Of an earlier release: no service may insert or delete.
drop policy if exists "services read and write the work on instances" on private.provisioning;

drop policy if exists "services read the work on instances" on private.provisioning;
create policy "services read the work on instances" on private.provisioning
  for select to platform_service
  using (true);

drop policy if exists "services update the work on instances" on private.provisioning;
create policy "services update the work on instances" on private.provisioning
  for update to platform_service
  using (true)
  with check (true);

drop policy if exists "services look keys up by their hash" on private.api_key_hashes;
create policy "services look keys up by their hash" on private.api_key_hashes
  for select to platform_service
  using (true);

drop policy if exists "services read the events that were counted" on private.usage_events;
create policy "services read the events that were counted" on private.usage_events
  for select to platform_service
  using (true);

create or replace trigger database_backups_bound_json
  before insert or update of row_counts on private.database_backups
  for each row execute function private.bound_json('65536', 'row_counts');

drop policy if exists "services read the backups of the database" on private.database_backups;
create policy "services read the backups of the database" on private.database_backups
  for select to platform_service
  using (true);

drop policy if exists "services read the erasures" on private.erasures;
create policy "services read the erasures" on private.erasures
  for select to platform_service
  using (true);

drop policy if exists "services update the erasures" on private.erasures;
create policy "services update the erasures" on private.erasures
  for update to platform_service
  using (true)
  with check (true);

drop policy if exists "services read Stripe's events" on private.stripe_events;
create policy "services read Stripe's events" on private.stripe_events
  for select to platform_service
  using (true);

drop policy if exists "services read Stripe's prices" on private.stripe_prices;
create policy "services read Stripe's prices" on private.stripe_prices
  for select to platform_service
  using (true);

drop policy if exists "services read Stripe's customers" on private.stripe_customers;
create policy "services read Stripe's customers" on private.stripe_customers
  for select to platform_service
  using (true);

drop policy if exists "services read Stripe's subscriptions" on private.stripe_subscriptions;
create policy "services read Stripe's subscriptions" on private.stripe_subscriptions
  for select to platform_service
  using (true);
