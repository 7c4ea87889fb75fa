"""Frames and messages, by the examples of the standards and by what devices make of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.adapters.syslog import wire
from services.adapters.syslog.wire import BadFraming, Frame, Message, Splitter, Stamp

RECEIVED = datetime(2026, 3, 1, 12, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def when(text: str, zone: Any = UTC, received: datetime = RECEIVED) -> datetime | None:
    stamp = wire.parse(text.encode()).stamp
    return stamp.at(zone, received) if stamp else None


# ── RFC 5424 ─────────────────────────────────────────────────────────────────────────────────────


def test_examples_of_rfc_5424() -> None:
    """Section 6.5, examples 1 to 4."""
    first = wire.parse(
        b"<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - "
        b"\xef\xbb\xbf'su root' failed for lonvick on /dev/pts/8"
    )
    assert (first.form, first.facility, first.severity) == ("rfc5424", "auth", "crit")
    assert (first.host, first.app, first.pid, first.msgid) == ("mymachine.example.com", "su", "", "ID47")
    assert first.text == "'su root' failed for lonvick on /dev/pts/8"
    assert first.stamp
    assert first.stamp.at(BERLIN, RECEIVED) == datetime(2003, 10, 11, 22, 14, 15, 3000, UTC)

    second = wire.parse(
        b"<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time to make the do-nuts."
    )
    assert (second.facility, second.severity, second.pid) == ("local4", "notice", "8710")
    assert second.stamp
    assert second.stamp.at(BERLIN, RECEIVED) == datetime(2003, 8, 24, 12, 14, 15, 3, UTC)

    third = wire.parse(
        b"<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 "
        b'[exampleSDID@32473 iut="3" eventSource="Application" eventID="1011"] \xef\xbb\xbfAn application'
    )
    assert third.data == {"exampleSDID@32473": {"iut": "3", "eventSource": "Application", "eventID": "1011"}}
    assert third.text == "An application"

    fourth = wire.parse(
        b"<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 "
        b'[exampleSDID@32473 iut="3"][examplePriority@32473 class="high"]'
    )
    assert set(fourth.data) == {"exampleSDID@32473", "examplePriority@32473"}
    assert fourth.text == ""


def test_structured_data() -> None:
    """Section 6.3: escapes; a name that repeats; no parameters at all."""
    said = wire.parse(rb'<13>1 - - - - - [a b="\"x\" \\ \] \n"][ip ip="192.0.2.1" ip="192.0.2.2"][empty] t')
    assert said.data == {"a": {"b": '"x" \\ ] \\n'}, "ip": {"ip": ["192.0.2.1", "192.0.2.2"]}, "empty": {}}
    assert said.text == "t"


@pytest.mark.parametrize(
    "header",
    [
        "1 2003-10-11T22:14:15.003 host app - - -",  # a time without a zone
        "1 2003-10-11 22:14:15 host app - - -",
        "1 - host app - - [a b=c]",
        '1 - host app - - [a b="c"',
        '1 - host app - - [a b="c"]x',
        "1 - host app - -",
        "2 - host app - - - a later version",
    ],
)
def test_what_is_no_rfc_5424_is_text(header: str) -> None:
    message = wire.parse(f"<13>{header}".encode())
    assert message.form == "plain"
    assert message.text.endswith(header.rpartition(": ")[2])


# ── RFC 3164 and what is found in the field ──────────────────────────────────────────────────────

FIELD: list[tuple[str, dict[str, Any]]] = [
    # RFC 3164 section 5.4, examples 1, 2, 3 and 5.
    (
        "<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8",
        {
            "host": "mymachine",
            "app": "su",
            "severity": "crit",
            "text": "'su root' failed for lonvick on /dev/pts/8",
        },
    ),
    ("Use the BFG!", {"form": "plain", "facility": "user", "severity": "notice", "text": "Use the BFG!"}),
    (
        "<165>Aug 24 05:34:00 CST 1987 mymachine myproc[10]: %% It's time to make the do-nuts.",
        {"form": "rfc3164", "facility": "local4"},
    ),
    (
        "<0>1990 Oct 22 10:52:01 TZ-6 scapegoat.dmz.example.org 10.1.2.3 sched[0]: That's All Folks!",
        {"form": "plain", "severity": "emerg"},
    ),
    # rsyslog's and the kernel's habits.
    (
        "<13>Feb  5 17:32:18 10.0.0.99 root[77]: hi",
        {"host": "10.0.0.99", "app": "root", "pid": "77", "text": "hi"},
    ),
    ("<13>2026-02-05T17:32:18.000003+01:00 box app: hi", {"form": "rfc3164", "host": "box", "app": "app"}),
    ("<13>Feb  5 17:32:18 sshd[7]: no host", {"host": "", "app": "sshd", "text": "no host"}),
    ("<13>Feb  5 17:32:18 box no tag at all", {"host": "box", "app": "", "text": "no tag at all"}),
    ("<13>Feb  5 17:32:18 NAS app: hi", {"host": "NAS", "app": "app"}),
    ("<13>app: neither time nor host", {"form": "plain", "app": "app", "text": "neither time nor host"}),
    ("<999>text", {"severity": "notice", "text": "<999>text"}),
    ("", {"text": ""}),
    ("<13>", {"text": ""}),
    ("<13>Foo 11 22:14:15 box x: y", {"form": "plain"}),
    ("<13>dec 29 00:07:23 LocalHost MBM[CPU]: C=72", {"host": "LocalHost", "app": "MBM", "pid": "CPU"}),
    # Cisco: a count, its name, the state of its clock, a zone.
    (
        "<187>45: Oct  8 08:03:19.902 UTC: %LINK-3-UPDOWN: Interface Gi1/0/12, changed state to down",
        {"app": "%LINK-3-UPDOWN", "host": "", "text": "Interface Gi1/0/12, changed state to down"},
    ),
    ("<187>45: sw-1: Oct  8 08:03:19.902: %SYS-5-RESTART: x", {"host": "sw-1", "app": "%SYS-5-RESTART"}),
    ("<187>45: *Mar  1 00:57:29.076: %PM-4-ERR_DISABLE: x", {"app": "%PM-4-ERR_DISABLE", "stamp": None}),
    # RouterOS: topics in place of a tag.
    (
        "<30>Sep 23 10:16:13 RB4011-HQ interface,info ether5 link down",
        {"host": "RB4011-HQ", "app": "", "text": "interface,info ether5 link down"},
    ),
    ("<30>interface,info ether5 link down", {"form": "plain", "text": "interface,info ether5 link down"}),
    # UniFi: no priority, and a name with blanks.
    (
        "Jun 17 12:42:00 12 Elm Street CEF:0|Ubiquiti|UniFi Protect|7.1.83|2159|motion|3|msg=x",
        {
            "host": "12 Elm Street",
            "app": "CEF",
            "text": "CEF:0|Ubiquiti|UniFi Protect|7.1.83|2159|motion|3|msg=x",
        },
    ),
    ("CEF:0|a|b|c|d|e|3|", {"form": "plain", "host": "", "app": "CEF"}),
]


@pytest.mark.parametrize(("text", "wanted"), FIELD)
def test_messages_of_the_field(text: str, wanted: dict[str, Any]) -> None:
    message = wire.parse(text.encode())
    assert {name: getattr(message, name) for name in wanted} == wanted


def test_texts_are_made_safe() -> None:
    assert wire.parse(b"<13>app: one\ntwo\x00\x1b[31mthree\x7f").text == "one two  [31mthree"
    assert wire.parse("<13>app: Tür offen".encode("latin-1")).text == "Tür offen"
    assert wire.parse("<13>app: Tür offen".encode()).text == "Tür offen"
    assert wire.parse(b'<13>1 - - - - - [a b="x\ny"] t').data == {"a": {"b": "x y"}}


@pytest.mark.parametrize(
    ("text", "times", "left"),
    [
        ("<13>Feb  5 17:32:18 box last message repeated 3 times", 3, ""),
        ("<13>Feb  5 17:32:18 box app: message repeated 2 times: [ door open]", 2, "door open"),
        (
            "<13>Feb  5 17:32:18 box ipsec,error message repeated 10 times: [ bad peer ]",
            10,
            "ipsec,error bad peer",
        ),
        (
            "<13>Feb  5 17:32:18 box app: the last message repeated itself",
            0,
            "the last message repeated itself",
        ),
    ],
)
def test_repeats(text: str, times: int, left: str) -> None:
    message = wire.parse(text.encode())
    assert (message.repeated, message.text) == (times, left)


# ── Times ────────────────────────────────────────────────────────────────────────────────────────


def test_a_time_without_zone_is_the_devices() -> None:
    assert when("<13>Mar  1 13:00:00 box a: b", BERLIN) == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert when("<13>2026-03-01T13:00:00 box a: b", BERLIN) == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert when("<13>Mar  1 13:00:00 UTC: %A-1-B: b", BERLIN) == datetime(2026, 3, 1, 13, tzinfo=UTC)


def test_the_year_is_the_nearest() -> None:
    new_year = datetime(2027, 1, 1, 0, 0, 5, tzinfo=UTC)
    assert when("<13>Dec 31 23:59:58 box a: b", received=new_year) == datetime(
        2026, 12, 31, 23, 59, 58, tzinfo=UTC
    )
    old_year = datetime(2026, 12, 31, 23, 59, 58, tzinfo=UTC)
    assert when("<13>Jan  1 00:00:05 box a: b", received=old_year) == datetime(
        2027, 1, 1, 0, 0, 5, tzinfo=UTC
    )
    assert when("<13>Mar 01 2024 13:00:00 box a: b") == datetime(2024, 3, 1, 13, tzinfo=UTC)
    assert when("<13>Feb 29 13:00:00 box a: b", received=datetime(2027, 3, 1, tzinfo=UTC)) == datetime(
        2028, 2, 29, 13, tzinfo=UTC
    )


def test_the_hour_that_comes_twice_is_the_nearest() -> None:
    for hour in (0, 1):
        now = datetime(2026, 10, 25, hour, 30, tzinfo=UTC)
        assert when("<13>Oct 25 02:30:00 box a: b", BERLIN, now) == now


def test_no_time() -> None:
    assert when("<13>Feb 30 13:00:00 box a: b") is None
    assert when("<13>1 2026-13-01T00:00:00Z - - - - - x") is None
    assert when("<13>1 2026-01-01T00:00:60Z - - - - - x") == datetime(2026, 1, 1, 0, 0, 59, tzinfo=UTC)
    assert when("<13>1 0000-01-01T00:00:00Z - - - - - x") is None
    assert when("<13>1 9999-12-31T23:59:59-23:59 - - - - - x") is None


# ── Frames ───────────────────────────────────────────────────────────────────────────────────────


def split(pieces: list[bytes], longest: int = 100, framing: Any = "auto") -> list[Frame]:
    splitter = Splitter(longest, framing)
    found = [frame for piece in pieces for frame in splitter.feed(piece)]
    last = splitter.end()
    return [*found, *([last] if last else [])]


def test_both_framings_on_one_stream() -> None:
    """RFC 6587 sections 3.4.1 and 3.4.2."""
    stream = b"7 <1>abcd<2>line\n<3>nul\0\r\n5 <4>x\n9 <5>a\nb 12"
    assert split([stream]) == [
        Frame(b"<1>abcd"),
        Frame(b"<2>line"),
        Frame(b"<3>nul"),
        Frame(b"\r"),
        Frame(b"<4>x\n"),
        Frame(b"<5>a\nb 12"),
    ]


@pytest.mark.parametrize(
    ("stream", "framing", "wanted"),
    [
        (b"12 monkeys\n3 more\n", "non_transparent", [b"12 monkeys", b"3 more"]),
        (b"1234567890 x\n", "auto", [b"1234567890 x"]),  # no count is so long
        (b"007 agents\n", "auto", [b"007 agents"]),
        (b"5 <1>ab5 <1>", "auto", [b"<1>ab"]),
        (b"<1>unended", "auto", [b"<1>unended"]),
        (b"4 abc", "auto", []),
        (b"\n\n\0\n", "auto", []),
    ],
)
def test_frames(stream: bytes, framing: Any, wanted: list[bytes]) -> None:
    assert [frame.data for frame in split([stream], framing=framing)] == wanted


def test_a_long_message_is_cut_and_the_next_one_found() -> None:
    assert split([b"20 " + b"x" * 20 + b"3 abc"], 10) == [Frame(b"x" * 10, True), Frame(b"abc")]
    assert split([b"x" * 25 + b"\nabc\n"], 10) == [Frame(b"x" * 10, True), Frame(b"abc")]
    assert split([b"x" * 10 + b"\nabc\n"], 10) == [Frame(b"x" * 10), Frame(b"abc")]
    assert split([b"999999999 " + b"x" * 500], 10) == [Frame(b"x" * 10, True)]


def test_octet_counting_can_be_demanded() -> None:
    with pytest.raises(BadFraming):
        split([b"<1>line\n"], framing="octet_counting")
    assert split([b"3 abc", b"3 d"], framing="octet_counting") == [Frame(b"abc")]


@given(st.lists(st.binary(min_size=1, max_size=30)), st.integers(1, 7), st.sampled_from(["octet", "line"]))
def test_it_does_not_matter_how_a_stream_is_cut(messages: list[bytes], size: int, how: str) -> None:
    if how == "line":
        messages = [b"<" + message.translate(None, b"\n\0") for message in messages]
    framing: wire.Framing = "octet_counting" if how == "octet" else "non_transparent"
    stream = b"".join(wire.framed(message, framing) for message in messages)
    pieces = [stream[place : place + size] for place in range(0, len(stream), size)]
    assert [frame.data for frame in split(pieces)] == messages


# ── Back ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["rfc5424", "rfc3164", "plain"])
def test_what_is_encoded_is_read_again(form: Any) -> None:
    message = Message(
        form=form, facility="local3", severity="alert", host="box", app="app", pid="7", text="door open"
    )
    if form == "rfc5424":
        message.msgid, message.data = "ID", {"a@1": {"b": '"]\\', "c": ["1", "2"]}}
    read = wire.parse(wire.encode(message, RECEIVED))
    if form == "plain":
        message.host = ""
    else:
        message.stamp = Stamp(3, 1, 12, 0, 0, 0, *((2026, UTC) if form == "rfc5424" else ()))
    assert read == message
