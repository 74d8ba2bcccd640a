-- The tier catalogue: limits, features, resources and retention per plan, as data. Changing a plan is
-- a migration that updates a row here; no code knows a number.
-- Limits, sizes and one day's counts stay far below 2^31.
-- squawk-ignore-file prefer-bigint-over-int

create table private.tiers (
  tier text primary key,
  max_messages_per_day integer not null,
  max_storage_gb integer not null,
  max_agents integer not null,
  max_platforms integer not null,
  max_team_members integer not null,
  features jsonb not null,
  cpu_limit numeric(5, 2) not null,
  memory_limit_mb integer not null,
  storage_limit_gb integer not null,
  backup_retention_days integer not null,
  volume_retention_days integer not null,
  pause_after_idle_days integer,
  constraint tiers_limits_known check (
    max_messages_per_day >= -1 and max_storage_gb >= -1 and max_agents >= -1
    and max_platforms >= -1 and max_team_members >= -1
  ),
  constraint tiers_features_is_object check (jsonb_typeof(features) = 'object'),
  constraint tiers_resources_positive check (
    cpu_limit > 0 and memory_limit_mb > 0 and storage_limit_gb > 0
  ),
  constraint tiers_retention_known check (
    backup_retention_days > 0 and volume_retention_days >= 0
  ),
  constraint tiers_pause_positive check (pause_after_idle_days > 0)
);

alter table private.tiers enable row level security;

comment on table private.tiers is
  'The tier catalogue: what each plan allows. Copied to a subscription when it starts or changes its tier.';
comment on column private.tiers.max_messages_per_day is 'Messages per instance and UTC day; -1 = unlimited, as in every max_ column.';
comment on column private.tiers.max_agents is 'Agents in the config of one instance.';
comment on column private.tiers.max_storage_gb is 'Storage of all instances of a subscription together.';
comment on column private.tiers.max_platforms is 'For the services to hold an instance to, as max_team_members: the database counts neither.';
comment on column private.tiers.features is 'Feature flags (true/false): what check_user_permission answers.';
comment on column private.tiers.cpu_limit is 'CPU cores of one instance.';
comment on column private.tiers.storage_limit_gb is 'Volume size of one instance: a real size, never unlimited.';
comment on column private.tiers.backup_retention_days is 'How long a backup is kept unless it says otherwise.';
comment on column private.tiers.volume_retention_days is 'How long the volumes of a removed instance are kept; 0 = deleted with it.';
comment on column private.tiers.pause_after_idle_days is 'Days without use after which a running instance is stopped; null = never.';

insert into private.tiers (
  tier,
  max_messages_per_day, max_storage_gb, max_agents, max_platforms, max_team_members,
  features,
  cpu_limit, memory_limit_mb, storage_limit_gb,
  backup_retention_days, volume_retention_days, pause_after_idle_days
)
values
  (
    'free', 100, 1, 3, 1, 1,
    '{"api_access": false, "priority_support": false, "custom_domain": false, "sso": false}',
    0.5, 1024, 1, 7, 0, 7
  ),
  (
    'starter', 1000, 10, 10, 3, 5,
    '{"api_access": true, "priority_support": false, "custom_domain": false, "sso": false}',
    1, 2048, 10, 14, 7, null
  ),
  (
    'professional', 10000, 100, 50, 10, 25,
    '{"api_access": true, "priority_support": true, "custom_domain": true, "sso": false}',
    2, 4096, 50, 30, 30, null
  ),
  (
    'enterprise', -1, -1, -1, -1, -1,
    '{"api_access": true, "priority_support": true, "custom_domain": true, "sso": true}',
    4, 8192, 200, 90, 90, null
  );
