-- migrate: no-transaction
create unique index concurrently if not exists usage_metrics_id_key on public.usage_metrics (id);
