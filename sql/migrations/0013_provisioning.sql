-- The work of the instance-provisioner: which instances differ from what their rows say, who is at it,
-- and until when. A trigger on instances asks for work; nothing of this is kept anywhere else.

create table private.provisioning (
  instance_id uuid primary key references public.instances (id) on delete cascade,
  revision bigint not null default 1,
  due_at timestamptz default now(),
  -- Starts again with each revision; stays far below 2^31.
  -- squawk-ignore prefer-bigint-over-int
  attempts integer not null default 0,
  lease uuid,
  leased_by text,
  leased_until timestamptz,
  applied text,
  constraint provisioning_attempts_not_negative check (attempts >= 0),
  constraint provisioning_lease_is_whole check (
    (lease is null) = (leased_by is null) and (lease is null) = (leased_until is null)
  )
)
-- Leases are renewed often and are in no index.
with (fillfactor = 70);

create index provisioning_due_at_idx on private.provisioning (due_at) where due_at is not null;

alter table private.provisioning enable row level security;

comment on table private.provisioning is
  'What the instance-provisioner has to do, one row per instance.';
comment on column private.provisioning.revision is
  'Counts the changes of the instance that ask for work: what was read before the last one is stale.';
comment on column private.provisioning.due_at is 'When to work on it next; null = nothing to do.';
comment on column private.provisioning.lease is
  'Who holds it writes its outcome with this; another one after that means that it was taken over.';
comment on column private.provisioning.leased_by is 'The worker''s host and process, for people.';
comment on column private.provisioning.leased_until is 'From then on anybody may take it over.';
comment on column private.provisioning.applied is
  'What the cluster had when the work was done last; compared with what it has, to notice changes made by hand.';

insert into private.provisioning (instance_id, due_at)
select id,
       case
         when runtime = 'kubernetes'
              and status in ('provisioning', 'running', 'stopped', 'deprovisioning')
           then now()
       end
  from public.instances;
