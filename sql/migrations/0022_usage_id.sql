-- A key of one column, which admin clients ask for. Counting still finds its row by day and instance.

alter table public.usage_metrics add column id uuid;
-- Afterwards: for new rows only. The next file sees to those that exist.
alter table public.usage_metrics alter column id set default gen_random_uuid();

comment on column public.usage_metrics.id is
  'Of the row, for clients that need one column; the key is the day and the instance.';
