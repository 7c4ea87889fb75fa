"""Finding devices: probes, answers, and what is printed for the site file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from services import cli, rooms
from services.adapters.onvif import discovery, soap
from services.adapters.onvif.discovery import GROUP, discover
from services.adapters.onvif.simulator import Responder
from services.discover import protocols
from shared.site import load
from tests.adapters.onvif.house import HOST

SCOPES = [
    "name/HIKVISION%20DS-2CD2423G0",
    "hardware/DS-2CD2423G0-IW",
    "location/city/dock",
    "Profile/Streaming",
    "Profile/T",
]


async def test_one_device_that_is_asked_by_its_address() -> None:
    transport, port = await Responder.listen("http://192.0.2.7:8000", SCOPES, host=HOST, port=0)
    try:
        [found] = await discover(0.5, address=f"{HOST}:{port}")
    finally:
        transport.close()
    assert found.device_id == "ds-2cd2423g0-iw-192-0-2-7"
    assert found.about == "HIKVISION DS-2CD2423G0, DS-2CD2423G0-IW, city/dock, profiles Streaming T"
    assert found.device["url"] == "http://192.0.2.7:8000"
    assert found.device["profile"] == "hikvision"


async def test_all_devices_in_reach_of_multicast() -> None:
    try:
        one, port = await Responder.listen("http://192.0.2.1", host=HOST, port=0, group=GROUP)
        two, _ = await Responder.listen("http://192.0.2.2", host=HOST, port=port, group=GROUP)
    except OSError as error:
        pytest.skip(f"there is no multicast on this machine's loopback: {error}")
    try:
        found = await discover(0.5, address=f"{GROUP}:{port}", interface=HOST)
    finally:
        one.close()
        two.close()
    assert [each.device["url"] for each in found] == ["http://192.0.2.1", "http://192.0.2.2"]


def test_an_answer_to_somebody_elses_probe_is_none() -> None:
    document = soap.envelope(
        f'<w:ProbeMatches xmlns:w="{discovery.DISCOVERY}"/>', "<a:RelatesTo>urn:uuid:other</a:RelatesTo>"
    )
    with pytest.raises(soap.Unreadable):
        discovery.matches(document, ["urn:uuid:ours"])


def test_of_several_addresses_the_one_that_answered_is_taken() -> None:
    match = soap.Node("ProbeMatch", "", {})
    addresses = soap.Node("XAddrs", "", {})
    addresses.text = "http://169.254.3.4/onvif/device_service nonsense http://192.0.2.9/onvif/other"
    match.children.append(addresses)
    found = discovery.found(match, "192.0.2.9")
    assert found is not None
    assert found.device["url"] == "http://192.0.2.9/onvif/other"
    addresses.text = "nonsense http://[::1"
    assert discovery.found(match, "192.0.2.9") is None


def test_what_is_printed_can_stand_in_the_site_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def both(duration: float, **_: object) -> list[discovery.Found]:
        match = soap.Node("ProbeMatch", "", {})
        addresses = soap.Node("XAddrs", "", {})
        addresses.text = "http://192.0.2.9/onvif/device_service"
        match.children.append(addresses)
        found = discovery.found(match, "192.0.2.9")
        assert found is not None
        return [found, discovery.Found(found.device_id, "a\x1b[31mb", found.device)]

    monkeypatch.setattr(discovery, "discover", both)
    assert cli.main(["discover", "onvif"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    devices = yaml.safe_load(printed)["devices"]
    assert list(devices) == ["192-0-2-9", "192-0-2-9-2"]
    path = tmp_path / "site.yaml"
    path.write_text(f"site: hq\n{printed}")
    site = load(path, {"onvif": rooms.room("onvif")}, adapters=("onvif",))
    assert len(site.devices) == 2


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["discover", "onvif", "--seconds", "0.2", "--address", f"{HOST}:9"]) == 1
    assert "nobody answered" in capsys.readouterr().err


def test_protocols_that_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    assert "onvif" in protocols()
    assert "dc09" not in protocols()
    assert cli.main(["discover", "dc09"]) == 2
    assert "cannot be found" in capsys.readouterr().err
    assert cli.main(["discover", "morse"]) == 2
