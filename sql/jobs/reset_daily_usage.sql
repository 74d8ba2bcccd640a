-- Closes the days that are over. After an absence of days it closes all of them.
select public.reset_daily_usage();
