"""What was given by hand, in the providers' host."""

from tests.support.provider_host import DIFF_NONE, DIFF_SOME, Stack


def test_it_is_told_taken_back_from_the_services_and_named_of_others(applied: Stack) -> None:
    grant = "select on private.instance_secrets to"
    role = "reader_of_secrets"
    applied.execute(f"create role {role} login")
    with applied.host() as host:
        host.create("given-by-hand")
        assert host.diff("given-by-hand") == (DIFF_NONE, "")
        applied.execute(f"grant {grant} {role}, platform_service")
        has = "SELECT on table private.instance_secrets"
        theirs = f"{role}: {has}"
        changes, told = host.diff("given-by-hand")
        assert changes == DIFF_SOME
        assert told == "".join(
            f"not in the authorization data: {each}: {has}\n" for each in ("platform_service", role)
        )
        found = host.refresh("given-by-hand")
        assert sorted(found.inputs["given"]) == [f"platform_service: {has}", theirs]
        assert found.inputs["given"] == found.outputs["given"]
        message = host.failure(host.update, "given-by-hand")
        assert f"  {theirs}\n    revoke SELECT on table private.instance_secrets" in message
        assert "components/authorization.py" in message
        assert "platform_service" not in message
        assert host.printed() == f"taken back from platform_service: {has}\n"
        assert list(host.refresh("given-by-hand").inputs["given"]) == [theirs]
        applied.execute(f"revoke {grant.replace(' to', ' from')} {role}")
        assert host.diff("given-by-hand") == (DIFF_NONE, "")
        host.update("given-by-hand")
    applied.execute(f"drop role {role}")
    with applied.host(databasePort="1") as host:
        assert host.diff("given-by-hand") == (DIFF_NONE, "")
