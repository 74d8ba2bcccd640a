-- An instance is known to the gateway by its token alone, which is looked up by its SHA-256.

-- The cast takes a backslash for the beginning of an escape, so each is doubled; convert_to() does the
-- same, but is not immutable.
-- migrate: allow create-index: one row per instance, which only its provisioning writes
create unique index instance_secrets_usage_token_key
  on private.instance_secrets (sha256(replace(value, '\', '\\')::bytea))
  where name = 'PLATFORM_USAGE_TOKEN';
