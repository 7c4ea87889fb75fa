"""Prints the ACL of a site's broker in Mosquitto's form: `python -m services.broker_acl SITE`.

SITE is the id of a site, or its site file: then the copies that it declares have their topics too.
Every service is a user of its own and may write and read its own topics only, as `shared.topics`
grants them. Beside the services there are two people's users: `operator`, who reads everything and
gives commands, and `reader`, who reads the public topics and writes nothing.
"""

from __future__ import annotations

import argparse
import pkgutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

import services
from services import rooms
from shared import copies
from shared.events import Slug
from shared.site import SiteError, load
from shared.topics import GRANTS, PREFIX, Role, role_of

PEOPLE: tuple[Literal["operator", "reader"], ...] = ("operator", "reader")
_ACCESS = ("read", "write", "readwrite")


class Right(NamedTuple):
    """What one identity may do at one topic (a filter, whole)."""

    access: Literal["read", "write"]
    topic: str


class Extra(NamedTuple):
    """A grant outside Tocsin's own topics: to foreign devices on the same broker."""

    user: str
    access: str
    topic: str


def known_services() -> list[str]:
    """Names of the services that are installed, as in `tocsin run NAME`."""
    adapters = [f"adapter-{name}" for name in rooms.names()]
    others = [
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(services.__path__)
        if module.name == "correlator" or module.name.endswith("_publisher")
    ]
    return adapters + others


def rights(site: str, name: str, in_copies: int = 1) -> list[Right]:
    """What a service, of which there are so many copies, or one of `PEOPLE` may do at the topics of `site`.

    >>> rights("hq", "reader")[0]
    Right(access='read', topic='tocsin/v1/hq/events/#')

    Raises ValueError for what is not a site's id or a service's name.
    """
    try:
        TypeAdapter(Slug).validate_python(site)
    except ValidationError:
        raise ValueError(f"{site!r} is not the id of a site") from None
    role: Role = name if name in PEOPLE else role_of(name)
    target = name.removesuffix("-publisher")
    own = copies.names_of(name, in_copies)
    return [
        Right(grant.access, f"{PREFIX}/{site}/{grant.topic.format(service=service, target=target)}")
        for grant in GRANTS
        if grant.role == role
        for service in (own if "{service}" in grant.topic else [name])
    ]


def acl(
    site: str,
    names: Iterable[str],
    extras: Sequence[Extra] = (),
    in_copies: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """The ACL file for the services `names` of `site`, of which there are so many copies.

    >>> print(acl("hq", ["adapter-dc09"]).partition("user ")[2].splitlines()[1])
    topic write tocsin/v1/hq/events/#

    Raises ValueError for what is not a site's id or a service's name, and for an extra grant that
    would open Tocsin's own topics.
    """
    users: dict[str, list[Right | Extra]] = {
        name: [*rights(site, name, in_copies.get(name, 1))] for name in [*sorted(names), *PEOPLE]
    }
    for extra in extras:
        _check(extra)
        users.setdefault(extra.user, []).append(extra)
    head = f"Who may write and read what at the broker of site {site}. Made by services.broker_acl."
    return acl_text(head, users)


def acl_text(about: str, users: Mapping[str, Iterable[Right | Extra]]) -> str:
    """An ACL file in Mosquitto's form."""
    blocks = [
        "\n".join([f"user {name}", *(f"topic {right.access} {right.topic}" for right in rights)])
        for name, rights in users.items()
    ]
    return "\n\n".join([f"# {about}", *blocks]) + "\n"


def _check(extra: Extra) -> None:
    if extra.access not in _ACCESS:
        raise ValueError(f"access is one of {', '.join(_ACCESS)}, not {extra.access!r}")
    if extra.topic.split("/")[0] in ("#", "+", PREFIX.split("/")[0]):
        raise ValueError(f"{extra.topic!r} takes in Tocsin's own topics, whose rights are fixed")
    if any(not text.isprintable() or text != text.strip() for text in extra):
        raise ValueError(f"a user and a topic are printable text without blanks around it, not {extra!r}")


def _site(given: str) -> tuple[str, Mapping[str, int]]:
    """Id and copies. What looks like a path is one: no id has a dot or a slash."""
    if "." not in given and "/" not in given and not Path(given).is_file():
        return given, {}
    site = load(given)
    return site.site, site.copies


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m services.broker_acl", description=(__doc__ or "").split("\n\n", 1)[1]
    )
    parser.add_argument("site", help="the site file's path; or the site's id, if there are no copies")
    parser.add_argument(
        "--service", action="append", default=[], metavar="NAME",
        help="one more service, such as adapter-foo from another package",
    )  # fmt: skip
    parser.add_argument(
        "--also", action="append", default=[], nargs=3, metavar=("USER", "ACCESS", "TOPIC"),
        help="a grant for devices that use the same broker: --also zigbee2mqtt readwrite 'zigbee2mqtt/#'"
        " --also adapter-mqtt read 'zigbee2mqtt/#'",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    extras = [Extra(*each) for each in given.also]
    try:
        id_, in_copies = _site(given.site)
        text = acl(id_, {*known_services(), *given.service}, extras, in_copies)
    except (ValueError, SiteError) as error:
        parser.error(str(error))
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
