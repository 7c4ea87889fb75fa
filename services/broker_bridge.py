"""Joins gateways to a central broker: prints the bridge of each for Mosquitto, and the centre's ACL.

    python -m services.broker_bridge conf hq central.example:8883
    python -m services.broker_bridge acl hq depot

Two layouts. By default a gateway runs its broker and its adapters, and its site's correlator and
publishers run at the centre: the bridge then is all the adapters in one, and carries up what they
write and down what they read. With `--eyes-only` a gateway is whole by itself, and the bridge shows
the centre what a reader may see; it asks for nothing. See docs/central-broker.md.

Both are made from the grants in `shared.topics`, so the bridge, the ACL and the code cannot differ.
No topic is carried both ways, so nothing can go round.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from services.broker_acl import PEOPLE, Right, acl_text, known_services, rights
from shared.topics import role_of

Direction = Literal["out", "in"]

_STATE = "$SYS/broker/connection/{client}/state"
"""Where Mosquitto says of a bridge that it is there (`1`) or not (`0`), retained."""


class Carried(NamedTuple):
    """A topic of the bridge, `out` from the gateway to the centre or `in` from it."""

    direction: Direction
    topic: str


@dataclass(frozen=True, slots=True)
class Gateway:
    """The gateway of a site, seen from the bridge."""

    site: str
    adapters: tuple[str, ...]
    """Names of the services at the gateway whose partners are at the centre."""
    eyes_only: bool = False

    @property
    def client(self) -> str:
        """Client id of the bridge at the centre."""
        return f"tocsin-{self.site}-gateway"

    @property
    def identity(self) -> str:
        return identity("gateway", self.site)

    def carried(self) -> list[Carried]:
        """What the bridge carries. Raises ValueError for what is not a site or a service."""
        if self.eyes_only:
            return [
                Carried("out", topic) for access, topic in rights(self.site, "reader") if access == "read"
            ]
        way: dict[str, Direction] = {"write": "out", "read": "in"}
        all_ = [
            Carried(way[access], topic) for name in self.adapters for access, topic in rights(self.site, name)
        ]
        return sorted(dict.fromkeys(all_), key=lambda carried: carried.direction != "out")


def identity(name: str, site: str) -> str:
    """Who `name` of `site` is at the central broker, where sites share names."""
    return f"{name}@{site}"


def identities(gateways: Iterable[Gateway], centre: Iterable[str]) -> list[str]:
    """Everybody at the central broker. `centre`: the services that run there for each site that is
    not eyes only."""
    services = sorted(centre)
    found = []
    for gateway in gateways:
        found += [gateway.identity]
        found += [identity(name, gateway.site) for name in services if not gateway.eyes_only]
        found += [identity(name, gateway.site) for name in PEOPLE]
    return [*found, *PEOPLE]


def central_acl(gateways: Sequence[Gateway], centre: Iterable[str]) -> str:
    """The ACL file of the central broker: each gateway and each service is confined to its own site.
    `operator` and `reader` see all sites, `operator@SITE` and `reader@SITE` one."""
    services = sorted(centre)
    users: dict[str, list[Right]] = {}
    for gateway in gateways:
        state = _STATE.format(client=gateway.client)
        way: dict[Direction, Literal["read", "write"]] = {"out": "write", "in": "read"}
        users[gateway.identity] = [
            *(Right(way[direction], topic) for direction, topic in gateway.carried()),
            Right("write", state),
        ]
        for name in () if gateway.eyes_only else services:
            users[identity(name, gateway.site)] = rights(gateway.site, name)
        for name in PEOPLE:
            users[identity(name, gateway.site)] = [
                *(r for r in rights(gateway.site, name) if r.access == "read" or not gateway.eyes_only),
                Right("read", state),
            ]
    for name in PEOPLE:
        users[name] = [right for gateway in gateways for right in users[identity(name, gateway.site)]]
    return acl_text(
        "Who may write and read what at the central broker. Made by services.broker_bridge.", users
    )


_WHY = {
    False: (
        "What the adapters here say goes to the centre, receipts and commands come back.",
        "# Nothing is kept for the centre while the line is down: the adapters keep every event until it is\n"
        "# receipted, and send it again. A queue of old copies would only be in the way.",
        "true",
    ),
    True: (
        "Shows the centre what is public here, and asks it for nothing.",
        "# What the centre misses while the line is down is kept, within max_queued_messages.",
        "false",
    ),
}


def bridge_conf(gateway: Gateway, central: str, certificates: str = "/mosquitto/certs") -> str:
    """What is added to the gateway's mosquitto.conf. `central` is HOST:PORT of the central broker,
    `certificates` the folder on the gateway. Raises ValueError."""
    host, colon, port = central.rpartition(":")
    if not (host and colon and port.isdecimal() and central.isprintable() and " " not in central):
        raise ValueError(f"the central broker's address is HOST:PORT, not {central!r}")
    about, queue, clean = _WHY[gateway.eyes_only]
    topics = "\n".join(f"topic {topic} {direction} 1" for direction, topic in gateway.carried())
    return f"""\
# Joins the gateway of site {gateway.site} to a central broker: add it to mosquitto.conf.
# Made by services.broker_bridge.
# {about}
connection tocsin-{gateway.site}
address {central}
remote_clientid {gateway.client}
# The receipts need MQTT 5: Response Topic and Correlation Data.
bridge_protocol_version mqttv50

# At the centre it is {gateway.identity}: the common name of its certificate. Without
# certificates: remote_username {gateway.identity} and remote_password here.
bridge_cafile {certificates}/central-ca.crt
bridge_certfile {certificates}/gateway.crt
bridge_keyfile {certificates}/gateway.key

{queue}
cleansession {clean}
# A dead line is noticed within one and a half of these, in seconds; then it is tried again, in pauses
# that grow from 1 to 15.
keepalive_interval 10
restart_timeout 1 15
# {_STATE.format(client=gateway.client)} is 1 or 0, there and here.
notifications true

{topics}
"""


def _gateways(sites: Iterable[str], eyes: Iterable[str], adapters: Iterable[str]) -> list[Gateway]:
    names = tuple(sorted(adapters))
    made = [Gateway(site, names) for site in sites] + [Gateway(site, (), eyes_only=True) for site in eyes]
    if len({gateway.site for gateway in made}) < len(made):
        raise ValueError("a site is named twice")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m services.broker_bridge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    does = parser.add_subparsers(dest="command", required=True)
    conf = does.add_parser("conf", help="the bridge of a gateway, to be added to its mosquitto.conf")
    conf.add_argument("site", help="id of the site, as in the site file's `site:`")
    conf.add_argument("central", metavar="HOST:PORT", help="the central broker")
    conf.add_argument("--eyes-only", action="store_true", help="the gateway is whole by itself")
    conf.add_argument(
        "--certs", default="/mosquitto/certs", metavar="FOLDER",
        help="where central-ca.crt, gateway.crt and gateway.key are (default: %(default)s)",
    )  # fmt: skip
    acl = does.add_parser("acl", help="the ACL of the central broker")
    names = does.add_parser("identities", help="everybody at the central broker, for make-certs")
    for each in (acl, names):
        each.add_argument("sites", nargs="*", metavar="SITE", help="correlator and publishers at the centre")
        each.add_argument(
            "--eyes-only",
            action="append",
            default=[],
            metavar="SITE",
            help="whole by itself; may be repeated",
        )
    for each in (conf, acl, names):
        each.add_argument(
            "--adapter", action="append", default=[], metavar="NAME",
            help="an adapter at the gateways, as adapter-dc09; may be repeated (default: all installed)",
        )  # fmt: skip
    given = parser.parse_args(arguments)
    known = {name: role_of(name) for name in known_services()}
    adapters = given.adapter or [name for name, role in known.items() if role == "adapter"]
    centre = [name for name, role in known.items() if role != "adapter"]
    try:
        if wrong := [name for name in adapters if role_of(name) != "adapter"]:
            raise ValueError(
                f"{', '.join(wrong)}: only adapters run at a gateway that is not whole by itself"
            )
        if given.command == "conf":
            [gateway] = _gateways(*(([], [given.site]) if given.eyes_only else ([given.site], [])), adapters)
            text = bridge_conf(gateway, given.central, given.certs)
        else:
            gateways = _gateways(given.sites, given.eyes_only, adapters)
            if not gateways:
                raise ValueError("name the sites whose gateways join")
            text = central_acl(gateways, centre)
            if given.command == "identities":
                text = "\n".join(identities(gateways, centre)) + "\n"
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
