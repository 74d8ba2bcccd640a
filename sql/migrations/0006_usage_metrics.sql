-- What each instance did on each UTC day. A row is written once per message, so it carries the least
-- that keeps its promises: the key, few indexes, no trigger that a count fires, and room on the page so
-- that a count is a HOT update. What is inside the three jsonb columns is left to the functions that
-- count: users and services cannot write here.
-- Limits, sizes and one day's counts stay far below 2^31.
-- squawk-ignore-file prefer-bigint-over-int

-- Domains, because a check constraint of the table is parsed again by every statement: 11 to 15 us of a
-- message's 50 (measured on 15 and 18), while a domain is parsed once a session.
-- squawk-ignore ban-create-domain-with-constraint
create domain private.tally as integer constraint tally_not_negative check (value >= 0);
-- squawk-ignore ban-create-domain-with-constraint
create domain private.big_tally as bigint constraint big_tally_not_negative check (value >= 0);
-- squawk-ignore ban-create-domain-with-constraint
create domain private.gigabytes as numeric(12, 3) constraint gigabytes_not_negative check (value >= 0);

create table public.usage_metrics (
  account_id uuid not null,
  instance_id uuid not null,
  usage_date date not null default (now() at time zone 'utc')::date,
  messages_sent private.tally not null default 0,
  messages_received private.tally not null default 0,
  error_count private.tally not null default 0,
  response_count private.tally not null default 0,
  response_time_ms private.big_tally not null default 0,
  storage_used_gb private.gigabytes not null default 0,
  limit_exceeded boolean not null default false,
  agent_counts jsonb not null default '{}',
  tool_counts jsonb not null default '{}',
  platform_counts jsonb not null default '{}',
  primary key (instance_id, usage_date),
  constraint usage_metrics_instance_fkey foreign key (account_id, instance_id)
    references public.instances (account_id, id) on delete cascade
)
with (fillfactor = 70);

create index usage_metrics_account_id_instance_id_idx
  on public.usage_metrics (account_id, instance_id);
-- For retention, and for the flags that the end of a day clears. Neither holds a column that a count
-- changes, so a count stays a HOT update.
create index usage_metrics_usage_date_idx on public.usage_metrics (usage_date);
create index usage_metrics_limit_exceeded_idx
  on public.usage_metrics (usage_date) where limit_exceeded;

alter table public.usage_metrics enable row level security;

comment on table public.usage_metrics is 'One row per instance and UTC day.';
comment on column public.usage_metrics.error_count is 'For service_role to write, as the next two: track_usage() counts messages.';
comment on column public.usage_metrics.response_time_ms is
  'The sum over response_count responses: divide for the average.';
comment on column public.usage_metrics.storage_used_gb is 'The highest value of the day.';
comment on column public.usage_metrics.limit_exceeded is
  'The limit of the present day was passed and said so in the audit log, once; cleared when the day is over.';
comment on column public.usage_metrics.agent_counts is 'Messages per agent: {"name": count}. Once it has 8 kB, messages of further names count in the totals only, as in the next two.';
comment on column public.usage_metrics.tool_counts is 'Uses per tool: {"name": count}.';
comment on column public.usage_metrics.platform_counts is 'Messages per platform: {"name": count}; its keys are the platforms active.';
