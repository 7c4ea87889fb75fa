"""The simulator against the adapter, and the example site file against both."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr

from services.adapters.webhook import config
from services.adapters.webhook.simulator import Simulator
from shared import dialect
from shared.events import Kind
from tests.adapters.webhook.house import KEY, FakeContext, device, house

ROOM = Path(config.__file__).parent
DOOR = {"d": {"type": "access_control", "door": "7"}}
TILL = {"d": {"type": "pos", "location": "L1", "register": "R1"}}
HMAC = {"signing_secret": {"secret": "key"}}

VENDORS = {
    "generic": device(credentials=HMAC, sensors={"d": {"type": "motion"}}),
    "generic-bearer": device(credentials={"token": {"secret": "key"}}, sensors={"d": {"type": "motion"}}),
    "generic-both": device(
        credentials={**HMAC, "username": {"secret": "key"}, "password": {"secret": "key"}},
        sensors={"d": {"type": "motion", "sensor": "x"}},
    ),
    "kisi": device(profile="kisi", credentials=HMAC, sensors=DOOR),
    "verkada": device(profile="verkada", credentials=HMAC, sensors=DOOR),
    "unifi-access": device(profile="unifi-access", credentials=HMAC, sensors=DOOR),
    "square": device(
        profile="square", credentials=HMAC, sensors=TILL, public_url="https://a.example/hooks/x"
    ),
    "shopify": device(profile="shopify", credentials=HMAC, sensors=TILL),
}


@pytest.mark.parametrize("vendor", VENDORS)
async def test_every_kind_of_every_vendor(vendor: str) -> None:
    async with house({"x": VENDORS[vendor]}) as gateway:
        async with Simulator("x", VENDORS[vendor], gateway.context.secret, url=gateway.url) as simulator:
            for number, kind in enumerate(sorted(simulator.kinds)):
                await simulator.send("d", kind, f"mark-{number}")
        kinds = sorted(simulator.kinds)
        assert [report.kind for report in gateway.reports] == kinds
        assert {report.sensor for report in gateway.reports} == {"d"}
        for number, report in enumerate(gateway.reports):
            assert f"mark-{number}" in report.details.values()
        # The keypad's PIN; ids and times may hold these digits by chance.
        said = [value for r in gateway.reports for value in (*r.details.values(), *r.native.values())]
        assert not [value for value in said if re.search(r"(?<![0-9a-f])4711(?![0-9a-f])", value)]


async def test_it_comes_again_until_it_is_heard() -> None:
    lobby = VENDORS["verkada"]
    async with house({"x": lobby}) as gateway:
        gateway.context.full = True
        async with Simulator("x", lobby, gateway.context.secret, url=gateway.url) as simulator:
            sending = asyncio.create_task(simulator.send("d", Kind.ACCESS_FORCED_OPEN, "again"))
            await asyncio.sleep(0.2)
            assert not sending.done()
            gateway.context.full = False
            await sending
        assert len(gateway.reports) == 1
        assert "store_full" in gateway.context.reasons


async def test_many_at_once_are_each_one_event() -> None:
    lobby = VENDORS["generic"]
    async with house({"x": lobby}) as gateway:
        async with Simulator("x", lobby, gateway.context.secret, url=gateway.url) as simulator:
            await asyncio.gather(
                *(simulator.send("d", Kind.MOTION_DETECTED, f"m{number}") for number in range(200))
            )
        assert len(gateway.reports) == 200
        assert len({report.details["marker"] for report in gateway.reports}) == 200


async def test_a_receiver_that_is_not_there_yet() -> None:
    lobby = VENDORS["generic"]
    context = FakeContext({}, None, {"key": KEY})
    async with Simulator("x", lobby, context.secret, url="http://127.0.0.1:9") as simulator:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(simulator.send("d", Kind.MOTION_DETECTED, "m"), 0.3)


def test_what_it_cannot_play() -> None:
    context = FakeContext({}, None, {"key": KEY})
    clover = device(profile="clover", credentials={"token": {"secret": "key"}})
    with pytest.raises(ValueError, match="not simulated"):
        Simulator("x", clover, context.secret, url="http://127.0.0.1")


async def test_the_example_runs() -> None:
    site = yaml.safe_load((ROOM / "example.yaml").read_text())
    devices = {name: config.Device.model_validate(said) for name, said in site["devices"].items()}
    config.Settings.model_validate(site["adapters"]["webhook"])
    secrets = {
        ref.secret: f"key of {ref.secret}" for made in devices.values() for ref in made.credentials.values()
    }
    async with house(devices, secrets=secrets) as gateway:
        for name, made in devices.items():
            async with Simulator(name, made, gateway.context.secret, url=gateway.url) as simulator:
                for sensor in made.sensors:
                    await simulator.send(sensor, min(simulator.kinds), f"from-{sensor}")
        assert [report.sensor for report in gateway.reports] == [
            "front-door", "bar-till", "cellar-leak", "lobby-motion",
        ]  # fmt: skip


def test_the_readme_shows_the_example() -> None:
    readme = (ROOM / "README.md").read_text()
    assert f"```yaml\n{(ROOM / 'example.yaml').read_text()}```" in readme


def test_the_readme_names_every_profile() -> None:
    readme = (ROOM / "README.md").read_text()
    assert [name for name in dialect.names("services.adapters.webhook") if f"`{name}`" not in readme] == []


def test_secrets_are_not_shown() -> None:
    simulator = Simulator("x", VENDORS["generic"], lambda _: SecretStr(KEY), url="http://127.0.0.1:1")
    assert KEY not in repr(simulator)
    assert KEY.encode() not in simulator.request("d", Kind.MOTION_DETECTED, "m")
