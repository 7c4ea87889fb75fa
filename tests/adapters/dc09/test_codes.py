"""The code tables: what must be right of them whatever else changes."""

from __future__ import annotations

import pytest

from services.adapters.dc09.codes import SIA, contact_id, kind_of
from shared.events import Kind, SensorType

# code, restore, kind, kind of the restore: by DC-03's annex A, for an event that no sensor claims
SIA_PAIRS = [
    ("FA", "FH", "fire.alarm", "fire.cleared"),
    ("FA", "FR", "fire.alarm", "fire.cleared"),
    ("FT", "FJ", "fire.trouble", "fire.cleared"),
    ("FS", "FV", "fire.supervisory", "fire.cleared"),
    ("SA", "SR", "fire.alarm", "fire.cleared"),
    ("KA", "KR", "fire.alarm", "fire.cleared"),
    ("GA", "GR", "fire.alarm", "fire.cleared"),
    ("WA", "WR", "water.leak", "water.cleared"),
    ("BA", "BR", "intrusion.alarm", "intrusion.cleared"),
    ("PA", "PR", "intrusion.panic", "intrusion.cleared"),
    ("HA", "HR", "intrusion.panic", "intrusion.cleared"),
    ("MA", "MR", "intrusion.panic", "intrusion.cleared"),
    ("TA", "TR", "device.tamper", "device.tamper_cleared"),
    ("AT", "AR", "device.power_lost", "device.power_restored"),
    ("YT", "YR", "device.battery_low", "device.battery_ok"),
    ("XT", "XR", "device.battery_low", "device.battery_ok"),
    ("EM", "EN", "device.offline", "device.online"),
    ("DF", "DR", "access.forced_open", "access.entry_closed"),
    ("DL", "DH", "access.entry_ajar", "access.entry_closed"),
    ("RP", "RX", "device.test", "device.test"),
    ("DG", "DX", "access.entry_unlocked", "access.exit_requested"),
    ("DD", "DK", "access.entry_denied", "access.entry_denied"),
    ("BB", "OP", "sensor.event", "sensor.event"),
]
# code, kind of the event, kind of its restore: by DC-05's tables
CONTACT_ID = [
    (110, "fire.alarm", "fire.cleared"),
    (111, "smoke.detected", "smoke.cleared"),
    (114, "fire.alarm", "fire.cleared"),
    (115, "fire.alarm", "fire.cleared"),
    (117, "fire.alarm", "fire.cleared"),
    (118, "fire.supervisory", "fire.cleared"),
    (100, "intrusion.panic", "intrusion.cleared"),
    (120, "intrusion.panic", "intrusion.cleared"),
    (121, "access.duress", "sensor.event"),
    (130, "intrusion.alarm", "intrusion.cleared"),
    (137, "device.tamper", "device.tamper_cleared"),
    (144, "device.tamper", "device.tamper_cleared"),
    (151, "fire.alarm", "fire.cleared"),
    (154, "water.leak", "water.cleared"),
    (162, "fire.alarm", "fire.cleared"),
    (200, "fire.supervisory", "fire.cleared"),
    (301, "device.power_lost", "device.power_restored"),
    (302, "device.battery_low", "device.battery_ok"),
    (373, "fire.trouble", "fire.cleared"),
    (381, "device.offline", "device.online"),
    (383, "device.tamper", "device.tamper_cleared"),
    (384, "device.battery_low", "device.battery_ok"),
    (401, "sensor.event", "sensor.event"),
    (421, "access.entry_denied", "access.entry_denied"),
    (422, "access.entry_unlocked", "access.entry_unlocked"),
    (423, "access.forced_open", "access.entry_closed"),
    (426, "access.entry_ajar", "access.entry_closed"),
    (570, "sensor.event", "sensor.event"),
    (602, "device.test", "device.test"),
]


@pytest.mark.parametrize(("code", "restore", "kind", "cleared"), SIA_PAIRS)
def test_sia(code: str, restore: str, kind: str, cleared: str) -> None:
    assert (kind_of(SIA[code]), kind_of(SIA[restore])) == (kind, cleared)


@pytest.mark.parametrize(("code", "kind", "cleared"), CONTACT_ID)
def test_contact_id(code: int, kind: str, cleared: str) -> None:
    assert kind_of(contact_id(str(code), "1")) == kind
    assert kind_of(contact_id(str(code), "6")) == kind
    assert kind_of(contact_id(str(code), "3")) == cleared


def test_the_sensors_type_refines_an_alarm_and_its_restore() -> None:
    fire, restored = contact_id("110", "1"), contact_id("110", "3")
    assert kind_of(fire, SensorType.SMOKE) is Kind.SMOKE_DETECTED
    assert kind_of(restored, SensorType.SMOKE) is Kind.SMOKE_CLEARED
    assert kind_of(fire, SensorType.WATER_LEAK) is Kind.WATER_LEAK
    assert kind_of(fire, SensorType.FIRE_ALARM) is Kind.FIRE_ALARM
    assert kind_of(SIA["BA"], SensorType.MOTION) is Kind.MOTION_DETECTED
    assert kind_of(SIA["BA"], SensorType.ACCESS_CONTROL) is Kind.ACCESS_FORCED_OPEN
    assert kind_of(SIA["BH"], SensorType.ACCESS_CONTROL) is Kind.ACCESS_ENTRY_CLOSED
    assert kind_of(contact_id("380", "1"), SensorType.SMOKE) is Kind.FIRE_TROUBLE


@pytest.mark.parametrize("type_", SensorType)
@pytest.mark.parametrize("code", ["FA", "GA", "KA", "SA", "PA", "HA", "MA"])
def test_no_type_makes_less_of_a_life_safety_alarm(code: str, type_: SensorType) -> None:
    """But water_leak and smoke, which say what the panel's "fire" on that zone really is."""
    kind = kind_of(SIA[code], type_)
    assert kind in (Kind.FIRE_ALARM, Kind.INTRUSION_PANIC, Kind.SMOKE_DETECTED, Kind.WATER_LEAK)
    if kind in (Kind.SMOKE_DETECTED, Kind.WATER_LEAK):
        assert type_ in (SensorType.SMOKE, SensorType.WATER_LEAK)


def test_arming_and_disarming() -> None:
    opening, closing = contact_id("401", "1"), contact_id("401", "3")
    assert opening
    assert closing
    assert (opening.condition, closing.condition) == ("opening", "closing")


def test_a_code_that_is_not_in_the_table_lands_in_its_class() -> None:
    assert kind_of(contact_id("119", "1")) is Kind.FIRE_ALARM
    assert contact_id("700", "1") is None
    assert contact_id("B01", "1") is None
    assert kind_of(None) is Kind.SENSOR_EVENT
