"""`make demo`, on a platform and a provisioner of its own."""

import pytest

from dev.demo import Demo
from embedded.errors import UserError
from tests.support.provisioning import TOKEN, World


def demo(world: World, port: int) -> Demo:
    return Demo(
        world.platform.url,
        world.platform.service_url("stripe_handler"),
        f"http://127.0.0.1:{port}",
        TOKEN,
        world.cluster,
        world.namespace,
    )


def test_a_customers_life_is_as_it_should_be(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    with world.running() as service:
        demo(world, service.port).play()
    told = capsys.readouterr().out
    assert "WRONG" not in told
    assert told.count("\n   ok: ") > 25
    assert told.endswith("That was a customer's life: every step was as it should be.\n")


def test_what_is_not_as_it_should_be_ends_it(world: World) -> None:
    world.db.execute("update private.tiers set max_messages_per_day = 7 where tier = 'starter'")
    with (
        world.running() as service,
        pytest.raises(UserError, match="step 2 is not what it should be"),
    ):
        demo(world, service.port).play()


def test_a_provisioner_that_does_not_answer_is_told(world: World) -> None:
    with pytest.raises(UserError, match="does not answer") as caught:
        demo(world, 9).get("00000000-0000-0000-0000-000000000000")
    assert caught.value.remedy == "make up CLUSTER=1 starts it"
