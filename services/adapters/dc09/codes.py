"""What the codes of SIA DC-03 ("SIA format") and SIA DC-05 (Contact ID) mean, as kinds of event.

A code says a condition (fire, water, tamper, …) and a phase of it (alarm, restored, trouble, …).
`kind_of` turns both, and the type of the sensor they are about, into a kind.

Both code sets are regular, and the tables below follow them: in DC-03 the first letter mostly names
the family and the second the phase (annex A of DC-03); in DC-05 the first two digits are the class
(the tables of event codes in DC-05), so that a code too new for this table still lands in its class.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from shared.events import Kind, SensorType


class Phase(StrEnum):
    ALARM = "alarm"
    RESTORED = "restored"
    TROUBLE = "trouble"
    TROUBLE_RESTORED = "trouble_restored"
    SUPERVISORY = "supervisory"
    SUPERVISORY_RESTORED = "supervisory_restored"
    BYPASS = "bypass"
    UNBYPASS = "unbypass"
    TEST = "test"
    NOTE = "note"
    """Something worth recording that begins or ends nothing."""


class About(StrEnum):
    """What the number behind a code counts."""

    ZONE = "zone"
    DOOR = "door"
    USER = "user"
    AREA = "area"
    UNIT = "unit"
    """A part of the panel: an expander, a line, a relay, a printer."""


class Meaning(NamedTuple):
    condition: str
    phase: Phase
    about: About = About.ZONE


_A, _R, _T, _N = Phase.ALARM, Phase.RESTORED, Phase.TROUBLE, Phase.NOTE
_Z, _D, _U, _AREA, _UNIT = About.ZONE, About.DOOR, About.USER, About.AREA, About.UNIT


# ── SIA DC-03 ────────────────────────────────────────────────────────────────────────────────────

_FAMILIES = {
    "B": "burglary",
    "F": "fire",
    "G": "gas",
    "H": "holdup",
    "K": "heat",
    "M": "medical",
    "P": "panic",
    "Q": "emergency",
    "S": "waterflow",
    "T": "tamper",
    "U": "untyped",
    "W": "water",
    "Z": "freeze",
}
_PHASES = {
    "A": Phase.ALARM,
    "H": Phase.RESTORED,
    "R": Phase.RESTORED,
    "T": Phase.TROUBLE,
    "J": Phase.TROUBLE_RESTORED,
    "S": Phase.SUPERVISORY,
    "B": Phase.BYPASS,
    "U": Phase.UNBYPASS,
}


def _sia() -> dict[str, Meaning]:
    table = {
        family + letter: Meaning(condition, phase)
        for family, condition in _FAMILIES.items()
        for letter, phase in _PHASES.items()
    }
    del table["TS"]  # a test begins; there is no supervisory tamper

    def put(condition: str, phase: Phase, about: About, codes: str) -> None:
        table.update((code, Meaning(condition, phase, about)) for code in codes.split())

    put("burglary", _A, _Z, "BM EA")
    put("burglary", _A, _AREA, "BV")
    put("burglary", _A, _Z, "XM CM EZ")  # the alarms of which a cross point or exit error made a report
    put("unverified", _N, _Z, "BG UG")
    put("burglary", _T, _Z, "BD")
    put("burglary", Phase.TROUBLE_RESTORED, _Z, "BE")
    put("cancel", _N, _U, "BC OC")
    put("cancel", _N, _Z, "FC AB")
    put("burglary", Phase.TEST, _Z, "BX")
    put("fire", _A, _Z, "FM")
    put("fire", Phase.SUPERVISORY, _Z, "FG FW")
    put("fire", Phase.SUPERVISORY_RESTORED, _Z, "FV FQ")
    put("fire", _T, _Z, "FY FZ")
    put("fire", Phase.TEST, _Z, "FX")
    put("fire", Phase.TEST, _AREA, "FI FK")
    put("silenced", _N, _Z, "FL")
    put("gas", Phase.TEST, _Z, "GX")
    put("analog", _T, _Z, "AS")
    put("analog", Phase.TROUBLE_RESTORED, _Z, "AN")

    put("tamper", _A, _UNIT, "ES XS")
    put("tamper", _R, _UNIT, "EJ XJ")
    put("wrong_code", _A, _AREA, "JA")
    put("mains", _T, _UNIT, "AT YP")
    put("mains", Phase.TROUBLE_RESTORED, _UNIT, "AR YQ RR")
    put("battery", _T, _UNIT, "YT YM")
    put("battery", Phase.TROUBLE_RESTORED, _UNIT, "YR")
    put("battery", _T, _Z, "XT")
    put("battery", Phase.TROUBLE_RESTORED, _Z, "XR")
    put("supervision", _T, _Z, "BZ UY UZ")
    put("supervision", _T, _UNIT, "EM")
    put("supervision", Phase.TROUBLE_RESTORED, _UNIT, "EN")
    put("test", Phase.TEST, _UNIT, "RP TX TS TE TC TW TZ VX")
    put("test", Phase.TEST, _U, "RX")
    put("test", Phase.TEST, _Z, "RY TP")

    put("access_granted", _N, _D, "DG DE")
    put("access_denied", _N, _D, "DD DI DK DP DQ DV DW DZ")
    put("exit_requested", _N, _D, "DX")
    put("door_forced", _A, _D, "DF DJ")
    put("door_held", _A, _D, "DL DM DN")
    put("door_held", _R, _D, "DH")
    put("door_forced", _R, _D, "DR")
    put("access_trouble", _T, _D, "DT")
    put("access_mode", _N, _D, "DC DO DS DY")
    put("access_cards", _N, _U, "DA DB")

    put("opening", _N, _U, "OH OJ OK OL OP OQ OR OT")
    put("opening", _N, _AREA, "OA OG OI CT")
    put("opening", _N, _Z, "OS OZ")
    put("closing", _N, _U, "CE CF CG CK CL CP CQ CR EE")
    put("closing", _N, _AREA, "CA CD CI CJ CW NF NL NM")
    put("closing", _N, _Z, "CS CZ")

    put("trouble", _T, _UNIT, "ET LT NT OU RT VT VZ VO XQ XL YA YC YD YF YI YS YU YW YX")
    put("trouble", Phase.TROUBLE_RESTORED, _UNIT, "ER IR LR NR OV VR VY VI XH YE YH YJ YK YZ")
    put("trouble", _T, _Z, "IA XE XF")
    put("trouble", Phase.TROUBLE_RESTORED, _Z, "IR")
    put("activity", _N, _Z, "NA NS XI XW")
    put("panel", _N, _U, "JD JH JK JP JS JT JV JX JY JZ")
    put("panel", _N, _AREA, "JR")
    put(
        "panel",
        _N,
        _UNIT,
        "AA CO CX DU EX JL JO LB LD LE LF LS LU LX MI NC RA RB RC RD RN RO RS RU SC UX XA XX YB YG YN YO YY",
    )
    return table


SIA: dict[str, Meaning] = _sia()
"""Every code of DC-03's list of event codes."""


# ── Contact ID, SIA DC-05 ────────────────────────────────────────────────────────────────────────

_CID_CLASSES = (
    # first, last, condition, phase of a new event
    (100, 109, "medical", _A),
    (110, 119, "fire", _A),
    (120, 129, "panic", _A),
    (130, 139, "burglary", _A),
    (140, 149, "untyped", _A),
    (150, 169, "environment", _A),
    (200, 209, "fire", Phase.SUPERVISORY),
    (300, 399, "trouble", _T),
    (400, 409, "arming", _N),
    (410, 419, "panel", _N),
    (420, 439, "access_mode", _N),
    (440, 459, "arming", _N),
    (460, 499, "panel", _N),
    (500, 579, "disabled", Phase.BYPASS),
    (600, 619, "test", Phase.TEST),
    (620, 699, "panel", _N),
    (900, 999, "panel", _N),
)

_CID_USERS = {121, 126, 313, 421, 422, 424, 425, 429, 430, 431, 435, 436, 466, 574, 604, 607, 625, 642}
_CID_USERS |= {652, 653, 655, 920, 921, 928, 929, *range(400, 416), *range(441, 445), *range(450, 460)}
_CID_USERS |= {462, 463, 464, *range(913, 917)}
_CID_UNITS = {143, 145, 411, 416, 601, 602, 603, 605, 606, 608, 609, 616, 926, 927, *range(300, 313)}
_CID_UNITS |= {*range(314, 370), *range(520, 560), *range(621, 625), *range(626, 642), *range(900, 905)}
_CID_UNITS |= {*range(954, 963)}


def _cid() -> dict[int, tuple[str, Phase]]:
    table: dict[int, tuple[str, Phase]] = {}

    def put(condition: str, phase: Phase, *codes: int) -> None:
        table.update((code, (condition, phase)) for code in codes)

    put("supervision", _T, 102, 147, 381, 382)
    put("smoke", _A, 111)
    put("waterflow", _A, 113)
    put("heat", _A, 114)
    put("fire", Phase.SUPERVISORY, 118)
    put("duress", _A, 121, 124, 125)
    put("holdup", _A, 122, 126)
    put("tamper", _A, 137, 144, 145, 316, 317, 341, 383)
    put("trouble", _T, 141, 142, 143)
    put("burglary", _A, 146, 155, 374)
    put("untyped", _A, 150)
    put("gas", _A, 151, 162)
    put("water", _A, 154)
    put("trouble", _T, 156)
    put("mains", _T, 301, 314, 337, 342, 926)
    put("battery", _T, 302, 309, 311, 338, 384)
    put("fire", _T, 373, 385, 386, 392)
    put("panel", _N, 305, 306, 308, 313, 339, 345)
    put("test", Phase.TEST, 358)
    put("panel", _N, 411, 412, 413, 414, 415, 416)
    put("cancel", _N, 406)
    put("access_denied", _N, 421, 424, 921)
    put("access_granted", _N, 422, 435)
    put("door_forced", _A, 423)
    put("exit_requested", _N, 425)
    put("door_held", _A, 426)
    put("access_trouble", _T, 427, 428, 432)
    put("panel", _N, 453, 454, 455, 457, 458)
    put("wrong_code", _A, 461)
    put("panel", _N, 605, 606, 616)
    put("test", Phase.TEST, 704, 913, 914, 915, 916, 917, 918, 919)
    put("silenced", _N, 912)
    put("fire", Phase.SUPERVISORY, 922)
    put("disabled", Phase.BYPASS, 923, 925)
    put("fire", _T, 924)
    put("trouble", _T, 927, 954, 961)
    return table


_CID = _cid()
_ENDED = {
    Phase.ALARM: Phase.RESTORED,
    Phase.TROUBLE: Phase.TROUBLE_RESTORED,
    Phase.SUPERVISORY: Phase.SUPERVISORY_RESTORED,
    Phase.BYPASS: Phase.UNBYPASS,
}


def contact_id(code: str, qualifier: str) -> Meaning | None:
    """Meaning of a three-digit event code with qualifier 1 (new, or opening), 3 (restore, or
    closing) or 6 (still present). None for a code that belongs to no class."""
    if not (code.isascii() and code.isdigit()):
        return None
    number = int(code)
    found = _CID.get(number)
    if found is None:
        for first, last, condition, phase in _CID_CLASSES:
            if first <= number <= last:
                found = (condition, phase)
                break
        else:
            return None
    condition, phase = found
    if condition == "arming":
        condition = "closing" if qualifier == "3" else "opening"
    elif qualifier == "3":
        phase = _ENDED.get(phase, phase)
    about = About.USER if number in _CID_USERS else About.UNIT if number in _CID_UNITS else About.ZONE
    return Meaning(condition, phase, about)


# ── Kinds ────────────────────────────────────────────────────────────────────────────────────────

_FIRE = frozenset({"fire", "smoke", "heat", "waterflow", "gas"})
_PANIC = frozenset({"panic", "holdup", "medical", "emergency"})
_ANY_ALARM = frozenset({"burglary", "untyped", "environment", "freeze"})

_CLEARS = {
    Kind.FIRE_ALARM: Kind.FIRE_CLEARED,
    Kind.SMOKE_DETECTED: Kind.SMOKE_CLEARED,
    Kind.WATER_LEAK: Kind.WATER_CLEARED,
    Kind.MOTION_DETECTED: Kind.MOTION_CLEARED,
    Kind.INTRUSION_ALARM: Kind.INTRUSION_CLEARED,
    Kind.INTRUSION_PANIC: Kind.INTRUSION_CLEARED,
    Kind.ACCESS_FORCED_OPEN: Kind.ACCESS_ENTRY_CLOSED,
    Kind.ACCESS_ENTRY_AJAR: Kind.ACCESS_ENTRY_CLOSED,
}

# Panels report whatever the installer programmed: a smoke detector as plain "fire", a leak detector
# as "burglary". What the site file calls the sensor is better known. A life-safety alarm is never
# turned into a lesser one, though: gas on a motion detector's zone stays what the panel says.
_AS_TYPED: dict[SensorType, tuple[Kind, frozenset[str]]] = {
    SensorType.SMOKE: (Kind.SMOKE_DETECTED, _ANY_ALARM | {"fire", "smoke", "heat"}),
    SensorType.FIRE_ALARM: (Kind.FIRE_ALARM, _ANY_ALARM | _FIRE | {"water"}),
    SensorType.WATER_LEAK: (Kind.WATER_LEAK, _ANY_ALARM | {"water", "waterflow", "fire"}),
    SensorType.MOTION: (Kind.MOTION_DETECTED, frozenset({"burglary", "untyped"})),
    SensorType.ACCESS_CONTROL: (Kind.ACCESS_FORCED_OPEN, frozenset({"burglary", "untyped"})),
}

_ALARMS: dict[str, Kind] = {
    **dict.fromkeys(_FIRE, Kind.FIRE_ALARM),
    **dict.fromkeys(_PANIC, Kind.INTRUSION_PANIC),
    "smoke": Kind.SMOKE_DETECTED,
    "water": Kind.WATER_LEAK,
    "burglary": Kind.INTRUSION_ALARM,
    "untyped": Kind.INTRUSION_ALARM,
    "duress": Kind.ACCESS_DURESS,
    "door_forced": Kind.ACCESS_FORCED_OPEN,
    "door_held": Kind.ACCESS_ENTRY_AJAR,
    "wrong_code": Kind.ACCESS_ENTRY_DENIED,
}
_PAIRS: dict[str, tuple[Kind, Kind]] = {
    "tamper": (Kind.DEVICE_TAMPER, Kind.DEVICE_TAMPER_CLEARED),
    "battery": (Kind.DEVICE_BATTERY_LOW, Kind.DEVICE_BATTERY_OK),
    "mains": (Kind.DEVICE_POWER_LOST, Kind.DEVICE_POWER_RESTORED),
    "supervision": (Kind.DEVICE_OFFLINE, Kind.DEVICE_ONLINE),
}
_NOTES = {
    "access_granted": Kind.ACCESS_ENTRY_UNLOCKED,
    "access_denied": Kind.ACCESS_ENTRY_DENIED,
    "exit_requested": Kind.ACCESS_EXIT_REQUESTED,
}


def kind_of(meaning: Meaning | None, sensor: SensorType | None = None) -> Kind:
    """The kind of an event with this meaning, on a sensor of this type (None: no sensor claims it).

    There is no kind for gas: it is a fire.alarm, being as urgent, with condition `gas` in its
    details. What fits no kind (an opening, a bypass, a line fault) is a sensor.event.
    """
    if meaning is None:
        return Kind.SENSOR_EVENT
    condition, phase, _ = meaning
    if phase is Phase.TEST:
        return Kind.DEVICE_TEST
    if condition in _PAIRS:
        begun, ended = _PAIRS[condition]
        if phase in (Phase.ALARM, Phase.TROUBLE):
            return begun
        return ended if phase in (Phase.RESTORED, Phase.TROUBLE_RESTORED) else Kind.SENSOR_EVENT
    if phase in (Phase.ALARM, Phase.RESTORED):
        alarm = _ALARMS.get(condition)
        typed = _AS_TYPED.get(sensor) if sensor else None
        if typed and condition in typed[1]:
            alarm = typed[0]
        if alarm is None:
            return Kind.SENSOR_EVENT
        return alarm if phase is Phase.ALARM else _CLEARS.get(alarm, Kind.SENSOR_EVENT)
    of_fire = condition in _FIRE or (
        sensor in (SensorType.SMOKE, SensorType.FIRE_ALARM) and condition in _ANY_ALARM | {"trouble"}
    )
    if of_fire:
        if phase is Phase.TROUBLE:
            return Kind.FIRE_TROUBLE
        if phase is Phase.SUPERVISORY:
            return Kind.FIRE_SUPERVISORY
        if phase in (Phase.TROUBLE_RESTORED, Phase.SUPERVISORY_RESTORED):
            return Kind.FIRE_CLEARED
    return _NOTES.get(condition, Kind.SENSOR_EVENT)
