-- The rows that were there before 0019_numbers_and_subdomains.sql. What was measured is measured again;
-- what a plan gives is its tier's.

update public.subscriptions set storage_used_gb = 0 where storage_used_gb = 'NaN';

update public.instances as instance
   set cpu_limit = case when instance.cpu_limit = 'NaN' then tiers.cpu_limit else instance.cpu_limit end,
       cpu_used = case when cpu_used = 'NaN' then 0 else cpu_used end,
       storage_used_gb = case
         when instance.storage_used_gb = 'NaN' then 0 else instance.storage_used_gb
       end
  from public.subscriptions as plan
  join private.tiers using (tier)
 where plan.id = instance.subscription_id
   and 'NaN' in (instance.cpu_limit, cpu_used, instance.storage_used_gb);

update public.usage_metrics set storage_used_gb = 0 where storage_used_gb = 'NaN';

alter table private.tiers validate constraint tiers_numbers_finite;
alter table public.subscriptions validate constraint subscriptions_numbers_finite;
alter table public.instances validate constraint instances_numbers_finite;
alter domain private.gigabytes validate constraint gigabytes_finite;
