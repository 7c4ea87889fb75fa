"""Finding ONVIF devices on the network: WS-Discovery (April 2005; ONVIF Core Specification, chapter 7).

A Probe goes to a multicast group, or to one address; devices that match answer the sender. Nothing needs
an account, and nothing that is answered is believed beyond being printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from services.adapters.onvif import soap
from services.adapters.onvif.config import PATH
from services.adapters.onvif.soap import Fault, Node, Unreadable

GROUP, PORT = "239.255.255.250", 3702
"""Multicast group and port (WS-Discovery, 2.4)."""
ADDRESSING = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
DISCOVERY = "http://schemas.xmlsoap.org/ws/2005/04/discovery"
NETWORK = "http://www.onvif.org/ver10/network/wsdl"
_TYPES = ("dn:NetworkVideoTransmitter", "d:Device")
"""Cameras and encoders, and every device (Core, 7.3.2)."""
_AGAIN = (0.0, 0.25, 0.75)
"""Seconds after which a probe is sent: datagrams get lost (SOAP over UDP, appendix I)."""
_MOST = 4096


@dataclass(frozen=True, slots=True)
class Found:
    """A device that answered."""

    device_id: str
    """An id for the site file, made of its model and address."""
    about: str
    """Name, model, place and profiles, as it says."""
    device: dict[str, Any]
    """How it could stand in the site file."""


def probe(message_id: str, kind: str) -> bytes:
    """A Probe for one type."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><s:Envelope xmlns:s="{soap.ENVELOPE}" '
        f'xmlns:a="{ADDRESSING}" xmlns:w="{DISCOVERY}" xmlns:dn="{NETWORK}" xmlns:d="{soap.DEVICE}">'
        f"<s:Header><a:MessageID>{message_id}</a:MessageID>"
        "<a:To>urn:schemas-xmlsoap-org:ws:2005:04:discovery</a:To>"
        f"<a:Action>{DISCOVERY}/Probe</a:Action></s:Header>"
        f"<s:Body><w:Probe><w:Types>{kind}</w:Types></w:Probe></s:Body></s:Envelope>"
    ).encode()


def matches(document: bytes, message_ids: Iterable[str]) -> list[Node]:
    """The ProbeMatch elements of an answer to one of our probes. Raises `Unreadable`."""
    root = soap.parse(document)
    related = root.get("Header", "RelatesTo")
    try:
        said = soap.body(root)
    except Fault as fault:
        raise Unreadable(f"a fault: {fault}") from None
    if said.name != "ProbeMatches" or related not in message_ids:
        raise Unreadable("it is no answer to our probe")
    return list(said.all("ProbeMatch"))


def _url(text: str) -> SplitResult:
    """A URL; an empty one for what is none."""
    try:
        return urlsplit(text)
    except ValueError:
        return urlsplit("")


def found(match: Node, sender: str) -> Found | None:
    """What a device says of itself; None if it names no address."""
    addresses = [one for one in match.get("XAddrs").split() if _url(one).hostname]
    if not addresses:
        return None
    # A device with several networks names them all: the one by which it answered can be reached.
    address = next((one for one in addresses if urlsplit(one).hostname == sender), addresses[0])
    scopes: dict[str, list[str]] = {}
    for scope in match.get("Scopes").split():
        path = _url(scope).path.strip("/").split("/", 1)
        if len(path) == 2 and _url(scope).netloc == "www.onvif.org":
            scopes.setdefault(path[0].lower(), []).append(unquote(path[1]))
    parts = urlsplit(address)
    url = f"{parts.scheme}://{parts.netloc}"
    if parts.path not in (PATH, "", "/"):
        url += parts.path
    model = " ".join(scopes.get("hardware", []) or scopes.get("name", []))
    slug = re.sub(r"[^a-z0-9]+", "-", f"{model} {parts.hostname}".lower()).strip("-")[-64:].strip("-")
    said = [*scopes.get("name", [])[:1], *scopes.get("hardware", [])[:1], *scopes.get("location", [])[:2]]
    profiles = sorted({one for one in scopes.get("profile", []) if len(one) <= 16})
    about = ", ".join([*dict.fromkeys(said), *([f"profiles {' '.join(profiles)}"] if profiles else [])])
    device: dict[str, Any] = {
        "adapter": "onvif",
        "url": url,
        "credentials": {"username": "tocsin", "password": {"secret": slug.replace("-", "_")}},
    }
    if vendor := _vendor(" ".join([*scopes.get("name", []), model])):
        device["profile"] = vendor
    device["sensors"] = {}
    return Found(slug, about or "says nothing of itself", device)


_VENDORS = {
    "axis": r"axis",
    "bosch": r"bosch",
    "dahua": r"dahua|amcrest|lorex",
    "hanwha": r"hanwha|wisenet|samsung",
    "hikvision": r"hikvision|annke|hilook|^ds-",
    "reolink": r"reolink|^rlc-",
    "tplink": r"tp-?link|tapo|vigi",
}


def _vendor(said: str) -> str | None:
    return next((name for name, sign in _VENDORS.items() if re.search(sign, said, re.IGNORECASE)), None)


class _Asking(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.found: dict[str, Found] = {}

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if len(self.found) >= _MOST:
            return
        with contextlib.suppress(Unreadable):
            for match in matches(data, self.ids):
                one = found(match, str(addr[0]))
                if one is not None:
                    endpoint = match.get("EndpointReference", "Address") or one.device["url"]
                    self.found.setdefault(endpoint, one)


async def discover(
    duration: float = 4.0, *, address: str | None = None, interface: str | None = None
) -> list[Found]:
    """The devices that answer within so many seconds, by address.

    `address` is whom to ask, as HOST or HOST:PORT; by default everybody in reach of multicast. `interface` is
    the address of this machine's interface to ask on; by default the system's choice. Raises OSError.
    """
    host, _, port = (address or GROUP).partition(":")
    loop = asyncio.get_running_loop()
    transport, asking = await loop.create_datagram_endpoint(
        _Asking, local_addr=(interface or "0.0.0.0", 0), family=socket.AF_INET  # noqa: S104
    )  # fmt: skip
    try:
        own: socket.socket = transport.get_extra_info("socket")
        own.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
        if interface is not None:
            own.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
        questions = []
        for kind in _TYPES:
            message_id = f"urn:uuid:{uuid.uuid4()}"
            asking.ids.add(message_id)
            questions.append(probe(message_id, kind))
        async with asyncio.timeout(duration):
            for pause in _AGAIN:
                await asyncio.sleep(pause)
                for question in questions:
                    transport.sendto(question, (host, int(port or PORT)))
            await asyncio.sleep(duration)
    except TimeoutError:
        pass
    finally:
        transport.close()
    return sorted(asking.found.values(), key=lambda one: one.device["url"])
