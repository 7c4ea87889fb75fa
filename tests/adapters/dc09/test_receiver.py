"""The receiver, by its answers and what it takes."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from services.adapters.dc09 import codec
from services.adapters.dc09.cipher import Key
from shared.events import utcnow
from tests.adapters.dc09.house import KEYS, House, ask_udp, client, device, frame, keyed, running, word

FIRE = "#1234|Nri1/FA12^Kitchen^"


async def talk(house: House, *frames: bytes) -> list[str]:
    """The word of the answer to each frame, "" for none; over one connection."""
    async with running(house) as adapter:
        said = []
        for data in frames:
            async with client(adapter) as panel:
                await panel.say(data)
                panel.writer.write_eof()
                async with asyncio.timeout(10):
                    answer = await panel.reader.read()
                said.append(word(answer) if answer else "")
        return said


class TestAnswers:
    async def test_a_plain_event_is_acknowledged_with_its_own_header(self) -> None:
        house = House({"panel": device(account="001234")})
        async with running(house) as adapter, client(adapter) as panel:
            answer = await panel.ask(frame("#001234|NFA12", sequence="0042", head="R00C0FFL0012#001234"))
        assert answer == codec.wrap(b'"ACK"0042R00C0FFL0012#001234[]')
        assert house.kinds == [("smoke.detected", "smoke")]

    @pytest.mark.parametrize("key", KEYS)
    async def test_an_encrypted_event_is_acknowledged_encrypted(self, key: str) -> None:
        house = House({"panel": keyed(key)})
        async with running(house) as adapter, client(adapter) as panel:
            answer = await panel.ask(frame(FIRE, key=key))
        (found,) = codec.Splitter().feed(answer)
        assert isinstance(found, codec.Frame)
        header = codec.parse_header(found)
        content = codec.parse_content(header, Key(KEYS[key]).decrypt)
        assert (header.token, header.encrypted, header.sequence) == ("ACK", True, "0001")
        assert content.data == ""
        assert content.stamp
        assert abs(content.stamp - utcnow()) < timedelta(seconds=30)

    async def test_udp_is_answered_from_the_same_port(self) -> None:
        house = House({"panel": keyed()})
        async with running(house) as adapter:
            answer = await asyncio.to_thread(ask_udp, adapter, frame(FIRE, key="key128"))
        assert word(answer or b"") == "*ACK"
        assert house.kinds == [("smoke.detected", "smoke")]

    async def test_nothing_is_acknowledged_before_it_is_safe(self) -> None:
        house = House({"panel": device()})
        safe = asyncio.Event()
        house.before_emit = safe.wait
        async with running(house) as adapter, client(adapter) as panel:
            await panel.say(frame(FIRE))
            answer = asyncio.create_task(panel.answer())
            await asyncio.sleep(0.05)
            assert not answer.done()
            safe.set()
            assert word(await answer) == "ACK"

    async def test_a_full_store_is_no_acknowledgement_and_the_repeat_is_taken(self) -> None:
        house = House({"panel": device()})
        house.full = True
        assert await talk(house, frame(FIRE)) == [""]
        assert house.refused == ["store_full"]
        house.full = False
        assert await talk(house, frame(FIRE)) == ["ACK"]
        assert len(house.reports) == 1

    async def test_one_emit_for_all_events_of_a_frame(self) -> None:
        house = House({"panel": device()})
        emits = []
        house.before_emit = lambda: emits.append(1)
        await talk(house, frame("#1234|Nri1FA012/ti10:23FT013"))
        assert house.kinds == [("smoke.detected", "smoke"), ("fire.trouble", "leak")]
        assert emits == [1]
        assert len({report.running for report in house.reports}) == 2

    async def test_link_test(self) -> None:
        house = House({"panel": device(), "other": keyed(account="AB")})
        now = utcnow().replace(microsecond=0)
        said = await talk(
            house,
            frame("", token="NULL", sequence="0000"),
            frame("", token="NULL", sequence="0000", head="L0#ab", stamp=now, key="key128"),
        )
        assert said == ["ACK", "*ACK"]
        assert house.alive == [("panel", None, None), ("other", None, now)]
        assert house.reports == []

    async def test_a_token_that_is_not_known_is_duh(self) -> None:
        house = House({"panel": device()})
        assert await talk(house, frame("#1234|21", token="ADM-41E"), frame("")) == ["DUH", "DUH"]
        assert house.refused == ["token", "content"]

    @pytest.mark.parametrize("token", ["ACK", "NAK", "DUH", "RSP"])
    async def test_an_answer_is_never_answered(self, token: str) -> None:
        house = House({"panel": device()}, refusal="duh")
        assert await talk(house, frame("", token=token)) == [""]


class TestTrust:
    @pytest.mark.parametrize(
        ("panel", "sent", "reason"),
        [
            (keyed(), frame(FIRE), "plaintext"),
            (keyed(), frame("", token="NULL"), "plaintext"),
            (keyed(), frame(FIRE, key="key256"), "wrong_key"),
            (device(), frame(FIRE, key="key128"), "encrypted"),
            (keyed("nowhere"), frame(FIRE, key="key128"), "key"),
            (keyed("nowhere"), frame(FIRE), "plaintext"),
            (device(account="999"), frame(FIRE), "unknown_account"),
            (device(receiver="2"), frame(FIRE, head="R1L0#1234"), "unknown_account"),
            (device(line="A"), frame(FIRE), "unknown_account"),
            (device(), codec.wrap(b'"SIA-DCS"0001L0#1234'), "header"),
            (keyed(), codec.wrap(b'"*SIA-DCS"0001L0#1234[0011'), "encrypted"),
            (keyed(), codec.wrap(b'"*SIA-DCS"0001L0#1234[xyz'), "encrypted"),
            (device(), codec.wrap(b'"SIA-DCS"0001L0#1234[#1234|NFA1'), "content"),
        ],
        # Frames hold the time, and every worker must collect the same.
        ids=lambda value: value if isinstance(value, str) else "",
    )
    @pytest.mark.parametrize("refusal", ["silent", "duh"])
    async def test_refused(self, panel: Any, sent: bytes, reason: str, refusal: str) -> None:
        house = House({"panel": panel}, refusal=refusal)
        said = await talk(house, sent)
        assert reason in house.refused
        assert said == ["DUH" if refusal == "duh" and reason != "header" else ""]
        assert house.reports == []
        assert house.alive == []

    async def test_no_key_is_ever_told(self) -> None:
        house = House({"panel": keyed()}, refusal="duh")
        asks = [
            frame("|Nri1/RP0][K" + "A" * 32),
            frame("", token="NULL"),
            frame("][K", key="key128"),
            frame(FIRE + "][K" + KEYS["key128"], key="key128"),
        ]
        async with running(house) as adapter:
            heard = b""
            for ask in asks:
                async with client(adapter) as panel:
                    await panel.say(ask)
                    panel.writer.write_eof()
                    heard += await panel.reader.read()
        everything = heard.decode() + repr(house.reports) + repr(house.rejections) + repr(house.memory)
        assert KEYS["key128"].upper() not in everything.upper()
        assert "[K" not in everything

    async def test_accounts_share_a_port_and_a_prefix_tells_equal_ones_apart(self) -> None:
        house = House(
            {"a": device(), "b": device(line="7", sensors={}), "c": device(account="5", sensors={})}
        )
        said = await talk(house, frame(FIRE), frame(FIRE, head="L0007#1234"), frame("#5|NPA1", head="L0#5"))
        assert said == ["ACK"] * 3
        assert [report.device for report in house.reports] == ["a", "b", "c"]


class TestTime:
    @pytest.mark.parametrize(("off", "good"), [(-35, True), (15, True), (-50, False), (30, False)])
    async def test_window(self, off: int, good: bool) -> None:
        house = House({"panel": keyed(skewed="refuse")})
        at = utcnow() + timedelta(seconds=off)
        assert await talk(house, frame(FIRE, key="key128", stamp=at)) == ["*ACK" if good else "NAK"]
        assert len(house.reports) == good

    async def test_nak_tells_the_right_time_and_nothing_else(self) -> None:
        house = House({"panel": keyed()})
        async with running(house) as adapter, client(adapter) as panel:
            old = utcnow() - timedelta(hours=1)
            answer = await panel.ask(frame(FIRE, key="key128", stamp=old))
        (found,) = codec.Splitter().feed(answer)
        assert isinstance(found, codec.Frame)
        assert found.body.startswith(b'"NAK"0000R0L0A0[]_')
        stamp = codec.parse_content(codec.parse_header(found)).stamp
        assert stamp
        assert abs(stamp - utcnow()) < timedelta(seconds=30)

    async def test_skewed_is_kept_once_told_once_and_acknowledged_when_it_comes_again(self) -> None:
        house = House({"panel": keyed()})
        wrong = utcnow() - timedelta(hours=1)
        said = await talk(
            house,
            frame(FIRE, key="key128", stamp=wrong),
            frame(FIRE, key="key128", stamp=utcnow()),
            frame("#1234|NFH12", sequence="0002", key="key128", stamp=utcnow()),
        )
        assert said == ["NAK", "*ACK", "*ACK"]
        assert house.kinds == [("smoke.detected", "smoke"), ("smoke.cleared", "smoke")]
        assert list(house.reports[0].labels) == ["clock-skewed"]
        assert house.reports[0].details["clock_offset_seconds"] in ("-3600", "-3601")
        assert list(house.reports[1].labels) == []

    async def test_a_panel_that_never_sets_its_clock_is_acknowledged_all_the_same(self) -> None:
        house = House({"panel": keyed()})
        wrong = utcnow() - timedelta(hours=1)
        said = await talk(
            house,
            frame(FIRE, key="key128", stamp=wrong),
            frame(FIRE, key="key128", stamp=wrong + timedelta(seconds=2)),
            frame("#1234|NFH12", sequence="0002", key="key128", stamp=wrong + timedelta(seconds=9)),
            frame("", token="NULL", sequence="0000", key="key128", stamp=wrong + timedelta(seconds=9)),
        )
        assert said == ["NAK", "*ACK", "*ACK", "*ACK"]
        assert len(house.reports) == 2

    @pytest.mark.parametrize("stamp", ["_00:00:00,00-00-2000", "_24:00:00,11-22-2026"])
    async def test_a_panel_without_a_clock_is_told_the_time_and_loses_nothing(self, stamp: str) -> None:
        house = House({"panel": keyed()})
        said = await talk(house, *[frame(FIRE, key="key128", stamp=stamp)] * 2)
        assert said == ["NAK", "*ACK"]
        assert (house.kinds, house.repeats) == ([("smoke.detected", "smoke")], 1)
        assert (house.reports[0].time, list(house.reports[0].labels)) == (None, ["clock-skewed"])
        assert "clock_offset_seconds" not in house.reports[0].details
        plain = House({"panel": device()})
        assert await talk(plain, frame(FIRE, stamp=stamp)) == ["ACK"]
        assert (plain.kinds, plain.reports[0].time) == ([("smoke.detected", "smoke")], None)
        strict = House({"panel": keyed(skewed="refuse")})
        assert await talk(strict, frame(FIRE, key="key128", stamp=stamp)) == ["NAK"]
        assert (strict.reports, strict.refused) == ([], ["skewed"])

    async def test_a_restart_between_the_nak_and_the_repeat_makes_no_second_nak(self) -> None:
        house = House({"panel": keyed()})
        wrong = utcnow() - timedelta(hours=1)
        assert await talk(house, frame(FIRE, key="key128", stamp=wrong)) == ["NAK"]
        assert await talk(house, frame(FIRE, key="key128", stamp=wrong + timedelta(seconds=9))) == ["*ACK"]
        assert (len(house.reports), house.repeats) == (1, 1)

    async def test_a_panel_that_does_not_number_is_known_again_after_a_nak(self) -> None:
        house = House({"panel": keyed()})
        wrong, now = utcnow() - timedelta(hours=1), utcnow()
        alarm = frame(FIRE, key="key128", sequence="0000", stamp=wrong)
        again, new = (
            frame(FIRE, key="key128", sequence="0000", stamp=now - timedelta(seconds=back)) for back in (9, 0)
        )
        assert await talk(house, alarm, again, new) == ["NAK", "*ACK", "*ACK"]
        assert (len(house.reports), house.repeats) == (2, 1)

    async def test_a_new_site_file_does_not_make_it_tell_the_time_again(self) -> None:
        house = House({"panel": keyed()})
        wrong = utcnow() - timedelta(hours=1)
        async with running(house) as adapter, client(adapter) as panel:
            assert word(await panel.ask(frame(FIRE, key="key128", stamp=wrong))) == "NAK"
            house.change(devices={"panel": keyed(name="New name", sensors={})})
            await asyncio.sleep(0.01)
            other = frame("#1234|NFH12", key="key128", sequence="0002", stamp=wrong)
            assert word(await panel.ask(other)) == "*ACK"
        assert house.kinds[1] == ("fire.cleared", None)

    async def test_strict_refuses_a_replay_until_the_clock_is_right(self) -> None:
        house = House({"panel": keyed(skewed="refuse")})
        recorded = frame(FIRE, key="key128", stamp=utcnow() - timedelta(minutes=5))
        said = await talk(house, recorded, recorded, frame(FIRE, key="key128"))
        assert said == ["NAK", "NAK", "*ACK"]
        assert house.refused == ["skewed", "skewed"]
        assert len(house.reports) == 1
        assert len(house.alive) == 2  # of the good one: the panel, and its sensor

    async def test_a_plain_message_may_have_waited_without_blame_on_the_clock(self) -> None:
        house = House({"panel": device()})
        old, now = utcnow() - timedelta(hours=2), utcnow().replace(microsecond=0)
        assert await talk(house, frame(FIRE, stamp=old), frame("#1234|NFH12", stamp=now)) == ["ACK", "ACK"]
        assert [clock for _, sensor, clock in house.alive if sensor is None] == [None, now]
        assert house.reports[0].time == old.replace(microsecond=0)

    async def test_time_of_occurrence_goes_before_time_of_sending(self) -> None:
        house = House({"panel": device()})
        await talk(house, frame(FIRE + "][H01:02:03,11-20-2026", stamp=utcnow()))
        assert house.reports[0].time is not None
        assert house.reports[0].time.isoformat() == "2026-11-20T01:02:03+00:00"


class TestRepeats:
    async def test_the_same_frame_again_is_the_same_event(self) -> None:
        house = House({"panel": device()})
        again = frame(FIRE, stamp=utcnow())
        assert await talk(house, again, again, again) == ["ACK"] * 3
        assert (len(house.reports), house.repeats) == (1, 2)

    @pytest.mark.parametrize("key", [None, "key128"])
    async def test_under_a_new_stamp_it_still_is(self, key: str | None) -> None:
        house = House({"panel": keyed() if key else device()})
        now = utcnow()
        frames = [frame(FIRE, key=key, stamp=now + timedelta(seconds=more)) for more in (-20, -10, 0)]
        await talk(house, *frames)
        assert (len(house.reports), house.repeats) == (1, 2)

    async def test_even_after_a_restart(self) -> None:
        house = House({"panel": keyed()})
        now = utcnow()
        await talk(house, frame(FIRE, key="key128", stamp=now - timedelta(seconds=20)))
        await talk(house, frame(FIRE, key="key128", stamp=now))
        assert (len(house.reports), house.repeats) == (1, 1)

    async def test_without_a_stamp_the_gateway_is_told_how_long(self) -> None:
        house = House({"panel": device(repeat_window="90s")})
        await talk(house, frame(FIRE), frame(FIRE))
        assert (len(house.reports), house.repeats) == (1, 1)
        assert house.reports[0].repeat_window == 90
        assert house.reports[0].time is None

    async def test_beyond_the_window_it_is_a_new_event(self) -> None:
        house = House({"panel": device(repeat_window=0.001)})
        now = utcnow()
        async with running(house) as adapter, client(adapter) as panel:
            await panel.ask(frame(FIRE, stamp=now - timedelta(seconds=9)))
            await asyncio.sleep(0.01)
            await panel.ask(frame(FIRE, stamp=now))
        assert len(house.reports) == 2

    async def test_the_same_content_under_the_next_number_is_a_new_event(self) -> None:
        house = House({"panel": device()})
        now = utcnow()
        await talk(house, frame(FIRE, stamp=now), frame(FIRE, sequence="0002", stamp=now))
        assert len(house.reports) == 2

    @pytest.mark.parametrize(("sequence", "known_after"), [("0000", 0), ("0001", 1)])
    async def test_a_panel_that_does_not_number_loses_nothing(self, sequence: str, known_after: int) -> None:
        """Number 0000 is for link tests; of another one, two contents in a row show that it stands still."""
        house = House({"panel": device()})
        now = utcnow()
        alarm, restore = "#1234|NBA16", "#1234|NBH16"
        contents = [*([alarm, restore] * known_after), alarm, alarm, restore, alarm]
        frames = [
            frame(data, sequence=sequence, stamp=now + timedelta(seconds=at - 9))
            for at, data in enumerate(contents)
        ]
        await talk(house, *frames)
        assert len(house.reports) == len(contents)


class TestChanges:
    async def test_a_new_device_a_new_key_and_a_new_port(self) -> None:
        house = House({"panel": keyed()})
        async with running(house) as adapter:
            async with client(adapter) as panel:
                assert word(await panel.ask(frame(FIRE, key="key128"))) == "*ACK"
                house.change(devices={"panel": keyed("key256")})
                await asyncio.sleep(0.01)
                assert word(await panel.ask(frame(FIRE, sequence="0002", key="key256"))) == "*ACK"
            port = adapter.port
            house.change(devices={"panel": device()}, settings={"transports": ["tcp"]})
            while adapter.port in (port, None):
                await asyncio.sleep(0.001)
            async with client(adapter) as panel:
                assert word(await panel.ask(frame(FIRE, sequence="0003"))) == "ACK"

    async def test_a_port_that_is_taken_ends_it(self) -> None:
        house = House({"panel": device()})
        async with running(house) as adapter:
            other = House({"panel": device()}, listen=f"127.0.0.1:{adapter.port}")
            with pytest.raises(OSError, match="in use"):
                async with running(other):
                    pass


class TestSensors:
    @pytest.mark.parametrize(
        ("data", "kind", "sensor"),
        [
            ("NFA12", "smoke.detected", "smoke"),
            ("NFR12", "smoke.cleared", "smoke"),
            ("NFT12", "fire.trouble", "smoke"),
            ("NGA12", "fire.alarm", "smoke"),
            ("NFA13", "water.leak", "leak"),
            ("NWR13", "water.cleared", "leak"),
            ("NFA14", "fire.alarm", "fire"),
            ("NSS14", "fire.supervisory", "fire"),
            ("NBA15", "motion.detected", "hall"),
            ("NFA15", "fire.alarm", "hall"),
            ("NBR16", "intrusion.cleared", "window"),
            ("NXT16", "device.battery_low", "window"),
            ("NTA16", "device.tamper", "window"),
            ("NDG3", "access.entry_unlocked", "door"),
            ("NDF3", "access.forced_open", "door"),
            ("NDG12", "access.entry_unlocked", None),
            ("NFA3", "fire.alarm", None),
            ("NAT12", "device.power_lost", None),
            ("Nri1/OP12", "sensor.event", "arming"),
            ("Nri2/OP12", "sensor.event", None),
            ("NZZ99", "sensor.event", None),
        ],
    )
    async def test_claims(self, data: str, kind: str, sensor: str | None) -> None:
        house = House({"panel": device()})
        await talk(house, frame("#1234|" + data))
        assert house.kinds == [(kind, sensor)]

    async def test_the_most_particular_sensor_wins(self) -> None:
        sensors = {
            "any": {"type": "intrusion", "area": 1},
            "zone": {"type": "intrusion", "zone": 5},
            "tamper": {"type": "intrusion", "zone": 5, "codes": ["TA", "137"]},
        }
        house = House({"panel": device(sensors=sensors)})
        await talk(house, frame("#1234|Nri1/BA5/TA5/BA6"))
        assert [sensor for _, sensor in house.kinds] == ["zone", "tamper", "any"]

    async def test_states_users_and_old_news(self) -> None:
        house = House({"panel": device()})
        await talk(
            house,
            frame("#1234|NTA16"),
            frame("#1234|Nri1/id7^Ann^/OP7", sequence="0002"),
            frame("#1234|OBA16", sequence="0003"),
            frame("#1234|6130 01 016", sequence="0004", token="ADM-CID"),
        )
        assert house.states == [("window", {"tamper": True})]
        tamper, opening, old, still = house.reports
        assert opening.actor
        assert (opening.actor.id, opening.actor.name) == ("7", "Ann")
        assert [tamper.replayed, old.replayed, still.replayed] == [False, True, True]


class TestFire:
    @pytest.mark.parametrize(
        ("token", "alarm", "trouble", "trouble_ends", "alarm_ends"),
        [
            ("SIA-DCS", "NFA14", "NFT14", "NFJ14", "NFH14"),
            ("SIA-DCS", "NFA12", "NFT12", "NFJ12", "NFH12"),
            ("ADM-CID", "1110 01 014", "1373 01 014", "3373 01 014", "3110 01 014"),
            ("ADM-CID", "1110 01 014", "1200 01 014", "3200 01 014", "3110 01 014"),
        ],
    )
    async def test_the_end_of_a_trouble_is_no_all_clear_while_the_alarm_stands(
        self, token: str, alarm: str, trouble: str, trouble_ends: str, alarm_ends: str
    ) -> None:
        house = House({"panel": device()})

        async def kinds(*data: str) -> list[str]:
            before = len(house.kinds)
            number = 10 * before
            frames = [
                frame(f"#1234|{each}", token=token, sequence=f"{number + index:04}")
                for index, each in enumerate(data, 1)
            ]
            assert await talk(house, *frames) == ["ACK"] * len(data)
            return [kind for kind, _ in house.kinds[before:]]

        began, begun = await kinds(alarm, trouble)
        assert began in ("fire.alarm", "smoke.detected")
        assert begun in ("fire.trouble", "fire.supervisory")
        # In another run of the adapter.
        assert await kinds(trouble_ends) == ["sensor.event"]
        assert await kinds(alarm_ends) == [{"fire.alarm": "fire.cleared"}.get(began, "smoke.cleared")]
        assert await kinds(trouble, trouble_ends) == [begun, "fire.cleared"]
        assert not [key for key in house.memory if key.startswith("alarm/")]
