"""Doors and access points (profiles A, C and D), held to ONVIF's own WSDLs and schemas, which come with
onvif-zeep-async: zeep writes what the adapter reads and reads what the simulator writes, libxml2 validates
both. The values are those that doorcontrol.wsdl and accesscontrol.wsdl list."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from services.adapters.onvif import codec, soap
from services.adapters.onvif.config import Device
from services.broker import free_port
from shared.events import Kind
from tests import golden
from tests.adapters.onvif.house import simulator, world
from tests.adapters.onvif.test_peers import client, zeep
from tests.peers import require_peer

TT, WSNT = "{http://www.onvif.org/ver10/schema}", "{http://docs.oasis-open.org/wsn/b-2}"
XSD = "{http://www.w3.org/2001/XMLSchema}"
NOW = datetime(2026, 5, 5, 8, tzinfo=UTC)
KINDS: dict[str, dict[str, str | None]] = {
    "DoorAlarm": {
        "Normal": "access.entry_closed",
        "DoorForcedOpen": "access.forced_open",
        "DoorOpenTooLong": "access.entry_ajar",
    },
    "DoorPhysicalState": {
        "Unknown": None,
        "Open": "sensor.event",
        "Closed": "access.entry_closed",
        "Fault": "sensor.event",
    },
    "DoorTamper": {
        "Unknown": None,
        "NotInTamper": "device.tamper_cleared",
        "TamperDetected": "device.tamper",
    },
    "DoorFault": {"Unknown": None, "NotInFault": None, "FaultDetected": "sensor.event"},
    "DoorMode": {
        "Unknown": None,
        "Locked": None,
        "Unlocked": "sensor.event",
        "Accessed": None,
        "Blocked": "sensor.event",
        "LockedDown": "sensor.event",
        "LockedOpen": "sensor.event",
        "DoubleLocked": None,
    },
    "LockPhysicalState": {"Unknown": None, "Locked": None, "Unlocked": None, "Fault": None},
}
"""What each value of a topic below tns1:Door/State means when it was another one before."""
TYPES = {"DoorAlarm": "DoorAlarmState", "DoorTamper": "DoorTamperState", "DoorFault": "DoorFaultState"}
"""Of the WSDL, where it is not called as its topic is."""


def wsdls() -> Path:
    found = importlib.util.find_spec("onvif")
    require_peer("onvif-zeep-async", found, "pip install onvif-zeep-async")
    assert found
    assert found.origin
    return Path(found.origin).parent / "wsdl"


@cache
def listed(service: str, name: str) -> tuple[str, ...]:
    """The values of a type in a WSDL."""
    from lxml import etree  # type: ignore[import-untyped]  # noqa: PLC0415

    [found] = etree.parse(wsdls() / service).iterfind(f".//{XSD}simpleType[@name='{name}']")
    return tuple(each.get("value") for each in found.iter(f"{XSD}enumeration"))


@cache
def schema(name: str) -> Any:
    from lxml import etree  # noqa: PLC0415

    return etree.XMLSchema(etree.parse(wsdls() / name, etree.XMLParser(no_network=True)))


def validate(notification: Any) -> None:
    """A NotificationMessage, by the schemas of WS-BaseNotification and of ONVIF."""
    schema("b-2.xsd").assertValid(notification)
    [message] = notification.iter(f"{TT}Message")
    schema("onvif.xsd").assertValid(message)


@cache
def events() -> Any:
    wsdl = wsdls() / "events.wsdl"
    from zeep import Client as ZeepClient  # noqa: PLC0415

    return ZeepClient(str(wsdl))  # type: ignore[no-untyped-call]


def written(
    topic: str, source: Mapping[str, str], data: Mapping[str, str], operation: str | None, at: datetime
) -> str:
    """A notification as zeep writes it from the WSDL."""
    from lxml import etree  # noqa: PLC0415
    from zeep.xsd import AnyObject  # noqa: PLC0415

    def items(said: Mapping[str, str]) -> dict[str, Any]:
        return {"SimpleItem": [{"Name": name, "Value": value} for name, value in said.items()]}

    message_of = events().get_element(f"{TT}Message")
    message = message_of(UtcTime=at, PropertyOperation=operation, Source=items(source), Data=items(data))
    any_message = AnyObject(message_of, message)  # type: ignore[no-untyped-call]
    notification_of = events().get_element(f"{WSNT}NotificationMessage")
    notification = notification_of(
        Topic={"_value_1": f"tns1:{topic}", "Dialect": soap.CONCRETE_SET},
        Message={"_value_1": any_message},
    )
    parent = etree.Element("parent", nsmap={"tns1": "http://www.onvif.org/ver10/topics"})
    notification_of.render(parent, notification)
    validate(parent[0])
    return str(etree.tostring(parent[0], encoding="unicode"))


class Gateway:
    """Reads notifications for one door."""

    def __init__(self) -> None:
        door = {"type": "access_control", "door": "Door_1", "access_point": "AccessPoint_1"}
        said = {"adapter": "onvif", "url": "http://192.0.2.1", "sensors": {"front": door}}
        self._decoder = codec.Decoder("controller", Device.model_validate(said), "UTC")
        self._memory = golden.Remembered()
        self._time = NOW

    def read(
        self, topic: str, source: Mapping[str, str], data: Mapping[str, str], operation: str | None
    ) -> list[Any]:
        self._time += timedelta(seconds=1)
        xml = written(topic, source, data, operation, self._time)
        answer = soap.body(
            soap.parse(soap.envelope(f"<e:PullMessagesResponse>{xml}</e:PullMessagesResponse>"))
        )
        [said] = codec.notifications(answer)
        assert isinstance(said, codec.Notification)
        result = self._decoder.read(said, memory=self._memory, received=self._time)
        self._memory.update(result.memory)
        assert result.understood
        assert result.ignored is None
        assert all(report.time == self._time for report in result.reports)
        return result.reports


# ── what the adapter reads ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("topic", KINDS)
def test_the_states_are_those_that_the_wsdl_lists(topic: str) -> None:
    assert listed("doorcontrol.wsdl", TYPES.get(topic, topic)) == tuple(KINDS[topic])


@pytest.mark.parametrize(("topic", "value"), [(topic, value) for topic in KINDS for value in KINDS[topic]])
def test_each_state_of_a_door(topic: str, value: str) -> None:
    door, wanted = {"DoorToken": "Door_1"}, KINDS[topic]
    for before in wanted.keys() - {value}:
        gateway = Gateway()
        assert gateway.read(f"Door/State/{topic}", door, {"State": before}, "Initialized") == []
        reports = gateway.read(f"Door/State/{topic}", door, {"State": value}, "Changed")
        kinds = [(str(report.kind), report.sensor) for report in reports]
        ends_nothing = (topic, before, value) == ("DoorTamper", "Unknown", "NotInTamper")
        news = wanted[value] and not ends_nothing
        assert kinds == ([(wanted[value], "front")] if news else []), before


@pytest.mark.parametrize(
    ("topic", "kind"),
    [
        ("AccessGranted/Credential", Kind.ACCESS_ENTRY_UNLOCKED),
        ("AccessGranted/Anonymous", Kind.ACCESS_ENTRY_UNLOCKED),
        ("AccessTaken/Credential", Kind.SENSOR_EVENT),
        ("AccessNotTaken/Credential", Kind.SENSOR_EVENT),
        ("Duress", Kind.ACCESS_DURESS),
        ("Request/Credential", Kind.ACCESS_CREDENTIAL_PRESENTED),
    ],
)
def test_each_decision_at_an_access_point(topic: str, kind: Kind) -> None:
    person = {"CredentialToken": "Credential_7", "CredentialHolderName": "Jo & Jo"}
    data = {} if topic.endswith("Anonymous") else person
    [report] = Gateway().read(f"AccessControl/{topic}", {"AccessPointToken": "AccessPoint_1"}, data, None)
    assert (report.kind, report.sensor) == (kind, "front")
    if data:
        assert report.actor
        assert (report.actor.id, report.actor.name) == ("Credential_7", "Jo & Jo")


def test_each_reason_for_a_denial() -> None:
    reasons = listed("accesscontrol.wsdl", "DenyReason")
    assert len(reasons) == 7
    for reason in reasons:
        data = {"CredentialToken": "Credential_7", "CredentialHolderName": "Jo", "Reason": reason}
        [report] = Gateway().read(
            "AccessControl/Denied/Credential", {"AccessPointToken": "AccessPoint_1"}, data, None
        )
        assert report.kind is Kind.ACCESS_ENTRY_DENIED
        assert report.details["Data.Reason"] == reason


@pytest.mark.parametrize("name", ["standard_doors", "standard_access"])
def test_the_golden_cases_are_as_the_schemas_say(name: str) -> None:
    wsdls()
    from lxml import etree  # noqa: PLC0415

    names = f'xmlns:tt="{TT[1:-1]}" xmlns:wsnt="{WSNT[1:-1]}" xmlns:tns1="http://www.onvif.org/ver10/topics"'
    for message in golden.load(Path(__file__).parent / "golden" / f"{name}.yaml")["messages"]:
        for each in etree.fromstring(f"<all {names}>{message['xml']}</all>"):
            validate(each)


# ── what the simulator writes ────────────────────────────────────────────────────────────────────


async def test_zeep_reads_all_that_the_simulated_door_tells() -> None:
    context = world(free_port())
    async with simulator(context) as controller, zeep(controller) as peer:
        kinds = sorted(controller.kinds("door"))
        assert len(kinds) == 9
        manager = await peer.create_pullpoint_manager(timedelta(seconds=60), lambda: None)
        service = manager.get_service()

        async def told() -> None:
            for kind in kinds:
                await controller.send("door", kind, kind.value)

        sending = asyncio.create_task(told())
        found: dict[str, tuple[str, dict[str, str]]] = {}
        while len(found) < len(kinds):
            answer = await service.PullMessages({"Timeout": timedelta(seconds=5), "MessageLimit": 100})
            for one in answer.NotificationMessage:
                message = one.Message._value_1  # of the type that the schema has for it, or it raised
                data = {item.Name: item.Value for item in message.Data.SimpleItem}
                if marker := data.pop("marker", None):
                    found[marker] = one.Topic._value_1, data
                    source = {item.Name: item.Value for item in message.Source.SimpleItem}
                    assert source in ({"DoorToken": "Door_1"}, {"AccessPointToken": "AccessPoint_1"})
        sending.cancel()
        await manager.shutdown()
    for kind, (topic, data) in found.items():
        last = topic.rpartition("/")[2]
        if topic.startswith("tns1:Door/State/"):
            assert data["State"] in listed("doorcontrol.wsdl", TYPES[last]), kind
        elif "Reason" in data:
            assert data["Reason"] in listed("accesscontrol.wsdl", "DenyReason")
    assert found["access.forced_open"] == ("tns1:Door/State/DoorAlarm", {"State": "DoorForcedOpen"})


async def test_the_simulators_notifications_are_as_the_schemas_say() -> None:
    wsdls()
    from lxml import etree  # noqa: PLC0415

    context = world(free_port())
    async with simulator(context) as controller:
        door, point = (("DoorToken", "Door_1"),), (("AccessPointToken", "AccessPoint_1"),)
        said = [
            controller.happen("Door/State/DoorAlarm", door, {"State": "DoorForcedOpen"}, state=True),
            controller.happen("AccessControl/Duress", point, {"CredentialToken": "<1>"}),
        ]
        answer = soap.envelope("".join(each.xml("urn:uuid:1") for each in said))
    body = etree.fromstring(answer if isinstance(answer, bytes) else answer.encode())[-1]
    assert len(body) == 2
    for each in body:
        validate(each)


async def test_npm_onvif_pulls_the_alarm_of_a_door() -> None:
    context = world(free_port())
    async with simulator(context) as controller, client("token", controller.port) as peer:
        assert "door" in await peer.next("topics")
        sending = asyncio.create_task(controller.send("door", Kind.ACCESS_FORCED_OPEN, "pried"))
        event = await peer.event("pried")
        await sending
    assert event["topic"]["_"] == "tns1:Door/State/DoorAlarm"
    message = event["message"]["message"]
    assert message["$"]["PropertyOperation"] == "Changed"
    assert message["source"]["simpleItem"]["$"] == {"Name": "DoorToken", "Value": "Door_1"}
    states_said = [item["$"] for item in message["data"]["simpleItem"]]
    assert {"Name": "State", "Value": "DoorForcedOpen"} in states_said
