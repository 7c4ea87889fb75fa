"""The public topics, and who may write and read each.

The broker's ACL is generated from `GRANTS`, so the code and the broker cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "tocsin/v1"


@dataclass(frozen=True, slots=True)
class Topics:
    """Topics of one site."""

    site: str

    @property
    def _base(self) -> str:
        return f"{PREFIX}/{self.site}"

    def event(self, sensor_type: str, sensor: str) -> str:
        return f"{self._base}/events/{sensor_type}/{sensor}"

    def sighting(self, sensor_type: str, sensor: str) -> str:
        return f"{self._base}/sightings/{sensor_type}/{sensor}"

    def delivery(self, target: str, sensor: str) -> str:
        return f"{self._base}/deliveries/{target}/{sensor}"

    def sensor(self, sensor: str) -> str:
        return f"{self._base}/sensors/{sensor}"

    def service(self, service: str) -> str:
        return f"{self._base}/services/{service}"

    def custody(self, client: str) -> str:
        return f"{self._base}/custody/{client}"

    def command(self, service: str, verb: str) -> str:
        return f"{self._base}/commands/{service}/{verb}"

    def reply(self, client: str) -> str:
        """Where an operator's client asks for its answers (the MQTT 5 response topic)."""
        return f"{self._base}/replies/{client}"


Role = Literal["adapter", "correlator", "publisher", "operator", "reader"]


@dataclass(frozen=True, slots=True)
class Grant:
    """One line of the ACL. `{service}` and `{target}` stand for the identity's own names; all copies of a
    service share one identity, and each has topics of its own."""

    role: Role
    access: Literal["read", "write"]
    topic: str
    """Below `tocsin/v1/{site}/`."""


GRANTS: tuple[Grant, ...] = (
    Grant("adapter", "write", "events/#"),
    Grant("adapter", "write", "sensors/+"),
    Grant("adapter", "write", "services/{service}"),
    Grant("adapter", "read", "custody/{service}"),
    Grant("adapter", "read", "commands/{service}/#"),
    Grant("adapter", "write", "replies/+"),
    Grant("correlator", "read", "events/#"),
    Grant("correlator", "write", "events/#"),
    Grant("correlator", "write", "sightings/#"),
    Grant("correlator", "write", "custody/+"),
    Grant("correlator", "read", "custody/{service}"),
    Grant("correlator", "write", "services/{service}"),
    Grant("correlator", "read", "commands/{service}/#"),
    Grant("correlator", "write", "replies/+"),
    Grant("publisher", "read", "sightings/#"),
    Grant("publisher", "write", "custody/+"),
    Grant("publisher", "read", "custody/{service}"),
    Grant("publisher", "write", "deliveries/{target}/+"),
    Grant("publisher", "write", "services/{service}"),
    Grant("publisher", "read", "commands/{service}/#"),
    Grant("publisher", "write", "replies/+"),
    Grant("operator", "read", "#"),
    Grant("operator", "write", "commands/#"),
    Grant("reader", "read", "events/#"),
    Grant("reader", "read", "sightings/#"),
    Grant("reader", "read", "deliveries/#"),
    Grant("reader", "read", "sensors/#"),
    Grant("reader", "read", "services/#"),
)


def role_of(service: str) -> Role:
    """The role of a service by its name: adapter-<protocol>, correlator, <target>-publisher."""
    if service.startswith("adapter-"):
        return "adapter"
    if service.endswith("-publisher"):
        return "publisher"
    if service == "correlator":
        return "correlator"
    raise ValueError(f"{service!r} is not the name of a service")


def matches(pattern: str, topic: str) -> bool:
    """Whether an MQTT topic filter covers a topic (MQTT 5, 4.7; `$share/…/` is looked through).

    >>> matches("a/+/c/#", "a/b/c")
    True
    >>> matches("a/+", "a/b/c")
    False
    """
    if pattern.startswith("$share/"):
        pattern = pattern.split("/", 2)[2]
    levels = topic.split("/")
    parts = pattern.split("/")
    if topic.startswith("$") and parts[0] in ("+", "#"):
        return False
    for index, part in enumerate(parts):
        if part == "#":
            return True
        if index >= len(levels) or (part not in ("+", levels[index])):
            return False
    return len(parts) == len(levels)
