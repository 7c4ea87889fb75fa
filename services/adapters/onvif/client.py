"""Asking a device: SOAP over HTTP, with HTTP digest (RFC 7616) or WS-UsernameToken, by the device's clock.

The password goes to nobody but the host of the site file: addresses of services and subscriptions that a
device tells are taken for their path (and port) only. That is also what devices behind NAT need, for
they tell the address that they know themselves by.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import ssl
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit, urlunsplit
from xml.sax.saxutils import escape

import httpx

from services.adapters.onvif import codec, soap
from services.adapters.onvif.codec import EventService, Subscription
from services.adapters.onvif.soap import Fault, Node, Unreadable
from shared.events import utcnow
from shared.transport import Transport

PATIENCE = 10.0
"""Seconds for an answer, beside those that a pull may take."""
_CONNECT = 5.0


class Refused(Exception):
    """The device does not take the account."""


class NoEvents(Exception):
    """The device has no event service."""


class HttpError(Exception):
    """An answer that is no SOAP: its status, and no more of it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


TROUBLE = (OSError, TimeoutError, httpx.TransportError, Fault, Unreadable, HttpError, Refused, NoEvents)
"""What can go wrong with a request."""


# ── HTTP digest ──────────────────────────────────────────────────────────────────────────────────

_PAIR = re.compile(r'([A-Za-z0-9-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')
_HASHES = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}


class Digest:
    """The answers to one challenge (RFC 7616; without qop RFC 2069, which old cameras speak)."""

    def __init__(self, username: str, password: str, challenge: dict[str, str]) -> None:
        self._username = username
        self._realm = challenge.get("realm", "")
        self._nonce = challenge.get("nonce", "")
        self._opaque = challenge.get("opaque")
        self._algorithm = challenge.get("algorithm", "")
        name = self._algorithm.upper() or "MD5"
        self._hash = _HASHES[name.removesuffix("-SESS")]
        self._qop = "auth" if "auth" in re.split(r"[\s,]+", challenge.get("qop", "")) else ""
        self._count = 0
        self._client = secrets.token_hex(8)
        self._secret = self._hashed(f"{username}:{self._realm}:{password}")
        if name.endswith("-SESS"):
            self._secret = self._hashed(f"{self._secret}:{self._nonce}:{self._client}")

    def _hashed(self, text: str) -> str:
        return self._hash(text.encode()).hexdigest()

    def header(self, method: str, uri: str) -> str:
        self._count += 1
        count = f"{self._count:08x}"
        between = f"{self._nonce}:{count}:{self._client}:{self._qop}" if self._qop else self._nonce
        response = self._hashed(f"{self._secret}:{between}:{self._hashed(f'{method}:{uri}')}")
        quoted = {"username": self._username, "realm": self._realm, "nonce": self._nonce, "uri": uri}
        quoted["response"] = response
        if self._opaque is not None:
            quoted["opaque"] = self._opaque
        bare = {"algorithm": self._algorithm} if self._algorithm else {}
        if self._qop:
            bare |= {"qop": self._qop, "nc": count}
            quoted["cnonce"] = self._client
        parts = [f'{name}="{value}"' for name, value in quoted.items()]
        return "Digest " + ", ".join([*parts, *(f"{name}={value}" for name, value in bare.items())])


def challenges(headers: list[str]) -> list[dict[str, str]]:
    """The digest challenges that we can answer, the strongest first."""
    found = []
    for header in headers:
        for part in re.split(r"(?i)(?:^|,)\s*(?=digest\s|basic\s|bearer\s)", header):
            scheme, _, rest = part.strip().partition(" ")
            if scheme.lower() == "digest":
                said = {name.lower(): plain or quoted for name, quoted, plain in _PAIR.findall(rest)}
                if said.get("algorithm", "MD5").upper().removesuffix("-SESS") in _HASHES and "nonce" in said:
                    found.append(said)
    return sorted(found, key=lambda said: not said.get("algorithm", "").upper().startswith("SHA-256"))


_VENDORS = "".join(f' xmlns:{prefix}="{space}"' for prefix, space in soap.VENDORS.items())

# ── The client ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Door:
    """All that decides how a device is asked."""

    service: str
    username: str | None
    password: str | None
    authentication: str
    ca_file: str | None
    check_hostname: bool


class Client:
    """Asks one device. Several requests may be under way at once."""

    def __init__(self, door: Door) -> None:
        """Raises OSError or ssl.SSLError if the CA file cannot be used."""
        self._door = door
        if door.service.startswith("https:"):
            verify = ssl.create_default_context(cafile=door.ca_file)
            verify.check_hostname = door.check_hostname
        else:
            verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without the system's CAs, some megabytes
        self._transport = Transport(verify, connections=4)
        self._digest: Digest | None = None
        self.offset = timedelta(0)
        """The device's clock minus ours, as the token must have it."""

    async def close(self) -> None:
        await self._transport.aclose()

    def address(self, told: str) -> str:
        """An address that the device told, at the host of the site file. Raises `Unreadable`."""
        own = urlsplit(self._door.service)
        try:
            other = urlsplit(told)
            other.port  # noqa: B018  raises ValueError for a bad one
        except ValueError:
            raise Unreadable("an address that it told is none") from None
        same = other.hostname == own.hostname and other.scheme == own.scheme
        netloc = other.netloc.rpartition("@")[2] if same else own.netloc
        return urlunsplit((own.scheme, netloc, other.path or "/", other.query, ""))

    async def ask(
        self,
        operation: str,
        inside: str,
        *,
        to: Subscription | str | None = None,
        patience: float = PATIENCE,
        anonymous: bool = False,
    ) -> Node:
        """The body's element of the answer. Raises what is in `TROUBLE`."""
        reference: tuple[str, ...] = ()
        said = url = self._door.service
        if isinstance(to, Subscription):
            said, reference = to.address, to.reference
            url = self.address(said)
        elif to is not None:
            said, url = to, self.address(to)
        header = soap.addressed(operation, said, f"urn:uuid:{uuid.uuid4()}", reference)
        if anonymous:
            header = ""  # the oldest devices know no addressing at their device service
        response = await self._post(operation, inside, header, url, patience, anonymous)
        if response.status_code == 401 and not anonymous:
            # Perhaps only the nonce has aged: an answer to a new one tells.
            self._take_challenge(response)
            response = await self._post(operation, inside, header, url, patience, anonymous)
            if response.status_code == 401:
                self._digest = None
                raise Refused("it refuses the user name or the password")
        return self._understood(response)

    async def _post(  # noqa: PLR0917
        self, operation: str, inside: str, header: str, url: str, patience: float, anonymous: bool
    ) -> httpx.Response:
        door = self._door
        headers = {"Content-Type": f'{soap.CONTENT_TYPE}; action="{soap.ACTIONS[operation]}"'}
        target = httpx.URL(url)
        if door.username is not None and door.password is not None and not anonymous:
            if self._digest is not None:
                headers["Authorization"] = self._digest.header("POST", target.raw_path.decode("ascii"))
            elif door.authentication != "digest":
                nonce = secrets.token_bytes(16)
                header += soap.username_token(door.username, door.password, nonce, utcnow() + self.offset)
        request = httpx.Request(
            "POST",
            target,
            headers=headers,
            content=soap.envelope(inside, header),
            extensions={"timeout": {"connect": _CONNECT, "read": patience}},
        )
        return await self._transport.handle_async_request(request)

    def _take_challenge(self, response: httpx.Response) -> None:
        """Prepare the answer to a 401. Raises `Refused` if there is none."""
        door = self._door
        if door.username is None or door.password is None:
            raise Refused("it wants an account: give credentials")
        found = challenges(response.headers.get_list("www-authenticate"))
        if not found:
            raise Refused("it refuses the account (HTTP 401), and asks for no digest that is known here")
        if door.authentication == "token":
            raise Refused("it wants HTTP digest: take `authentication: token` out")
        self._digest = Digest(door.username, door.password, found[0])

    def _understood(self, response: httpx.Response) -> Node:
        status = response.status_code
        if not response.content or (status >= 300 and b"Envelope" not in response.content[:4096]):
            if status in (401, 403):
                raise Refused(f"it refuses the account (HTTP {status})")
            if 200 <= status < 300:
                return Node("", "", {})
            raise HttpError(status)
        try:
            return soap.body(soap.parse(response.content))
        except Fault as fault:
            if fault.unauthorized:
                raise Refused(f"it refuses the account ({fault})") from None
            raise

    # ── operations ───────────────────────────────────────────────────────────────────────────────

    async def clock(self) -> datetime | None:
        """The device's clock, which it tells to anybody (Core, 5.9.3, access class PRE_AUTH), and from now on
        the tokens follow it. None if it does not tell it in UTC."""
        began = utcnow()
        answer = await self.ask("GetSystemDateAndTime", "<d:GetSystemDateAndTime/>", anonymous=True)
        said = codec.system_time(answer)
        if said is not None:
            self.follow(said, began + (utcnow() - began) / 2)
        return said

    def follow(self, said: datetime, at: datetime) -> None:
        """The device's clock said this when ours said `at`."""
        self.offset = said - at

    async def event_service(self) -> EventService:
        """Raises `NoEvents`, or as `ask`."""
        try:
            answer = await self.ask(
                "GetServices",
                "<d:GetServices><d:IncludeCapability>true</d:IncludeCapability></d:GetServices>",
            )
            found = codec.event_service(answer)
        except (Fault, HttpError):
            found = None  # older than GetServices
        if found is None:
            answer = await self.ask(
                "GetCapabilities", "<d:GetCapabilities><d:Category>All</d:Category></d:GetCapabilities>"
            )
            found = codec.event_service(answer)
        if found is None:
            raise NoEvents("it has no event service: switch ONVIF events on, if it can do them")
        if not found.storage:
            try:
                said = await self.ask(
                    "GetServiceCapabilities", "<e:GetServiceCapabilities/>", to=found.address
                )
                found = EventService(found.address, codec.has_storage(said))
            except (Fault, HttpError, Unreadable):
                pass
        return found

    async def subscribe(
        self, service: EventService, keep: float, topics: tuple[str, ...], consumer: str | None = None
    ) -> tuple[Subscription, codec.Lifetime]:
        """A pull point, or with the address of a `consumer` a subscription that pushes to it. `keep` is how
        long it lives unless renewed; a device that cannot so long is asked for a minute."""
        for length in (keep, 60.0):
            try:
                answer = await self._subscribe(service, length, topics, consumer)
                return codec.subscription(answer), codec.lifetime(answer)
            except Fault as fault:
                if length <= 60 or "TopicExpression" in str(fault.codes) or "Filter" in str(fault.codes):
                    raise
        raise AssertionError

    async def _subscribe(
        self, service: EventService, keep: float, topics: tuple[str, ...], consumer: str | None
    ) -> Node:
        filters = ""
        if topics:
            filters = (
                f'<n:Filter><n:TopicExpression{_VENDORS} Dialect="{soap.CONCRETE_SET}">'
                f"{escape('|'.join(topics))}"
                "</n:TopicExpression></n:Filter>"
            )
        if consumer is None:
            return await self.ask(
                "CreatePullPointSubscription",
                f"<e:CreatePullPointSubscription>{filters.replace('n:Filter>', 'e:Filter>')}"
                f"<e:InitialTerminationTime>{soap.period(keep)}</e:InitialTerminationTime>"
                "</e:CreatePullPointSubscription>",
                to=service.address,
            )
        return await self.ask(
            "Subscribe",
            "<n:Subscribe><n:ConsumerReference>"
            f"<a:Address>{escape(consumer)}</a:Address></n:ConsumerReference>{filters}"
            f"<n:InitialTerminationTime>{soap.period(keep)}</n:InitialTerminationTime></n:Subscribe>",
            to=service.address,
        )

    async def pull(self, at: Subscription, wait: float, limit: int) -> Node:
        return await self.ask(
            "PullMessages",
            f"<e:PullMessages><e:Timeout>{soap.period(wait)}</e:Timeout>"
            f"<e:MessageLimit>{limit}</e:MessageLimit></e:PullMessages>",
            to=at,
            patience=wait + PATIENCE,
        )

    async def renew(self, at: Subscription, keep: float) -> codec.Lifetime:
        answer = await self.ask(
            "Renew", f"<n:Renew><n:TerminationTime>{soap.period(keep)}</n:TerminationTime></n:Renew>", to=at
        )
        return codec.lifetime(answer)

    async def seek(self, at: Subscription, time: datetime) -> None:
        await self.ask("Seek", f"<e:Seek><e:UtcTime>{soap.stamp(time)}</e:UtcTime></e:Seek>", to=at)

    async def synchronise(self, at: Subscription) -> None:
        await self.ask("SetSynchronizationPoint", "<e:SetSynchronizationPoint/>", to=at)

    async def unsubscribe(self, at: Subscription) -> None:
        await self.ask("Unsubscribe", "<n:Unsubscribe/>", to=at)
