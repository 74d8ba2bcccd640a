-- Stops the instances that nobody has used for as long as their tier allows.
select public.auto_pause_inactive_instances();
