"""What is measured, as data: a function's script beside the bare statement's."""

from dataclasses import dataclass

ANY = "md5('account ' || :n)::uuid"
ONE = "md5('account 1')::uuid"
PICK = "\\set n random(1, 1000)\n"


@dataclass(frozen=True)
class Script:
    """A pgbench script.

    Attributes:
        text: what each transaction does.
        database: with which history (see data.HISTORIES).
        user: run as that account's user, as through the API; otherwise as the superuser.
    """

    text: str
    database: str = "year"
    user: bool = False


@dataclass(frozen=True)
class Target:
    """A promise.

    Attributes:
        title: of what.
        ours: the script measured.
        baseline: what it is compared with.
        bound: how much of the baseline's throughput is promised, at least.
        before: what has to be so in the database, for both.
    """

    title: str
    ours: Script
    baseline: Script
    bound: float
    before: str = ""


def _upsert(account: str) -> str:
    return f"""\
insert into bare_usage (account_id, instance_id, messages_sent) values ({account}, {account}, 1)
on conflict (instance_id, usage_date) do update set messages_sent = bare_usage.messages_sent + 1;
"""


def _track(account: str) -> str:
    return f"select track_usage({account}, 'ada', 'search', 'matrix', 'sent');\n"


def _record(account: str) -> str:
    return f"""\\set e random(1, 1000000000000)
select record_usage({account}, (
  select jsonb_agg(jsonb_build_object('id', :e || '-' || n, 'type', 'sent', 'agent', 'ada',
                                      'tool', 'search', 'platform', 'matrix'))
    from generate_series(1, 100) n));
"""


def _flat(title: str, text: str, *, user: bool = False) -> Target:
    ours, baseline = (Script(text, name, user) for name in ("ten_million", "hundred_thousand"))
    return Target(f"{title}: 10 million usage rows, to 100 thousand", ours, baseline, 1 / 1.2)


NO_LIMIT = "update subscriptions set max_messages_per_day = -1 where max_messages_per_day <> -1"
OWN_DAYS = "select * from usage_metrics where usage_date > (now() at time zone 'utc')::date - 90;\n"


def _event(n: str, e: str) -> str:
    """The call for a renewal; the clock runs tenfold, as of two in one second one may be stale."""
    return f"""\
handle_stripe_event(jsonb_build_object(
  'id', 'evt_' || {e}, 'type', 'customer.subscription.updated',
  'created', (10 * extract(epoch from clock_timestamp()))::bigint,
  'data', jsonb_build_object('object', jsonb_build_object(
    'id', 'sub_' || md5('account ' || {n})::uuid,
    'customer', 'cus_' || md5('account ' || {n})::uuid,
    'created', 1700000000, 'status', 'active',
    'items', jsonb_build_object('data', jsonb_build_array(jsonb_build_object(
      'price', jsonb_build_object('id', 'price_1', 'lookup_key', 'enterprise'),
      'current_period_start', 1800000000, 'current_period_end', 1900000000 + {e} % 1000000)))))))"""


TARGETS = {
    "track_one": Target(
        "`track_usage` on one instance, to an upsert",
        Script(_track(ONE)),
        Script(_upsert(ONE)),
        0.65,
    ),
    "track_many": Target(
        "`track_usage` on 1,000 instances, to an upsert",
        Script(PICK + _track(ANY)),
        Script(PICK + _upsert(ANY)),
        0.65,
    ),
    "track_over": Target(
        "`track_usage` over the limit, to under it",
        Script("\\set n random(1, 500)\n" + _track(ANY)),
        Script("\\set n random(501, 1000)\n" + _track(ANY)),
        0.95,
        before="update subscriptions set max_messages_per_day = 0 where id in ("
        "select md5('account ' || n)::uuid from generate_series(1, 500) n)",
    ),
    "record_one": Target(
        "`record_usage` of 100 messages on one instance, to `track_usage` of one",
        Script(_record(ONE)),
        Script(_track(ONE)),
        0.2,
    ),
    "record_many": Target(
        "`record_usage` of 100 messages on 1,000 instances, to `track_usage` of one",
        Script(PICK + _record(ANY)),
        Script(PICK + _track(ANY)),
        0.2,
    ),
    "track_flat": _flat("`track_usage`", PICK + _track(ANY)),
    "own_rows": Target(
        "a user's own usage rows, to the superuser with the predicate",
        Script("select * from usage_metrics;\n", user=True),
        Script(f"select * from usage_metrics where account_id = {ONE};\n"),
        1 / 1.2,
    ),
    "own_flat": _flat("a user's last 90 days", OWN_DAYS, user=True),
    "user_instance": Target(
        "`get_user_instance`, to the joined select",
        Script(f"{PICK}select * from get_user_instance({ANY});\n"),
        Script(
            f"""{PICK}select i.id, i.subdomain, i.frontend_url, i.api_url, i.matrix_url, i.status,
       s.tier, i.config, s.features
  from subscriptions s join instances i using (account_id)
 where s.account_id = {ANY} and s.live_until > now() and i.status = 'running'
 order by i.created_at desc, i.id desc limit 1;
"""
        ),
        1 / 1.5,
    ),
    "usage_limits": Target(
        "`check_usage_limits`, to the joined select",
        Script(f"{PICK}select * from check_usage_limits({ANY});\n"),
        Script(
            f"""{PICK}select s.max_messages_per_day, u.messages_sent + u.messages_received,
       s.max_storage_gb, s.storage_used_gb, s.max_agents, i.config -> 'agents'
  from instances i
  join subscriptions s on s.id = i.subscription_id
  left join usage_metrics u
    on u.instance_id = i.id and u.usage_date = (now() at time zone 'utc')::date
 where i.id = {ANY};
"""
        ),
        1 / 1.5,
    ),
    "stripe_event": Target(
        "`handle_stripe_event`, to an upsert",
        Script(f"{PICK}\\set e random(1001, 2000000000)\nselect {_event(':n', ':e')};\n"),
        Script(
            f"""{PICK}insert into bare_subscriptions as s (
  id, account_id, stripe_subscription_id, current_period_end, max_messages_per_day, max_storage_gb,
  max_agents, max_platforms, max_team_members, features
)
values ({ANY}, {ANY}, 'sub', now(), 1, 1, 1, 1, 1, '{{}}')
on conflict (id) do update set current_period_end = excluded.current_period_end, updated_at = now();
"""
        ),
        0.6,
        before=f"select count({_event('n', 'n')}) from generate_series(1, 1000) n",
    ),
}
