-- Every row has an id by now: 0022_usage_id.sql gives it to new ones, 0023_usage_id_of_rows.sql gave it
-- to the others.

alter table public.usage_metrics add constraint usage_metrics_id_key unique using index usage_metrics_id_key;
-- migrate: allow set-not-null: a year of 1,000 instances is read in less than a tenth of a second
-- squawk-ignore adding-not-nullable-field
alter table public.usage_metrics alter column id set not null;
