-- Stripe's objects as snapshots: what of an event is read, and which of two snapshots is the later.
-- docs/decisions/0006-stripe.md says why.

create or replace function private.stripe_fields(object jsonb) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
  return jsonb_build_object(
    'object', object -> 'object',
    'id', object -> 'id',
    'customer', case
      when object ->> 'object' = 'customer' then object -> 'id'
      when jsonb_typeof(object -> 'customer') = 'object' then object #> '{customer,id}'
      else object -> 'customer'
    end,
    'livemode', object -> 'livemode',
    'created', object -> 'created',
    'deleted', object -> 'deleted',
    'metadata', object -> 'metadata',
    'status', object -> 'status',
    'items', object -> 'items',
    'trial_start', object -> 'trial_start',
    'trial_end', object -> 'trial_end',
    'current_period_start', object -> 'current_period_start',
    'current_period_end', object -> 'current_period_end',
    'canceled_at', object -> 'canceled_at',
    'ended_at', object -> 'ended_at'
  );
end
$$;

create or replace function private.stripe_payload(event jsonb) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
  type constant text := event ->> 'type';
  object jsonb := private.stripe_fields(event #> '{data,object}')
                  || jsonb_build_object('livemode', event -> 'livemode');
  previous jsonb := event #> '{data,previous_attributes}';
begin
  if type in ('customer.created', 'customer.updated', 'customer.deleted') then
    object := object || jsonb_build_object(
      'object', 'customer', 'customer', object -> 'id', 'deleted', type = 'customer.deleted'
    );
  elsif type like 'customer.subscription.%' then
    object := object || '{"object": "subscription"}';
    if type = 'customer.subscription.deleted' then
      object := object || jsonb_build_object(
        'status', case when object ->> 'status' like 'incomplete%' then 'incomplete_expired' else 'canceled' end
      );
    end if;
  else
    return null;
  end if;
  if jsonb_typeof(previous) = 'object' then
    previous := (select jsonb_object_agg(key, value) from jsonb_each(previous) where object ? key);
  else
    previous := null;
  end if;
  return jsonb_build_object(
    'id', event -> 'id',
    'type', type,
    'created', event -> 'created',
    'livemode', event -> 'livemode',
    'data', jsonb_build_object(
      'object', object,
      'previous_attributes', coalesce(previous, '{}')
    )
  );
end
$$;

create or replace function private.check_stripe_object(object jsonb) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  hint constant text := 'Pass it as Stripe sent it, after checking the signature.';
begin
  if pg_column_size(object) > 65536 or exists (
    select
      from jsonb_path_query(object, 'strict $.** ? (@.type() == "number")') as number
     where abs(number::numeric) >= 1e308 or scale(number::numeric) > 400
  ) then
    raise exception 'Stripe object is larger than 64 kB, or has a number that clients cannot read'
      using errcode = 'invalid_parameter_value', hint = hint;
  elsif (
    length(object ->> 'id') between 1 and 255
    and length(object ->> 'customer') between 1 and 255
    and object ->> 'object' in ('customer', 'subscription')
  ) is not true then
    raise exception 'Stripe object % lacks id, customer or object, or is neither a customer nor a subscription',
                    quote_nullable(left(object ->> 'id', 255))
      using errcode = 'invalid_parameter_value', hint = hint;
  elsif object -> 'livemode' = 'false' and exists (select from private.stripe_customers where livemode) then
    raise exception 'Stripe object % is in test mode, and this platform is live', object ->> 'id'
      using errcode = 'invalid_parameter_value',
            hint = 'Point the webhook endpoint of Stripe''s test mode at a test platform.';
  end if;
end
$$;

create or replace function private.named_tier(names text[]) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select tiers.tier
      from unnest(names) with ordinality as name (value, rank)
      join private.tiers on starts_with(translate(name.value, '-', '_') || '_', tiers.tier || '_')
     order by name.rank, length(tiers.tier) desc
     limit 1
  );
end
$$;

create or replace function private.read_stripe_subscription(object jsonb, observed_at timestamptz)
returns private.stripe_subscriptions
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  stripe_status constant text := object ->> 'status';
  plan record;
  snapshot private.stripe_subscriptions;
begin
  snapshot.subscription_id := object ->> 'id';
  snapshot.customer_id := object ->> 'customer';
  snapshot.created_at := to_timestamp((object ->> 'created')::bigint);
  snapshot.observed_at := observed_at;
  if snapshot.created_at is null then
    raise exception 'Stripe subscription % lacks created', snapshot.subscription_id
      using errcode = 'invalid_parameter_value', hint = 'Pass the object as Stripe sent it.';
  end if;

  snapshot.status := case
    when stripe_status in ('canceled', 'incomplete_expired') then 'cancelled'
    when stripe_status = 'unpaid' then 'past_due'
    when stripe_status in ('trialing', 'active', 'past_due', 'paused', 'incomplete') then stripe_status
  end;
  if snapshot.status is null then
    raise exception 'unknown status % of Stripe subscription %',
                    quote_nullable(left(stripe_status, 100)), snapshot.subscription_id
      using errcode = 'invalid_parameter_value',
            hint = 'Teach private.read_stripe_subscription what it means, then replay the event.';
  end if;
  snapshot.unpaid := stripe_status = 'unpaid';
  snapshot.begun := stripe_status not in ('incomplete', 'incomplete_expired');

  select item, known.tier
    into plan
    from jsonb_array_elements(object #> '{items,data}') with ordinality as element (item, place)
    left join private.stripe_prices as price on price.price_id = item #>> '{price,id}'
   cross join lateral (select case
     when price.source = 'operator' then price.tier
     else coalesce(
       private.named_tier(array[
         item #>> '{price,metadata,tier}', item #>> '{price,lookup_key}', item #>> '{price,product,metadata,tier}'
       ]),
       price.tier
     )
   end offset 0) as known (tier)
   order by known.tier is null, place
   limit 1;
  snapshot.price_id := plan.item #>> '{price,id}';
  snapshot.tier := coalesce(plan.tier, private.named_tier(array[object #>> '{metadata,tier}']));

  snapshot.trial_started_at := to_timestamp((object ->> 'trial_start')::bigint);
  snapshot.trial_ends_at := to_timestamp((object ->> 'trial_end')::bigint);
  -- Since the API version 2025-03-31 the periods are the items'.
  snapshot.period_start := to_timestamp(
    coalesce(plan.item ->> 'current_period_start', object ->> 'current_period_start')::bigint
  );
  snapshot.period_end := to_timestamp(
    coalesce(plan.item ->> 'current_period_end', object ->> 'current_period_end')::bigint
  );
  snapshot.cancelled_at := to_timestamp((object ->> 'canceled_at')::bigint);
  if snapshot.status = 'cancelled' then
    snapshot.cancelled_at := coalesce(
      to_timestamp((object ->> 'ended_at')::bigint), snapshot.cancelled_at, observed_at
    );
  end if;
  return snapshot;
end
$$;

create or replace function private.was_before_stripe_event(
  snapshot private.stripe_subscriptions, payload jsonb
) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select to_jsonb(snapshot) - array['event_id']
         = (to_jsonb(before) || jsonb_build_object('tier', coalesce(before.tier, snapshot.tier))) - array['event_id']
    from (values (payload #> '{data,object}', payload #> '{data,previous_attributes}')) as data (object, previous)
   cross join private.read_stripe_subscription(
     object || previous || jsonb_build_object(
       'metadata', coalesce(object -> 'metadata', '{}') || coalesce(previous -> 'metadata', '{}')
     ),
     snapshot.observed_at
   ) as before
$$;

-- Stripe's clock has whole seconds. What is certain goes first: a cancelled subscription stays so, one
-- that has begun is never incomplete again, and nothing comes before customer.subscription.created.
create or replace function private.is_later_stripe_snapshot(
  snapshot private.stripe_subscriptions, known private.stripe_subscriptions, payload jsonb
) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  created constant text := 'customer.subscription.created';
  known_payload jsonb;
  follows boolean;
  precedes boolean;
begin
  if (snapshot.status = 'cancelled') <> (known.status = 'cancelled') then
    return snapshot.status = 'cancelled';
  elsif snapshot.observed_at <> known.observed_at then
    return snapshot.observed_at > known.observed_at;
  elsif snapshot.begun <> known.begun then
    return snapshot.begun;
  elsif to_jsonb(snapshot) - array['event_id'] = to_jsonb(known) - array['event_id'] then
    return true;
  end if;
  known_payload := (
    select event.payload from private.stripe_events as event where event.event_id = known.event_id
  );
  if payload is null or known_payload is null then
    return null;
  end if;
  follows := known_payload ->> 'type' = created or private.was_before_stripe_event(known, payload);
  precedes := payload ->> 'type' = created or private.was_before_stripe_event(snapshot, known_payload);
  return case when follows <> precedes then follows end;
end
$$;

comment on function private.stripe_fields(jsonb) is
  'What is read of an object, and kept: no name, email, address or card. Its customer is the id, also of a customer itself.';
comment on function private.check_stripe_object(jsonb) is
  'Refuses what is too large, has no id or customer, or is in test mode on a live platform.';
comment on function private.stripe_payload(jsonb) is
  'An event reduced to what is read of it; null for a type that means nothing here.';
comment on function private.named_tier(text[]) is
  'The tier of the first name that begins with one: starter, starter_monthly, starter-annual-eur.';
comment on function private.read_stripe_subscription(jsonb, timestamptz) is
  'A subscription of Stripe''s, of either shape of its API, as a snapshot.';
comment on function private.was_before_stripe_event(private.stripe_subscriptions, jsonb) is
  'Is the snapshot what the subscription was before the event, by its previous_attributes?';
comment on function private.is_later_stripe_snapshot(private.stripe_subscriptions, private.stripe_subscriptions, jsonb) is
  'Is the snapshot, of the event with this payload, later than the known one? Null where nothing tells.';

revoke all on function
  private.stripe_fields(jsonb),
  private.stripe_payload(jsonb),
  private.check_stripe_object(jsonb),
  private.named_tier(text[]),
  private.read_stripe_subscription(jsonb, timestamptz),
  private.was_before_stripe_event(private.stripe_subscriptions, jsonb),
  private.is_later_stripe_snapshot(private.stripe_subscriptions, private.stripe_subscriptions, jsonb)
from public, anon, authenticated, service_role;
