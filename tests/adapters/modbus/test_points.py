"""What values mean: edges, hysteresis, debounce, states, counters, memory."""

from __future__ import annotations

from typing import Any

import pytest

from services.adapters.modbus.points import Watch, layout
from tests.adapters.modbus.room import device


def watch_of(type_: str = "water_leak", memory: str | None = None, **sensor: Any) -> Watch:
    (watch,) = layout(device(sensors={"sensor": {"type": type_, "holding": 0} | sensor})).watches
    watch.restore(memory)
    return watch


class Played:
    """A watch that is told values, and what it said."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.memory: str | None = None
        self.pulses = 0
        self.now = 100.0

    def see(self, *values: int, after: float = 1.0) -> list[str]:
        self.now += after
        change = self.watch.see(values, self.now)
        if change is None:
            return []
        self.memory, self.pulses = change.memory, change.pulses
        self.watch.settle(change)
        return [kind.value for kind in change.kinds]


def played(*args: Any, **sensor: Any) -> Played:
    return Played(watch_of(*args, **sensor))


def test_only_edges_are_events_and_the_first_state_is_known() -> None:
    one = played()
    assert [one.see(value) for value in (1, 1, 0, 0, 1, 7)] == [
        [],
        [],
        ["water.cleared"],
        [],
        ["water.leak"],
        [],
    ]


@pytest.mark.parametrize(("value", "expected"), [(1, ["water.leak"]), (0, [])])
def test_the_first_state_where_it_is_wanted(value: int, expected: list[str]) -> None:
    assert played(first=True).see(value) == expected


def test_what_happened_while_the_gateway_was_away_is_an_event() -> None:
    one = played()
    one.see(0)
    for value, expected in ((0, []), (1, ["water.leak"]), (1, []), (0, ["water.cleared"])):
        again = Played(watch_of(memory=one.memory))
        assert again.see(value) == expected
        one.memory = again.memory or one.memory


def test_a_state_remembered_of_another_definition_is_not_compared() -> None:
    one = played()
    one.see(0)
    assert Played(watch_of(memory=one.memory, inverted=True)).see(0) == []
    assert Played(watch_of(memory=one.memory, holding=1)).see(1) == []
    assert Played(watch_of(memory=one.memory, debounce="1s", cameras=[])).see(1, after=0) == []
    # The kinds may change: it is the same state.
    assert Played(watch_of(memory=one.memory, active="device.tamper")).see(1) == ["device.tamper"]


@pytest.mark.parametrize("memory", ["", "|", "||", "nonsense", "a|b|c", "\0"])
def test_a_memory_that_cannot_be_read_is_none(memory: str) -> None:
    assert watch_of(memory=memory).confirmed is None


def test_inverted() -> None:
    one = played("fire_alarm", inverted=True)
    assert [one.see(value) for value in (1, 0, 1)] == [[], ["fire.alarm"], ["fire.cleared"]]


def test_a_bit_of_a_register_and_a_mask() -> None:
    one = played(bit=3)
    assert [one.see(value) for value in (0, 0xFFF7, 8, 0)] == [[], [], ["water.leak"], ["water.cleared"]]
    one = played(mask=0x0F00, states={"0": None, "5": "water.leak", "6": "device.tamper"})
    assert [one.see(value) for value in (0x00FF, 0x05FF, 0xF600, 0)] == [
        [], ["water.leak"], ["device.tamper"], ["water.cleared", "device.tamper_cleared"],
    ]  # fmt: skip


def test_debounce_waits_and_keeps_the_final_state() -> None:
    one = played(debounce="375ms")
    one.see(0)
    # A bounce that ends where it began is nothing.
    assert [one.see(value, after=0.125) for value in (1, 0, 1, 0, 0, 0, 0, 0)] == [[]] * 8
    # One that ends in the other state is one event, once that has lasted.
    said = [one.see(value, after=0.125) for value in (1, 0, 1, 1, 1, 1, 1)]
    assert said == [[], [], [], [], [], ["water.leak"], []]
    assert one.watch.due is None


def test_debounce_over_a_silence_and_a_restart() -> None:
    one = played(debounce="2s")
    one.see(0)
    memory = one.memory
    one.see(1, after=0.1)
    assert one.watch.due == one.now + 2.0
    assert one.see(1, after=60) == ["water.leak"]
    again = Played(watch_of(memory=memory, debounce="2s"))
    assert (again.see(1), again.see(1, after=2.0)) == ([], ["water.leak"])


def test_a_change_is_found_until_it_is_settled() -> None:
    """The store was full, say."""
    watch = watch_of()
    first = watch.see([0], 1.0)
    assert first
    watch.settle(first)
    for now in (2.0, 3.0):
        change = watch.see([1], now)
        assert change
        assert (change.kinds[0].value, change.since) == ("water.leak", 2.0)
    assert watch.see([0], 4.0) is None


def test_a_threshold_with_hysteresis() -> None:
    one = played("smoke", format="int16", scale=0.1, above=60, hysteresis=2)
    values = (200, 600, 601, 590, 580, 579, 590, 600, 601, -300 & 0xFFFF)
    said = [one.see(value) for value in values]
    assert said == [
        [], [], ["smoke.detected"], [], ["smoke.cleared"], [], [], [], ["smoke.detected"], ["smoke.cleared"],
    ]  # fmt: skip


def test_hysteresis_after_a_restart() -> None:
    one = played("smoke", above=60, hysteresis=5)
    one.see(50), one.see(61)
    again = Played(watch_of("smoke", memory=one.memory, above=60, hysteresis=5))
    assert (again.see(58), again.see(55)) == ([], ["smoke.cleared"])


def test_a_band() -> None:
    one = played("water_leak", below=10, above=20, hysteresis=1)
    assert [one.see(value) for value in (15, 9, 10, 11, 21, 20, 19)] == [
        [], ["water.leak"], [], ["water.cleared"], ["water.leak"], [], ["water.cleared"],
    ]  # fmt: skip
    inverted = played("water_leak", below=10, hysteresis=2, inverted=True)
    assert [inverted.see(value) for value in (5, 10, 9, 11, 12)] == [[], [], [], [], ["water.leak"]]
    assert inverted.see(9) == ["water.cleared"]


def test_states() -> None:
    states = {"0": "water.cleared", "1": "water.leak", "2..5": "device.tamper", "0x10": "sensor.event"}
    one = played(states=states)
    assert [one.see(value) for value in (0, 1, 1, 3, 4, 99, 4, 0, 16, 0, 2, 0)] == [
        [], ["water.leak"], [], ["device.tamper"], [], [], [], ["water.cleared", "device.tamper_cleared"],
        ["sensor.event"], ["water.cleared"], ["device.tamper"], ["device.tamper_cleared"],
    ]  # fmt: skip


def test_what_was_active_is_remembered_for_its_restore() -> None:
    states = {"0": None, "1": "water.leak", "2": "device.tamper"}
    one = played(states=states)
    one.see(0), one.see(1), one.see(2)
    again = Played(watch_of(memory=one.memory, states=states))
    assert again.see(0) == ["water.cleared", "device.tamper_cleared"]


def test_a_counter() -> None:
    one = played("motion", format="uint32", counter=True)
    assert one.see(0, 5) == []
    assert (one.see(0, 6), one.pulses) == (["motion.detected"], 1)
    assert one.see(0, 6) == []
    assert (one.see(0, 16), one.pulses) == (["motion.detected"], 10)
    assert one.see(0, 0) == [], "it was reset"
    assert (one.see(0, 2), one.pulses) == (["motion.detected"], 2)
    again = Played(watch_of("motion", memory=one.memory, format="uint32", counter=True))
    assert (again.see(0, 9), again.pulses) == (["motion.detected"], 7)


def test_no_reading_changes_nothing() -> None:
    one = played("smoke", format="float32", above=5, no_reading=[0])
    one.see(0x3F80, 0)
    assert one.see(0x7FC0, 0) == []  # not a number
    assert one.watch.silent
    assert one.see(0x7F80, 0) == []  # infinite
    assert one.see(0, 0) == []
    assert one.see(0x41A0, 0) == ["smoke.detected"]
    assert not one.watch.silent


def test_kinds_by_default_and_by_will() -> None:
    assert played("access_control").watch.kinds == {
        "active": "access.entry_ajar",
        "normal": "access.entry_closed",
    }
    forced = played("access_control", active="access.forced_open")
    assert forced.watch.kinds == {"active": "access.forced_open", "normal": "access.entry_closed"}
    lost = layout(device(points=[{"coil": 1, "active": "device.power_lost"}])).watches[0]
    assert lost.kinds == {"active": "device.power_lost", "normal": "device.power_restored"}
    assert played("ai").watch.kinds["normal"] is None


def test_states_of_the_sensor() -> None:
    one = played("water_leak", active="device.battery_low")
    assert one.watch.states() == {}
    one.see(0)
    assert one.watch.states() == {"battery_low": False}
    one.see(1)
    assert one.watch.states() == {"battery_low": True}


def test_addresses_from_one() -> None:
    watches = layout(
        device(
            first_address=1,
            sensors={"a": {"type": "ai", "coil": 1, "also": [{"holding": 40, "active": "device.tamper"}]}},
        )
    ).watches
    assert [watch.spot.where for watch in watches] == ["coil 0", "holding register 39"]


def test_a_profiles_sensor_with_what_the_site_says_of_it() -> None:
    (watch,) = layout(
        device(
            profile="dry-contacts",
            sensors={
                "relay": {"type": "fire_alarm", "contact": 3, "inverted": True, "active": "fire.trouble",
                          "debounce": "1s"}
            },
        )
    ).watches  # fmt: skip
    assert watch.spot.where == "discrete input 2"
    assert (watch.point.inverted, watch.debounce) == (True, 1.0)
    assert watch.kinds == {"active": "fire.trouble", "normal": "fire.cleared"}
