-- Stripe's door: the one way in which subscriptions change. docs/decisions/0006-stripe.md says what
-- follows from which word, and why.

-- Stripe's spellings and its two API shapes (periods and invoices moved in 2025-03-31) end here.
create or replace function private.read_stripe_event(event jsonb) returns private.stripe_objects
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  hint constant text := 'Pass the event as Stripe sent it, after checking its signature.';
  type constant text := event ->> 'type';
  object constant jsonb := event #> '{data,object}';
  said constant text := object ->> 'status';
  plan record;
  word private.stripe_objects;
begin
  word.kind := case
    when type in ('customer.created', 'customer.updated', 'customer.deleted') then 'customer'
    when type like 'customer.subscription.%' then 'subscription'
    when type in ('invoice.paid', 'invoice.payment_succeeded', 'invoice.payment_failed') then 'invoice'
  end;
  word.id := case word.kind
    when 'invoice' then coalesce(
      object ->> 'subscription', object #>> '{parent,subscription_details,subscription}'
    )
    else object ->> 'id'
  end;
  if word.kind is null or (word.kind = 'invoice' and word.id is null) then
    return null;  -- an invoice of no subscription
  end if;

  word.customer_id := object ->> case word.kind when 'customer' then 'id' else 'customer' end;
  word.object_created := to_timestamp((object ->> 'created')::bigint);
  word.said_at := to_timestamp((event ->> 'created')::bigint);
  word.event_id := event ->> 'id';
  word.begun := word.kind = 'subscription' and said not in ('incomplete', 'incomplete_expired');
  word.final := type in ('customer.deleted', 'customer.subscription.deleted');
  word.step := (type not like '%.created')::integer;
  if word.id is null or word.customer_id is null or word.object_created is null then
    raise exception 'Stripe event % (%) lacks id, customer or created', word.event_id, type
      using errcode = 'invalid_parameter_value', hint = hint;
  end if;

  if word.kind = 'invoice' then
    word.status := case type when 'invoice.payment_failed' then 'failed' else 'paid' end;
    word.step := (word.status = 'paid')::integer;
  elsif word.kind = 'subscription' then
    word.status := case
      when word.final or said in ('canceled', 'incomplete_expired') then 'cancelled'
      when said = 'unpaid' then 'past_due'
      when said in ('trialing', 'active', 'past_due', 'paused', 'incomplete') then said
    end;
    if word.status is null then
      raise exception 'unknown status % of Stripe subscription %', quote_nullable(said), word.id
        using errcode = 'invalid_parameter_value',
              hint = 'Teach private.read_stripe_event what it means; Stripe sends the event again.';
    end if;

    -- What the price says goes first: it changes with the plan, the metadata of a subscription may not.
    select tiers.tier, element.item into plan
      from jsonb_array_elements(object #> '{items,data}') with ordinality as element (item, place)
     cross join lateral (select array[
       item #>> '{price,metadata,tier}',
       regexp_replace(item #>> '{price,lookup_key}', '[-_](monthly|yearly)$', ''),
       object #>> '{metadata,tier}'
     ]) as said (names)
      join private.tiers on tiers.tier = any (names)
     order by array_position(names, tiers.tier), place
     limit 1;
    if not found then
      raise exception 'Stripe subscription % names no known tier', word.id
        using errcode = 'invalid_parameter_value',
              hint = 'Give its price the metadata "tier" or a lookup_key such as starter or starter_yearly; Stripe sends the event again.';
    end if;

    word.step := word.step + word.begun::integer;
    word.final := word.status = 'cancelled';
    word.tier := plan.tier;
    word.price_id := plan.item #>> '{price,id}';
    word.trial_started_at := to_timestamp((object ->> 'trial_start')::bigint);
    word.trial_ends_at := to_timestamp((object ->> 'trial_end')::bigint);
    word.period_start := to_timestamp(
      coalesce(plan.item ->> 'current_period_start', object ->> 'current_period_start')::bigint
    );
    word.period_end := to_timestamp(
      coalesce(plan.item ->> 'current_period_end', object ->> 'current_period_end')::bigint
    );
    word.cancelled_at := to_timestamp((object ->> 'canceled_at')::bigint);
    if word.final then
      word.cancelled_at := coalesce(
        to_timestamp((object ->> 'ended_at')::bigint), word.cancelled_at, word.said_at
      );
    end if;
  end if;
  return word;
end
$$;

-- The caller has locked the account.
create or replace function private.apply_stripe_objects(account uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  customer text;
  other record;
  change record;
  plan_id uuid;
begin
  -- The customer of the account's newest object. One that stripe-handler wrote down itself stays until
  -- Stripe speaks of it.
  customer := (
    select object.customer_id
      from private.stripe_objects as object
     where object.account_id = account
       and object.kind <> 'invoice'
       and not exists (
         select from private.stripe_objects as gone
          where gone.kind = 'customer' and gone.id = object.customer_id and gone.final
       )
     order by object.object_created desc, object.id
     limit 1
  );
  update public.accounts
     set stripe_customer_id = customer
   where id = account
     and stripe_customer_id is distinct from customer
     and (
       stripe_customer_id is null
       or exists (
         select from private.stripe_objects as object
          where object.customer_id = accounts.stripe_customer_id
       )
     );

  -- A plan that Stripe knows nothing of (a free one) ends when a subscription of Stripe's begins.
  select plan.id,
         exists (
           select from private.stripe_objects as word
            where word.account_id = account
              and word.kind = 'subscription'
              and word.begun
              and (not word.final or word.cancelled_at > plan.created_at)
         ) as over
    into other
    from public.subscriptions as plan
   where plan.account_id = account
     and plan.status <> 'cancelled'
     and not exists (
       select from private.stripe_objects as word
        where word.kind = 'subscription' and word.id = plan.stripe_subscription_id
     );
  if other.over then
    update public.subscriptions set status = 'cancelled' where id = other.id;
  end if;

  -- Each subscription of Stripe's is a row. At most one is in force: the first by status, then the
  -- newest; those beside it are cancelled here, since when there are two, until it ends. Not an upsert:
  -- that puts each row through the triggers and checks of an insert first.
  for change in
    select due.*, plan.id as row_id
      from (
        select id, tier, price_id, trial_started_at, trial_ends_at, period_start, period_end, in_force,
               case when in_force then paid_status else 'cancelled' end as status,
               case
                 when in_force or final then cancelled_at else greatest(object_created, first_created)
               end as cancelled_at
          from (
            select *,
                   row_number() over best = 1 and not final and other.over is not false as in_force,
                   first_value(object_created) over best as first_created
              from (
                select word.*,
                       case
                         when word.status = 'active' and payment.status = 'failed' then 'past_due'
                         when word.status = 'past_due' and payment.status = 'paid' then 'active'
                         else word.status
                       end as paid_status
                  from private.stripe_objects as word
                  left join private.stripe_objects as payment
                    on payment.kind = 'invoice' and payment.id = word.id and payment.said_at > word.said_at
                 where word.account_id = account and word.kind = 'subscription'
              ) as word
            window best as (
              order by array_position(
                         array['active', 'past_due', 'paused', 'incomplete', 'cancelled'],
                         case paid_status when 'trialing' then 'active' else paid_status end
                       ),
                       object_created desc, id
            )
          ) as ranked
      ) as due
      left join public.subscriptions as plan on plan.stripe_subscription_id = due.id collate "default"
     where plan.id is null
        or (
          plan.tier, plan.status, plan.stripe_price_id, plan.trial_started_at, plan.trial_ends_at,
          plan.current_period_start, plan.current_period_end, plan.cancelled_at
        ) is distinct from (
          due.tier, due.status, due.price_id, due.trial_started_at, due.trial_ends_at,
          due.period_start, due.period_end, due.cancelled_at
        )
     order by in_force  -- the one that is no more in force makes room first
  loop
    if change.row_id is null then
      insert into public.subscriptions (
        account_id, stripe_subscription_id, tier, status, stripe_price_id,
        trial_started_at, trial_ends_at, current_period_start, current_period_end, cancelled_at
      )
      values (
        account, change.id, change.tier, change.status, change.price_id,
        change.trial_started_at, change.trial_ends_at, change.period_start, change.period_end,
        change.cancelled_at
      );
    else
      update public.subscriptions
         set tier = change.tier,
             status = change.status,
             stripe_price_id = change.price_id,
             trial_started_at = change.trial_started_at,
             trial_ends_at = change.trial_ends_at,
             current_period_start = change.period_start,
             current_period_end = change.period_end,
             cancelled_at = change.cancelled_at
       where id = change.row_id;
    end if;
  end loop;

  -- Who comes back, or changes plans, keeps the instances: they go to the one plan in force, else to the
  -- last.
  plan_id := (select id from public.subscriptions where account_id = account and status <> 'cancelled');
  if plan_id is null then
    plan_id := (
      select plan.id
        from public.subscriptions as plan
        left join private.stripe_objects as word
          on word.kind = 'subscription' and word.id = plan.stripe_subscription_id
       where plan.account_id = account
       order by word.object_created desc nulls last, word.id
       limit 1
    );
  end if;
  update public.instances
     set subscription_id = plan_id
   where account_id = account
     and subscription_id <> plan_id
     and status not in ('deprovisioning', 'deprovisioned');
end
$$;

create or replace function public.handle_stripe_event(event jsonb) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  word private.stripe_objects;
  claimed text;
  owners uuid[];
  outcome text := 'ignored';
  linked boolean := false;
begin
  if event is null then
    raise exception 'event must not be null'
      using errcode = 'null_value_not_allowed', hint = 'Pass the event as Stripe sent it.';
  end if;
  if (
    event ->> 'id' <> '' and event ->> 'type' <> ''
    and jsonb_typeof(event -> 'created') = 'number'
    and jsonb_typeof(event #> '{data,object}') = 'object'
  ) is not true then
    raise exception 'this is no event of Stripe''s: id, type, created or data.object is missing'
      using errcode = 'invalid_parameter_value',
            hint = 'Pass the event as Stripe sent it, after checking its signature.';
  end if;

  -- The events of a customer take turns: what another one has stored is seen here, or sees this.
  word := private.read_stripe_event(event);
  perform pg_advisory_xact_lock(
    hashtextextended('stripe ' || coalesce(word.customer_id, event ->> 'id'), 0)
  );
  if exists (select from private.stripe_events where event_id = event ->> 'id') then
    return 'duplicate';
  end if;

  if word.kind is not null then
    -- Never by email, which anybody can state.
    claimed := case when word.kind <> 'invoice' then event #>> '{data,object,metadata,account_id}' end;
    if claimed !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
      raise exception 'metadata.account_id of Stripe % % is no uuid', word.kind, word.id
        using errcode = 'invalid_parameter_value', hint = 'It is the id of the auth user.';
    end if;
    -- Ids of words are collated "C", an index on any other column with one is not.
    owners := array(
      select id from public.accounts where stripe_customer_id = word.customer_id
      union all
      select account_id from private.stripe_objects
       where customer_id = word.customer_id and account_id is not null
      union all
      select account_id from public.subscriptions
       where stripe_subscription_id = word.id collate "default"
      union all
      select id from public.accounts where id = claimed::uuid
    );
    word.account_id := owners[1];
    if word.account_id <> any (owners) then
      raise exception 'Stripe % % of customer % belongs to several accounts: %',
                      word.kind, word.id, word.customer_id,
                      (select string_agg(distinct owner::text, ', ') from unnest(owners) as owner)
        using errcode = 'integrity_constraint_violation',
              hint = 'Correct metadata.account_id in Stripe, or accounts.stripe_customer_id here.';
    end if;
    -- So do those of an account, which may have several customers. Before the first row that refers to
    -- it: two that share that reference's lock could not both go on to write the account.
    perform from public.accounts where id = word.account_id for no key update;

    insert into private.stripe_objects as known select word.*
    on conflict (kind, id) do update
      set (
        kind, id, customer_id, account_id, final, object_created, said_at, step, event_id, status, begun,
        tier, price_id, trial_started_at, trial_ends_at, period_start, period_end, cancelled_at
      ) = row (excluded.*)
      where (known.final, known.object_created, known.said_at, known.step, known.event_id)
            < (excluded.final, excluded.object_created, excluded.said_at, excluded.step, excluded.event_id);
    outcome := case when not found then 'stale' when word.account_id is null then 'unlinked' else 'applied' end;

    if word.account_id is not null then
      update private.stripe_objects
         set account_id = word.account_id
       where customer_id = word.customer_id and account_id is null;
      linked := found;
    end if;
    if outcome = 'applied' or linked then
      perform set_config(
        'mindroom.audit_reason', format('Stripe event %s (%s)', event ->> 'id', event ->> 'type'), true
      );
      perform private.apply_stripe_objects(word.account_id);
      perform set_config('mindroom.audit_reason', '', true);
    end if;
  end if;

  insert into private.stripe_events (event_id, type, outcome, created_at)
  values (event ->> 'id', event ->> 'type', outcome, to_timestamp((event ->> 'created')::bigint));
  return outcome;
end
$$;

comment on function public.handle_stripe_event(jsonb) is
  'Takes an event as Stripe sent it, at any time, in any order and any number of times. Says what became of it: applied, stale, unlinked, ignored, or duplicate.';
comment on function private.read_stripe_event(jsonb) is
  'An event as the word that it says of an object; null for a type that means nothing here.';
comment on function private.apply_stripe_objects(uuid) is
  'Makes an account''s rows what the words on it say. A function of the words alone: called after any sequence of them, and any number of times, it ends in the same rows.';

-- stripe_handler alone may call it: Pulumi grants it. Not even service_role: that key lies in more
-- places than Stripe's secret.
revoke all on function
  private.read_stripe_event(jsonb),
  private.apply_stripe_objects(uuid),
  public.handle_stripe_event(jsonb)
from public, anon, authenticated, service_role;
