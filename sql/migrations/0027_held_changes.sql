-- What broke a running instance once is not tried again until something of it changes.

alter table private.provisioning add column held text;

comment on column private.provisioning.held is
  'Digest of the chart and values that stopped a running instance and did not start: not tried again while they are the same; null = nothing is held.';
