-- What each tier has of 0031_subscription_ends.sql.

update private.tiers
   set max_instances = given.max_instances,
       grace_days = given.grace_days,
       instance_retention_days = given.instance_retention_days
  from (
    values
      ('free', 1, 3, 7),
      ('starter', 5, 3, 30),
      ('professional', 25, 7, 60),
      ('enterprise', -1, 14, 90)
  ) as given (tier, max_instances, grace_days, instance_retention_days)
 where tiers.tier = given.tier;

alter table private.tiers validate constraint tiers_ends_known;
alter table public.instances validate constraint instances_stop_reason_known;
alter table public.instances validate constraint instances_times_readable;
