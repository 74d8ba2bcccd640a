-- The rows that were there before 0033_measured_usage.sql.

alter table public.instances validate constraint instances_times_readable;
