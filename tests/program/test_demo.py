"""`make demo`, on a platform and a provisioner of its own."""

import json
from dataclasses import replace

import pytest

from dev.demo import Demo
from dev.published import environment
from embedded.errors import UserError
from tests.support.gateways import running_gateway
from tests.support.provisioning import TOKEN, World


def demo(world: World, port: int, gateway: int = 9) -> Demo:
    return Demo(
        world.platform.url,
        world.platform.service_url("stripe_handler"),
        f"http://127.0.0.1:{port}",
        TOKEN,
        f"http://127.0.0.1:{gateway}",
        world.cluster,
        world.namespace,
        mindroom=None,
        directory=world.directory / "mindroom",
    )


def test_a_customers_life_is_as_it_should_be(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        world.running() as service,
        running_gateway(
            world.platform.service_url("instance_gateway"), world.directory / "gateway.log"
        ) as gateway,
    ):
        demo(world, service.port, gateway.port).play()
    told = capsys.readouterr().out
    assert "WRONG" not in told
    assert told.count("\n   ok: ") > 25
    assert told.endswith("That was a customer's life: every step was as it should be.\n")


@pytest.mark.published
def test_a_customer_talks_to_the_published_mindroom(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    url = world.platform.service_url("instance_gateway")
    with running_gateway(url, world.directory / "gateway.log") as gateway:
        values = {"gateway": {"url": f"http://127.0.0.1:{gateway.port}", "namespace": "platform"}}
        with world.running(INSTANCE_VALUES=json.dumps(values)) as service:
            replace(demo(world, service.port, gateway.port), mindroom=environment()).play()
    assert "she is told in the room" in capsys.readouterr().out


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
