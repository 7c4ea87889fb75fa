# mypy: ignore-errors
"""A fire panel made with rusty-bacnet (a stack in Rust): life-safety points that are subscribed, binary
inputs that report by themselves, and a workstation that acknowledges. Arguments: its port, ours.

Lines of JSON on stdin: {"point", "state"}, {"tracking", "state"}, {"input", "active"}, {"acknowledge"}.
"""

import asyncio
import json
import sys

from rusty_bacnet import (
    BACnetClient,
    BACnetServer,
    BACnetTimeStamp,
    EventState,
    ObjectIdentifier,
    ObjectType,
    PropertyIdentifier,
    PropertyValue,
)

INPUTS = (1, 2, 3)
POINTS = (7, 8)


def say(**what):
    print(json.dumps(what), flush=True)


def input_(number):
    return ObjectIdentifier(ObjectType.BINARY_INPUT, number)


def point(number):
    return ObjectIdentifier(ObjectType.LIFE_SAFETY_POINT, number)


async def main(port, gateway):
    panel = BACnetServer(
        device_instance=2001, device_name="panel", interface="127.0.0.1", port=port,
        event_information_max_returned_summaries=1,
    )  # fmt: skip
    mac = bytes((127, 0, 0, 1)) + gateway.to_bytes(2, "big")
    recipient = {"kind": "address", "network_number": 0, "mac_address": mac}
    to = {"recipient": recipient, "process_identifier": 5, "issue_confirmed_notifications": True}
    panel.add_notification_class(7, "alarms", notification_class=7, recipients=[to])
    # GetEventInformation fails as a whole where the class of any object that has one is missing.
    panel.add_notification_class(0, "none", notification_class=0)
    for number in POINTS:
        panel.add_life_safety_point(number, f"detector {number}")
    for number in INPUTS:
        panel.add_binary_input(number, f"contact {number}")
    await panel.start()
    for number in INPUTS:
        for name, value in (
            (PropertyIdentifier.NOTIFICATION_CLASS, PropertyValue.unsigned(7)),
            (PropertyIdentifier.ALARM_VALUE, PropertyValue.enumerated(1)),
            (PropertyIdentifier.EVENT_ENABLE, PropertyValue.bit_string(5, b"\xe0")),
        ):
            await panel.write_property_local(input_(number), name, value, source_object=None)
    say(listening=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        told = json.loads(line)
        if "point" in told:
            await panel.set_present_value_local(point(told["point"]), PropertyValue.enumerated(told["state"]))
        elif "tracking" in told:
            await panel.set_tracking_value_local(
                point(told["tracking"]), PropertyValue.enumerated(told["state"])
            )
        elif "input" in told:
            await panel.set_present_value_local(
                input_(told["input"]), PropertyValue.enumerated(int(told["active"]))
            )
        elif "acknowledge" in told:
            await acknowledge(panel, port, input_(told["acknowledge"]))
        say(done=told)


async def acknowledge(panel, port, object_):
    """As an operator does at a workstation of the panel's own make."""
    stamps = await panel.read_property(object_, PropertyIdentifier.EVENT_TIME_STAMPS)
    async with BACnetClient(interface="127.0.0.1", port=0) as workstation:
        await workstation.acknowledge_alarm_request(
            f"127.0.0.1:{port}", 5, object_, EventState.OFFNORMAL, stamps.value[0], "Hausmeister",
            BACnetTimeStamp.sequence_number(1),
        )  # fmt: skip


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
