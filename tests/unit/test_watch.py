"""What `tocsin watch` tells of an event."""

from __future__ import annotations

from services.watch import Console, Story
from shared.events import Actor, Delivery, DeliveryData, Event, Kind, Outcome, utcnow
from tests.gateway import event, sighting


class Told:
    """A story, and the lines that came of it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.story = Story(Console(self.lines.append, colour=False))

    def delivery(self, of: Event, camera: str, by: str = "vms-publisher", refused: str | None = None) -> None:
        now = utcnow()
        data = DeliveryData(
            event=of.id, sensor="till-1", kind=of.data.kind, target="vms", camera=camera,
            outcome=Outcome.DEAD_LETTER if refused else Outcome.DELIVERED, reason=refused, recordedtime=now,
            seconds=0.012,
        )  # fmt: skip
        self.story.delivery(Delivery(id="d", source=f"/hq/{by}", time=now, data=data))


def test_it_says_which_copy_delivered() -> None:
    told, one = Told(), event(Kind.POS_SALE, "till-1")
    told.story.sighting(sighting(one))
    told.delivery(one, "lobby", by="vms-publisher-2")
    assert [line.strip() for line in told.lines] == ["→ till-1: vms:lobby 12 ms by copy 2"]


def test_an_event_is_told_when_the_last_camera_has_it_that_is_in_the_vms() -> None:
    told, one = Told(), event(Kind.POS_SALE, "till-1")
    seen = sighting(one, ("lobby", "analogue", "shop"))
    places = {"lobby": True, "analogue": False}  # of the shop an older correlator does not say it
    cameras = tuple(
        camera.replace(vms=places[camera.id]) if camera.id in places else camera
        for camera in seen.data.cameras
    )
    told.story.sighting(seen.replace(data=seen.data.replace(cameras=cameras)))
    told.delivery(one, "lobby")
    assert told.lines == []
    told.delivery(one, "shop")
    assert [line.strip() for line in told.lines] == ["→ till-1: vms:lobby 12 ms, vms:shop 12 ms"]


def test_an_event_is_told_once_though_it_is_published_until_somebody_takes_it() -> None:
    told, one, other = Told(), event(Kind.POS_SALE, "till-1"), event(Kind.POS_VOID, "till-1")
    for made in (one, one, other, one):
        told.story.event(made)
        told.story.sighting(sighting(made))
    assert [line.split()[1] for line in told.lines] == ["pos.sale", "pos.void"]
    told.delivery(one, "lobby")
    # The receipt was lost: it comes again, and is not waited for again.
    told.story.event(one)
    told.story.sighting(sighting(one))
    told.delivery(one, "lobby")
    assert [line.strip().split("→ ")[1] for line in told.lines[2:]] == [
        "till-1: vms:lobby 12 ms",
        "till-1: vms:lobby 12 ms (pos.sale, earlier)",
    ]


def test_what_devices_and_targets_say_does_nothing_to_the_terminal() -> None:
    told, one = Told(), event(Kind.POS_SALE, "till-1")
    told.story.event(one.replace(data=one.data.replace(actor=Actor(name="Jo\n12:00 \x1b[2JDoe"))))
    told.story.sighting(sighting(one))
    told.delivery(one, "lobby", refused="no\r\x1b]0;such camera")
    assert len(told.lines) == 2
    assert all(line.removesuffix("\n").isprintable() for line in told.lines)
    assert "by Jo?12:00 ?[2JDoe" in told.lines[0]
    assert "REFUSED (no??]0;such camera)" in told.lines[1]
