-- The features that plans had before there was a tier catalogue. A subscription whose features are its
-- tier's has the new ones, too; one with features of its own keeps them.

with regained (tier, features) as (
  values
    (
      'free',
      '{"custom_agents": false, "advanced_memory": false, "voice_messages": false, "file_uploads": false, "team_collaboration": false}'::jsonb
    ),
    (
      'starter',
      '{"custom_agents": false, "advanced_memory": true, "voice_messages": true, "file_uploads": true, "team_collaboration": false}'
    ),
    (
      'professional',
      '{"custom_agents": true, "advanced_memory": true, "voice_messages": true, "file_uploads": true, "team_collaboration": true}'
    ),
    (
      'enterprise',
      '{"custom_agents": true, "advanced_memory": true, "voice_messages": true, "file_uploads": true, "team_collaboration": true}'
    )
),
catalogue as (
  update private.tiers
     set features = tiers.features || regained.features
    from regained
   where tiers.tier = regained.tier
)
-- Of one statement, all parts see the tables as they were before it.
update public.subscriptions as plan
   set features = tiers.features || regained.features
  from private.tiers
  join regained using (tier)
 where plan.tier = tiers.tier and plan.features = tiers.features;
