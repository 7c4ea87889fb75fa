"""The simulated device against the receiver: what it can send, and that it does not give up."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from services import rooms
from services.adapters.syslog.simulator import ProtocolError
from services.broker import free_port
from shared import dialect
from shared.events import Kind, utcnow
from shared.site import load
from tests.adapters.syslog.house import Certificates, House, device, running, simulator
from tests.gateway import until

ROOM = Path(__file__).resolve().parents[3] / "services" / "adapters" / "syslog"
DEVICES: dict[str, dict[str, Any]] = {
    "generic": {"hall": {"type": "motion"}, "leak": {"type": "water_leak", "reading": {"active": "wet"}}},
    "apc": {"smoke": {"type": "smoke", "contact": 1}},
    "nut": {"ups-1": {"type": "intrusion", "ups": "rack@localhost"}},
    "routeros": {"cable": {"type": "intrusion", "port": "ether5"}},
    "cisco-ios": {"cable": {"type": "intrusion", "port": "1/0/12"}},
    "unifi": {
        "porch": {"type": "motion", "camera": "Front Door"},
        "switch": {"type": "intrusion", "device": "USW Dock"},
        "cable": {"type": "intrusion", "client": "AA:bb:cc:dd:ee:01"},
    },
    "raritan": {"leak": {"type": "water_leak", "slot": 3, "label": "Leak rope"}},
    "basip": {"entrance": {"type": "access_control", "door": "entrance"}},
    "comet": {"flood": {"type": "water_leak", "channel": "Cellar"}},
}


def test_every_profile_is_tried() -> None:
    assert set(DEVICES) == set(dialect.names("services.adapters.syslog"))


@pytest.mark.parametrize("form", ["rfc5424", "rfc3164", "plain"])
@pytest.mark.parametrize("profile", DEVICES)
async def test_every_kind_that_every_sensor_can_send(profile: str, form: Any) -> None:
    about = device(profile=profile, sensors=DEVICES[profile])
    house = House({"box": about})
    sent: list[tuple[str, str | None, str]] = []
    async with (
        running(house) as adapter,
        simulator("box", about, adapter.ports["tcp"], form=form) as simulated,
    ):
        for sensor in ["box", *DEVICES[profile]]:
            kinds = simulated.kinds(sensor)
            assert kinds or sensor == "box", f"nothing can be said of {sensor}"
            for kind in sorted(kinds):
                marker = f"m-{len(sent)}"
                await simulated.send(sensor, kind, marker)
                sent.append((kind, None if sensor == "box" else sensor, marker))
        await house.has(len(sent))
    assert house.kinds == [(kind, sensor) for kind, sensor, _ in sent]
    if form != "plain" and not (form == "rfc3164" and profile == "comet"):  # whose texts have no room
        for report, (_, _, marker) in zip(house.reports, sent, strict=True):
            assert any(marker in value for value in report.details.values()), report
    assert house.refused == []


async def test_the_example_runs_against_it() -> None:
    """Each sensor of example.yaml can be simulated, and its events find it."""
    site = load(ROOM / "example.yaml", {"syslog": rooms.room("syslog")})
    devices: Any = site.devices_of("syslog")
    house = House(devices)
    house.timezone = site.timezone
    wanted = []
    async with running(house) as adapter:
        for id_, about in devices.items():
            async with simulator(id_, about, adapter.ports["tcp"]) as simulated:
                for sensor in about.sensors:
                    kind = min(simulated.kinds(sensor))
                    await simulated.send(sensor, kind, "m")
                    wanted.append((str(kind), sensor))
        await house.has(len(wanted))
    assert sorted(house.kinds, key=str) == sorted(wanted, key=str)
    assert house.refused == []
    for report in house.reports:  # whatever the site's timezone is
        assert report.time is not None
        assert abs(report.time - utcnow()) < timedelta(minutes=5)


async def test_local_time() -> None:
    about = device(profile="apc", sensors=DEVICES["apc"], timezone="Pacific/Auckland")
    house = House({"box": about})
    async with running(house) as adapter, simulator("box", about, adapter.ports["tcp"]) as simulated:
        simulated.clock_error = timedelta(seconds=-95)
        await simulated.send("smoke", Kind.SMOKE_DETECTED, "m")
        await house.has(1)
    (report,) = house.reports
    assert report.time is not None
    assert timedelta(seconds=95) <= utcnow() - report.time < timedelta(minutes=5)


@pytest.mark.parametrize("framing", ["octet_counting", "non_transparent"])
async def test_it_holds_its_connection_and_opens_another_when_it_is_gone(framing: Any) -> None:
    about = device()
    house = House({"box": about})
    async with running(house) as adapter:
        port = adapter.ports["tcp"]
        simulated = simulator("box", about, port, framing=framing)
        await simulated.send("hall", Kind.MOTION_DETECTED, "one")
        await simulated.send("hall", Kind.MOTION_CLEARED, "two")
        await house.has(2)
    async with simulated:
        sending = asyncio.create_task(simulated.send("hall", Kind.MOTION_DETECTED, "three"))
        await asyncio.sleep(0.05)
        assert not sending.done()
        house.change(settings={"tcp": f"127.0.0.1:{port}"})
        async with running(house):
            await sending
            await house.has(3)
    assert [report.details["fields.note"] for report in house.reports] == ["one", "two", "three"]


async def test_it_goes_on_where_its_connection_breaks_while_it_waits() -> None:
    """Between two looks at what is still on its way."""
    about = device()
    house = House({"box": about})
    async with running(house) as adapter, simulator("box", about, adapter.ports["tcp"]) as simulated:
        await simulated.send("hall", Kind.MOTION_DETECTED, "one")
        link = simulated._link
        assert link is not None
        link._check = lambda: None  # type: ignore[method-assign]
        drain = link._writer.drain

        async def broken() -> None:
            await drain()
            link._writer.transport.abort()
            await asyncio.sleep(0)

        link._writer.drain = broken  # type: ignore[method-assign]
        await simulated.send("hall", Kind.MOTION_CLEARED, "two")
        await until(lambda: "two" in [report.details["fields.note"] for report in house.reports])


async def test_udp_asks_nothing() -> None:
    about = device()
    house = House({"box": about})
    gone = f"udp://127.0.0.1:{free_port()}"
    await simulator("box", about, 0, url=gone).send("hall", Kind.MOTION_DETECTED, "lost")
    async with running(house) as adapter:
        url = f"udp://127.0.0.1:{adapter.ports['udp']}"
        await simulator("box", about, 0, url=url).send("hall", Kind.MOTION_DETECTED, "one")
        await house.has(1)
    assert house.kinds == [("motion.detected", "hall")]


async def test_tls(tmp_path: Path) -> None:
    files = Certificates(tmp_path)
    about = device()
    house = House({"box": about}, tls=files.settings())
    async with running(house) as adapter:
        async with simulator("box", about, adapter.ports["tls"], tls=files.context()) as simulated:
            await simulated.send("hall", Kind.MOTION_DETECTED, "one")
            await house.has(1)
        untrusting = simulator("box", about, 0, url=f"tls://127.0.0.1:{adapter.ports['tls']}")
        with pytest.raises(ProtocolError, match="certificate"):
            await untrusting.send("hall", Kind.MOTION_DETECTED, "two")
        await until(lambda: "tls" in house.refused)
    assert house.kinds == [("motion.detected", "hall")]


async def test_what_it_cannot_say() -> None:
    with pytest.raises(ValueError, match="no sample"):
        await simulator("box", device(profile="apc", sensors=DEVICES["apc"]), 1).send(
            "smoke", Kind.POS_SALE, "m"
        )
    with pytest.raises(ValueError, match="udp://"):
        simulator("box", device(), 1, url="http://127.0.0.1:80")


async def test_a_receiver_that_answers() -> None:
    async def wrong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"OK\n")
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(wrong, "127.0.0.1", 0)
    async with server, simulator("box", device(), server.sockets[0].getsockname()[1]) as simulated:

        async def on_and_on() -> None:
            while True:
                await simulated.send("hall", Kind.MOTION_DETECTED, "m")
                await asyncio.sleep(0.01)

        with pytest.raises(ProtocolError, match="answers"):
            await asyncio.wait_for(on_and_on(), 10)
