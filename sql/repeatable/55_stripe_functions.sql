-- Stripe's door: the one way in which subscriptions change. docs/decisions/0006-stripe.md says why.
--
-- An event carries a snapshot of a customer or of a subscription. The newest snapshot of each is kept in
-- private.stripe_customers and private.stripe_subscriptions, and the rows of an account follow from
-- these alone: recorded in any order, any number of times, they end in the same rows.

-- ---- writing

-- Its columns are others than before.
-- squawk-ignore ban-drop-function
drop function if exists private.rank_stripe_subscriptions(uuid);
-- The caller has locked the account.
create function private.rank_stripe_subscriptions(account uuid)
returns table (
  subscription_id text, customer_id text, in_force boolean, tier text, status text, unpaid boolean, price_id text,
  trial_started_at timestamptz, trial_ends_at timestamptz, period_start timestamptz, period_end timestamptz,
  cancelled_at timestamptz
)
language plpgsql stable rows 2 set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
    with ranked as (
      select snapshot.*,
             coalesce(snapshot.tier, price.tier) as known_tier,
             row_number() over best = 1
               and snapshot.status <> 'cancelled'
               and not exists (
                 select from public.subscriptions as other
                  where other.account_id = account
                    and other.status <> 'cancelled'
                    and not exists (
                      select from private.stripe_subscriptions as known
                       where known.subscription_id = other.stripe_subscription_id
                    )
               ) as in_force,
             first_value(snapshot.created_at) over best as best_created_at
        from private.stripe_customers as customer
        join private.stripe_subscriptions as snapshot using (customer_id)
        left join private.stripe_prices as price using (price_id)
       where customer.account_id = account
         and (snapshot.tier is not null or price.tier is not null)
      window best as (
        order by array_position(
                   array['active', 'past_due', 'paused', 'incomplete', 'cancelled'],
                   case snapshot.status when 'trialing' then 'active' else snapshot.status end
                 ),
                 snapshot.created_at desc, snapshot.subscription_id
      )
    )
    select subscription_id, customer_id, in_force, known_tier,
           case when in_force then status else 'cancelled' end,
           in_force and unpaid,
           price_id, trial_started_at, trial_ends_at, period_start, period_end,
           case when in_force or status = 'cancelled' then cancelled_at else greatest(created_at, best_created_at) end
      from ranked;
end
$$;

create or replace function private.write_stripe_subscriptions(account uuid) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  change record;
  changed boolean := false;
begin
  update public.subscriptions as plan
     set status = 'cancelled'
   where plan.account_id = account
     and plan.status <> 'cancelled'
     and not exists (
       select from private.stripe_subscriptions as known
        where known.subscription_id = plan.stripe_subscription_id
     )
     and exists (
       select
         from private.stripe_customers as customer
         join private.stripe_subscriptions as snapshot using (customer_id)
        where customer.account_id = account
          and snapshot.begun
          and (snapshot.status <> 'cancelled' or snapshot.cancelled_at > plan.created_at)
     );

  -- Not an upsert: that puts each row through the triggers and checks of an insert first.
  for change in
    select ranked.*, plan.id, plan.status as status_before
      from private.rank_stripe_subscriptions(account) as ranked
      left join public.subscriptions as plan on plan.stripe_subscription_id = ranked.subscription_id
     where plan.id is null
        or (
          plan.tier, plan.status, plan.unpaid, plan.stripe_price_id, plan.trial_started_at, plan.trial_ends_at,
          plan.current_period_start, plan.current_period_end, plan.cancelled_at
        ) is distinct from (
          ranked.tier, ranked.status, ranked.unpaid, ranked.price_id, ranked.trial_started_at, ranked.trial_ends_at,
          ranked.period_start, ranked.period_end, ranked.cancelled_at
        )
     order by ranked.in_force  -- the one that is no longer in force makes room first
  loop
    changed := changed or change.status is distinct from change.status_before;
    if change.id is null then
      insert into public.subscriptions (
        account_id, stripe_subscription_id, tier, status, unpaid, stripe_price_id,
        trial_started_at, trial_ends_at, current_period_start, current_period_end, cancelled_at
      )
      values (
        account, change.subscription_id, change.tier, change.status, change.unpaid, change.price_id,
        change.trial_started_at, change.trial_ends_at, change.period_start, change.period_end,
        change.cancelled_at
      );
    else
      update public.subscriptions
         set tier = change.tier,
             status = change.status,
             unpaid = change.unpaid,
             stripe_price_id = change.price_id,
             trial_started_at = change.trial_started_at,
             trial_ends_at = change.trial_ends_at,
             current_period_start = change.period_start,
             current_period_end = change.period_end,
             cancelled_at = change.cancelled_at
       where id = change.id;
    end if;
  end loop;
  return changed;
end
$$;

create or replace function private.renew_stripe_subscription(subscription text) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  update public.subscriptions as plan
     set tier = snapshot.tier,
         stripe_price_id = snapshot.price_id,
         trial_started_at = snapshot.trial_started_at,
         trial_ends_at = snapshot.trial_ends_at,
         current_period_start = snapshot.period_start,
         current_period_end = snapshot.period_end
    from private.stripe_subscriptions as snapshot
   where snapshot.subscription_id = subscription
     and plan.stripe_subscription_id = subscription
     and (
       plan.tier, plan.stripe_price_id, plan.trial_started_at, plan.trial_ends_at,
       plan.current_period_start, plan.current_period_end
     ) is distinct from (
       snapshot.tier, snapshot.price_id, snapshot.trial_started_at, snapshot.trial_ends_at,
       snapshot.period_start, snapshot.period_end
     );
end
$$;

create or replace function private.write_stripe_customer(account uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  update public.accounts
     set stripe_customer_id = chosen.customer_id
    from (values (account)) as given (account_id)
    left join lateral (
      select customer.customer_id
        from private.stripe_customers as customer
       where customer.account_id = given.account_id and not customer.deleted
       order by customer.customer_id is distinct from (
                  select snapshot.customer_id
                    from public.subscriptions as plan
                    join private.stripe_subscriptions as snapshot
                      on snapshot.subscription_id = plan.stripe_subscription_id
                   where plan.account_id = given.account_id and plan.status <> 'cancelled'
                ),
                customer.created_at desc nulls first, customer.customer_id
       limit 1
    ) as chosen on true
   where accounts.id = given.account_id
     and accounts.stripe_customer_id is distinct from chosen.customer_id;
end
$$;

-- The caller has locked the account.
create or replace function private.write_stripe_account(account uuid, linked boolean) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if private.write_stripe_subscriptions(account) or linked then
    perform private.write_stripe_customer(account);
  end if;
  if not linked then
    return;
  end if;
  update private.stripe_events as event
     set outcome = 'applied'
    from private.stripe_customers as customer
   where customer.account_id = account
     and event.customer_id = customer.customer_id
     and event.outcome = 'unlinked'
     and event.error is null
     and not exists (
       select from private.stripe_subscriptions as snapshot
        where snapshot.subscription_id = event.payload #>> '{data,object,id}'
          and snapshot.tier is null
          and snapshot.status <> 'cancelled'
     );
end
$$;

-- accounts.stripe_customer_id is the link: who writes it links the customer, also away from another
-- account. The subscriptions that the other one had by it end there.
create or replace function private.link_stripe_customer() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  other uuid := (
    select account_id from private.stripe_customers where customer_id = new.stripe_customer_id
  );
begin
  if other = new.id then
    return null;
  end if;
  insert into private.stripe_customers (customer_id, account_id)
  values (new.stripe_customer_id, new.id)
  on conflict (customer_id) do update set account_id = excluded.account_id;
  update public.subscriptions as plan
     set status = 'cancelled', stripe_subscription_id = null
    from private.stripe_subscriptions as snapshot
   where snapshot.customer_id = new.stripe_customer_id
     and plan.stripe_subscription_id = snapshot.subscription_id
     and plan.account_id <> new.id;
  if other is not null then
    perform from public.accounts where id = other for no key update;
    perform private.write_stripe_account(other, true);
  end if;
  perform private.write_stripe_account(new.id, true);
  return null;
end
$$;

create or replace trigger accounts_link_stripe_customer
  after insert or update of stripe_customer_id on public.accounts
  for each row when (new.stripe_customer_id is not null)
  execute function private.link_stripe_customer();

-- ---- recording

-- Never by email, which anybody can state.
create or replace function private.stripe_account(object jsonb) returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  customer constant text := object ->> 'customer';
  accounts uuid[];
  sources text[];
begin
  select array_agg(account_id), array_agg(source)
    into accounts, sources
    from (
      select id, 'accounts.stripe_customer_id'
        from public.accounts where stripe_customer_id = customer
      union all
      select account_id, 'an earlier event of the customer'
        from private.stripe_customers where customer_id = customer and account_id is not null
      union all
      select account_id, 'subscriptions.stripe_subscription_id'
        from public.subscriptions where stripe_subscription_id = object ->> 'id'
      union all
      select account.id, 'metadata'
        from unnest(array[object #>> '{metadata,account_id}', object #>> '{metadata,supabase_user_id}']) as value
        join public.accounts as account
          on account.id = case when value ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then value::uuid end
    ) as claim (account_id, source);
  if accounts[1] <> any (accounts) then
    raise exception 'Stripe % % belongs to several accounts: %', object ->> 'object', object ->> 'id',
                    (select string_agg(format('%s (%s)', claim.account, claim.source), ', ')
                       from unnest(accounts, sources) as claim (account, source))
      using errcode = 'integrity_constraint_violation',
            hint = 'Correct the wrong one: metadata, in Stripe; accounts.stripe_customer_id, by clearing it there and then setting it at the right account; subscriptions.stripe_subscription_id, by clearing it. Then replay the event.';
  end if;
  return accounts[1];
end
$$;

create or replace function private.record_stripe_customer(object jsonb, account uuid) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  customer constant text := object ->> 'customer';
  is_customer constant boolean := object ->> 'object' = 'customer';
  live constant boolean := (object ->> 'livemode')::boolean;
begin
  if not is_customer and exists (
    select from private.stripe_customers
     where customer_id = customer
       and account_id is not distinct from account
       and livemode is not distinct from live
  ) then
    return false;
  end if;
  insert into private.stripe_customers as known (customer_id, account_id, created_at, deleted, livemode)
  values (
    customer,
    account,
    case when is_customer then to_timestamp((object ->> 'created')::bigint) end,
    is_customer and object ->> 'deleted' is not distinct from 'true',
    live
  )
  on conflict (customer_id) do update
    set account_id = coalesce(excluded.account_id, known.account_id),
        created_at = coalesce(excluded.created_at, known.created_at),
        deleted = known.deleted or excluded.deleted,
        livemode = coalesce(excluded.livemode, known.livemode);
  return true;
end
$$;

create or replace function private.record_stripe_prices(object jsonb, seen_at timestamptz) returns void
language sql set search_path = pg_catalog, pg_temp
as $$
  insert into private.stripe_prices as known (price_id, tier, source, observed_at)
  select distinct on (price_id) price_id, tier, 'stripe', seen_at
    from jsonb_array_elements(object #> '{items,data}') as item
   cross join lateral (
     select item #>> '{price,id}',
            private.named_tier(array[
              item #>> '{price,metadata,tier}', item #>> '{price,lookup_key}', item #>> '{price,product,metadata,tier}'
            ])
   ) as named (price_id, tier)
   where price_id <> '' and tier is not null
  on conflict (price_id) do update
    set tier = excluded.tier, observed_at = excluded.observed_at
    where known.source = 'stripe' and known.observed_at < excluded.observed_at
$$;

create or replace function private.record_stripe_subscription(
  object jsonb, seen_at timestamptz, account uuid, payload jsonb, out outcome text, out only_renewed boolean
)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  snapshot private.stripe_subscriptions := private.read_stripe_subscription(object, seen_at);
  known private.stripe_subscriptions;
  later boolean;
begin
  snapshot.event_id := payload ->> 'id';
  select * into known
    from private.stripe_subscriptions where subscription_id = snapshot.subscription_id;
  if found then
    if known.customer_id <> snapshot.customer_id then
      raise exception 'Stripe subscription % is of customer %, not of %',
                      snapshot.subscription_id, known.customer_id, snapshot.customer_id
        using errcode = 'integrity_constraint_violation',
              hint = 'Stripe moves no subscription to another customer: find out where this comes from.';
    end if;
    snapshot.tier := coalesce(snapshot.tier, known.tier);
    later := known.status <> 'cancelled' and snapshot.observed_at > known.observed_at  -- the usual event
             or private.is_later_stripe_snapshot(snapshot, known, payload);
    if later is not true then
      outcome := case when later is null then 'ambiguous' else 'stale' end;
      return;
    end if;
  end if;

  if snapshot.tier is null and snapshot.status <> 'cancelled' and account is not null then
    if (
      select bool_and(price.source = 'operator' and price.tier is null)
        from jsonb_array_elements(object #> '{items,data}') as item
        left join private.stripe_prices as price on price.price_id = item #>> '{price,id}'
    ) then
      outcome := 'ignored';
      return;
    end if;
    raise exception 'Stripe subscription % names no known tier', snapshot.subscription_id
      using errcode = 'invalid_parameter_value',
            hint = format(
              'Insert its price, %s, into private.stripe_prices, with a null tier if it is of another product, and replay the event. Or give the price a metadata.tier or a lookup_key that begins with the tier.',
              snapshot.price_id
            );
  end if;

  if known.subscription_id is null then
    insert into private.stripe_subscriptions select snapshot.*;
  else
    update private.stripe_subscriptions
       set observed_at = snapshot.observed_at,
           event_id = snapshot.event_id,
           status = snapshot.status,
           unpaid = snapshot.unpaid,
           begun = snapshot.begun,
           tier = snapshot.tier,
           price_id = snapshot.price_id,
           trial_started_at = snapshot.trial_started_at,
           trial_ends_at = snapshot.trial_ends_at,
           period_start = snapshot.period_start,
           period_end = snapshot.period_end,
           cancelled_at = snapshot.cancelled_at
     where subscription_id = snapshot.subscription_id;
  end if;
  if (snapshot.price_id, snapshot.tier) is distinct from (known.price_id, known.tier) then
    perform private.record_stripe_prices(object, seen_at);
  end if;
  outcome := 'applied';
  only_renewed := (snapshot.status, snapshot.unpaid, snapshot.begun, snapshot.cancelled_at, false)
                  is not distinct from (known.status, known.unpaid, known.begun, known.cancelled_at, known.tier is null);
end
$$;

create or replace function private.record_stripe_object(
  object jsonb, seen_at timestamptz, account uuid, payload jsonb
) returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  outcome text := 'applied';
  only_renewed boolean := false;
  linked boolean;
  recorded record;
begin
  -- Before the first row that refers to it: two that share that reference's lock could not both go on to
  -- write the account.
  perform from public.accounts where id = account for no key update;
  linked := private.record_stripe_customer(object, account);
  if object ->> 'object' = 'subscription' then
    recorded := private.record_stripe_subscription(object, seen_at, account, payload);
    outcome := recorded.outcome;
    only_renewed := recorded.only_renewed;
  end if;
  if account is null then
    return case outcome when 'applied' then 'unlinked' else outcome end;
  elsif outcome <> 'applied' and not linked then
    return outcome;
  end if;
  perform set_config(
    'mindroom.audit_reason',
    case
      when payload is null then format('Stripe %s %s', object ->> 'object', object ->> 'id')
      else format('Stripe event %s (%s)', payload ->> 'id', payload ->> 'type')
    end,
    true
  );
  if only_renewed and not linked and payload is not null then
    perform private.renew_stripe_subscription(object ->> 'id');
  else
    perform private.write_stripe_account(account, linked);
  end if;
  perform set_config('mindroom.audit_reason', '', true);
  return outcome;
end
$$;

-- ---- the doors

create or replace function public.handle_stripe_event(event jsonb) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  hint constant text := 'Pass the event as Stripe sent it, after checking its signature.';
  payload constant jsonb := private.stripe_payload(event);
  object constant jsonb := payload #> '{data,object}';
  kept jsonb;
  created_at timestamptz;
  account uuid;
  located boolean := false;
  outcome text := 'ignored';
  error text;
  error_hint text;
begin
  if event is null then
    raise exception 'event must not be null' using errcode = 'null_value_not_allowed', hint = hint;
  end if;
  if (
    jsonb_typeof(event -> 'id') = 'string' and length(event ->> 'id') between 1 and 255
    and jsonb_typeof(event -> 'type') = 'string' and length(event ->> 'type') between 1 and 255
    and event -> 'created' between '0' and '253000000000'
    and jsonb_typeof(event #> '{data,object}') = 'object'
  ) is not true then
    raise exception 'this is no event of Stripe''s: id, type, created or data.object is missing or malformed'
      using errcode = 'invalid_parameter_value', hint = hint;
  end if;
  created_at := to_timestamp((event -> 'created')::bigint);

  -- Objects of a customer take turns: what another transaction has stored is seen here, or sees this.
  perform pg_advisory_xact_lock(
    hashtextextended('stripe ' || coalesce(object ->> 'customer', event ->> 'id'), 0)
  );
  if exists (
    select from private.stripe_events as known
     where known.event_id = event ->> 'id' and known.outcome in ('applied', 'stale', 'ignored')
  ) then
    return 'duplicate';
  end if;

  if payload is not null then
    begin
      perform private.check_stripe_object(object);
      kept := payload;
      account := private.stripe_account(object);
      located := true;
      outcome := private.record_stripe_object(object, created_at, account, payload);
    exception
      when data_exception or integrity_constraint_violation then
        get stacked diagnostics error = message_text, error_hint = pg_exception_hint;
        error := left(format('%s. %s', error, coalesce(nullif(error_hint, ''), hint)), 2000);
        outcome := case when located and account is null then 'unlinked' else 'refused' end;
    end;
  end if;

  insert into private.stripe_events (
    event_id, type, outcome, created_at, customer_id, livemode, error, payload
  )
  values (
    event ->> 'id', event ->> 'type', outcome, created_at, object ->> 'customer',
    event -> 'livemode' = 'true', error, kept
  )
  on conflict (event_id) do update
    set outcome = excluded.outcome, error = excluded.error, payload = excluded.payload;
  return outcome;
end
$$;

create or replace function public.handle_stripe_object(object jsonb, observed_at timestamptz) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  fields constant jsonb := private.stripe_fields(object);
begin
  if object is null or observed_at is null then
    raise exception 'object and observed_at must not be null'
      using errcode = 'null_value_not_allowed',
            hint = 'Pass the object as Stripe returned it, and the Date of that response.';
  end if;
  if jsonb_typeof(object -> 'customer') = 'object' then
    perform public.handle_stripe_object(object -> 'customer', observed_at);
  end if;
  perform private.check_stripe_object(fields);
  perform pg_advisory_xact_lock(hashtextextended('stripe ' || (fields ->> 'customer'), 0));
  return private.record_stripe_object(
    fields, date_trunc('second', observed_at), private.stripe_account(fields), null
  );
end
$$;

comment on function public.handle_stripe_event(jsonb) is
  'Takes an event as Stripe sent it, at any time, in any order and any number of times. Says what became of it: applied, stale, ambiguous, unlinked, ignored, refused, or duplicate.';
comment on function public.handle_stripe_object(jsonb, timestamptz) is
  'Takes a customer or subscription as fetched from Stripe, for reconciliation and after an ambiguous event. observed_at is the Date header of Stripe''s response. Says what became of it: applied, stale, ambiguous, unlinked or ignored.';
comment on function private.write_stripe_subscriptions(uuid) is
  'Writes what rank_stripe_subscriptions() says. A plan that Stripe knows nothing of (a free one) ends when a subscription of Stripe''s has begun. Returns whether a status changed.';
comment on function private.renew_stripe_subscription(text) is
  'Writes what changes without a change of status, which leaves the ranks of the account''s subscriptions as they are: the usual event.';
comment on function private.write_stripe_customer(uuid) is
  'accounts.stripe_customer_id is the customer who pays; else the newest, of whom one that Stripe has not described yet goes first.';
comment on function private.record_stripe_customer(jsonb, uuid) is
  'Records the customer that an object is, or belongs to, and the account it is linked to. Returns whether anything was new.';
comment on function private.record_stripe_prices(jsonb, timestamptz) is
  'Records the tiers that the prices of a subscription, or their products, name.';
comment on function private.record_stripe_subscription(jsonb, timestamptz, uuid, jsonb) is
  'Records a subscription''s snapshot if it is later than the known one.';
comment on function private.record_stripe_object(jsonb, timestamptz, uuid, jsonb) is
  'Records a customer or subscription and writes the rows of its account. The payload is of the event that it is from; null where it was fetched.';
comment on function private.rank_stripe_subscriptions(uuid) is
  'Stripe''s subscriptions of an account as they are to be in public.subscriptions. At most one is in force: the first by status, then the newest; those beside it are cancelled here, since when there are two, until it ends.';
comment on function private.stripe_account(jsonb) is
  'The account that an object of Stripe''s belongs to, null for none here.';
comment on function private.write_stripe_account(uuid, boolean) is
  'Makes the rows of an account what Stripe''s snapshots say; those of its events too, where a customer was linked.';
comment on function private.link_stripe_customer() is
  'Applies what Stripe said of a customer to the account that it is linked to.';

revoke all on function
  private.rank_stripe_subscriptions(uuid),
  private.write_stripe_subscriptions(uuid),
  private.renew_stripe_subscription(text),
  private.write_stripe_customer(uuid),
  private.write_stripe_account(uuid, boolean),
  private.link_stripe_customer(),
  private.stripe_account(jsonb),
  private.record_stripe_customer(jsonb, uuid),
  private.record_stripe_prices(jsonb, timestamptz),
  private.record_stripe_subscription(jsonb, timestamptz, uuid, jsonb),
  private.record_stripe_object(jsonb, timestamptz, uuid, jsonb),
  public.handle_stripe_event(jsonb),
  public.handle_stripe_object(jsonb, timestamptz)
from public, anon, authenticated, service_role;
grant execute on function
  public.handle_stripe_event(jsonb),
  public.handle_stripe_object(jsonb, timestamptz)
to service_role;
