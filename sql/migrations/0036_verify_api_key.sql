-- It returns one more column, which `create or replace` in sql/repeatable/ cannot add. Until that has
-- run, the gateway answers the ingress 503.
-- squawk-ignore ban-drop-function
drop function if exists public.verify_api_key(text, uuid, text);
