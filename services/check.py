"""`tocsin check SITE`: whether a site file is right, and with `--online` whether its world answers.

Validates the file as every service would, with the models of all rooms; looks for every secret;
decodes every camera's token; and names what is probably not meant, such as a camera that sees
nothing. Online it tries each device (by its room's `probe`), each port that a device comes to, each
camera's token at the VMS, Camio, and the clocks; and tells what a running gateway has heard of its devices
and what it refused.

Exit codes: 0 all is well (there may be warnings), 1 something is wrong, 2 there is no such file.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr

from services import known, listening, rooms
from services.known import Known, NoGateway
from services.watch import wants_colour
from shared.bus import Endpoint
from shared.camera_token import CameraToken, TokenError, decode
from shared.clock import host_clock_synchronised
from shared.copies import names_of
from shared.events import Refusal, utcnow
from shared.http import is_page
from shared.probing import Around, Found, Port, Waits
from shared.reaching import unreached
from shared.secrets import MissingSecret, Secrets
from shared.settings import Settings
from shared.site import CamioTarget, SecretRef, Site, SiteError, Target
from shared.site.checking import read
from shared.site.mistakes import fetch
from shared.yamltext import Place, locate
from shared.yamltext import decode as decode_text

if TYPE_CHECKING:
    import httpx

_AT_ONCE = 8
_PATIENCE = 10.0
_CLOCK_TOLERANCE = 2.0
"""Seconds. The Date of an HTTP answer is cut to whole seconds and may be a moment old."""
_RECENT = timedelta(hours=1)
"""How long ago a gateway may have refused something for it to be told."""

_WAITS = {
    False: "its adapter waits for it at {where}: there is nothing to try",
    True: "trying it found nothing wrong; what it tells comes to {where}",
}

Level = Literal["error", "warning", "ok"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. Holds no secret."""

    level: Level
    where: str
    """Path of keys in the site file, or what else was looked at."""
    problem: str
    """What is the matter; with level `ok`, what was found to be right."""
    remedy: str = ""
    line: int | None = None
    column: int | None = None


@dataclass(slots=True)
class Report:
    """What a check found."""

    file: str
    findings: list[Finding] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    readable: bool = True
    untold: int = 0
    """Mistakes beyond those in `findings`."""

    def count(self, level: Level) -> int:
        return sum(finding.level == level for finding in self.findings)

    @property
    def exit_code(self) -> int:
        if not self.readable:
            return 2
        return 1 if self.count("error") else 0

    def to_json(self) -> str:
        return json.dumps(
            {
                "file": self.file,
                "exit_code": self.exit_code,
                "errors": self.count("error") + self.untold,
                "warnings": self.count("warning"),
                "summary": self.summary,
                "findings": [asdict(finding) for finding in self.findings],
            },
            indent=2,
            ensure_ascii=False,
        )

    def to_text(self, *, colour: bool = False) -> str:
        # What needs doing comes last, next to the verdict.
        findings = sorted(self.findings, key=lambda finding: _ORDER.index(finding.level))
        lines = [self._line(finding, colour) for finding in findings]
        if self.untold:
            lines.append(f"… and {self.untold} more errors")
        if self.summary:
            lines.append(_in_words(self.summary))
        errors, warnings = self.count("error") + self.untold, self.count("warning")
        verdict = (
            "all is well"
            if not errors + warnings
            else f"{_many(errors, 'error')}, {_many(warnings, 'warning')}"
        )
        return "\n".join([*lines, f"{self.file}: {verdict}"])

    def _line(self, finding: Finding, colour: bool) -> str:
        mark = finding.level.ljust(7)
        if colour:
            mark = f"\x1b[{_COLOURS[finding.level]}m{mark}\x1b[0m"
        place = f"{self.file}:{finding.line}:{finding.column} " if finding.line else ""
        where = f"{finding.where}: " if finding.where else ""
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        return f"{mark} {place}{where}{finding.problem}{remedy}"


_ORDER: tuple[Level, ...] = ("ok", "warning", "error")
_COLOURS: dict[Level, str] = {"error": "31", "warning": "33", "ok": "32"}


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _in_words(summary: dict[str, Any]) -> str:
    adapters = ", ".join(f"{name} {count}" for name, count in summary["adapters"].items())
    copies = "".join(f", {many} copies of {service}" for service, many in summary["copies"].items())
    devices = _many(summary["devices"], "device") + (f" ({adapters})" if adapters else "")
    return (
        f"site {summary['site']}: {devices}, "
        f"{_many(summary['sensors'], 'sensor')}, {_many(summary['cameras'], 'camera')}, "
        f"targets: {', '.join(summary['targets']) or 'none'}{copies}"
    )


class AllSecrets(Secrets):
    """Those of all services: each may have a folder of its own in the secrets directory."""

    def _path(self, name: str) -> Path | None:
        path = super()._path(name)
        if path is None or path.exists():
            return path
        return next(iter(sorted(path.parent.glob(f"*/{name}"))), path)


async def main(path: str, settings: Settings, *, online: bool = False, as_json: bool = False) -> int:
    """Check, print, and return the exit code. `settings` say where a gateway's broker and secrets are."""
    secrets = AllSecrets(settings.secrets_dir, warn=lambda _: None)
    broker = settings.endpoint(secrets) if online else None
    report = await check(path, online=online, secrets=secrets, broker=broker)
    print(report.to_json() if as_json else report.to_text(colour=wants_colour()))
    return report.exit_code


async def check(
    path: str | Path,
    *,
    online: bool = False,
    secrets: Secrets | None = None,
    broker: Endpoint | None = None,
) -> Report:
    """Check a site file. Whatever is wrong stands in the report; nothing is raised for it.

    `broker` is the gateway's own, which a running gateway is asked by; None if nobody knows it.
    """
    report = Report(str(path))
    try:
        data = fetch(path)
    except SiteError as error:
        report.readable = False
        report.findings += [Finding("error", "", one.problem, one.remedy) for one in error.mistakes]
        return report
    found = {}
    for name in rooms.names():
        try:
            found[name] = rooms.room(name)
        except rooms.RoomError as error:
            report.findings.append(Finding("error", f"adapter {name}", str(error), "repair or remove it"))
    try:
        site = read(data, str(path), found, adapters=rooms.names())
    except SiteError as error:
        report.untold = error.more
        report.findings += [
            Finding("error", one.where, one.problem, one.remedy, one.line, one.column)
            for one in error.mistakes
        ]
        return report
    secrets = secrets or Secrets(warn=lambda _: None)
    checker = _Checker(site, secrets, report, locate(decode_text(data)))
    cameras = checker.offline()
    if online:
        await checker.online(cameras, found, broker)
    return report


@dataclass(frozen=True, slots=True)
class _Camera:
    """A camera whose token can be used."""

    token: CameraToken
    secret: SecretStr
    url: str


class _Checker:
    def __init__(self, site: Site, secrets: Secrets, report: Report, places: Place) -> None:
        self.site = site
        self.secrets = secrets
        self.report = report
        self.places = places
        self.offsets: dict[str, float] = {}
        """Clocks of servers minus this host's, in seconds, by server."""
        self._trusts: dict[str | None, ssl.SSLContext] = {}
        self._found: dict[str, Found] = {}
        """What came of trying each device."""

    def say(self, level: Level, at: Iterable[str | int], problem: str, remedy: str = "") -> None:
        place, where = self.places, []
        for part in at:
            where.append(str(part))
            place = place.children.get(part, place)
        text = self.secrets.redact
        self.report.findings.append(
            Finding(level, ".".join(where), text(problem), text(remedy), place.line, place.column)
        )

    def say_of(self, level: Level, what: str, problem: str, remedy: str = "") -> None:
        """Of something that stands at no place of the file."""
        text = self.secrets.redact
        self.report.findings.append(Finding(level, what, text(problem), text(remedy)))

    # ── Without a network ────────────────────────────────────────────────────────────────────────

    def offline(self) -> dict[str, _Camera]:
        """All that needs no network; the cameras whose tokens can be used."""
        site = self.site
        adapters = [device.adapter for device in site.devices.values()]
        self.report.summary = {
            "site": site.site,
            "devices": len(site.devices),
            "adapters": {name: adapters.count(name) for name in sorted(set(adapters))},
            "sensors": len(site.sensors),
            "cameras": len(site.cameras),
            "targets": [name for name, _ in site.targets.items()],
            "copies": {service: many for service, many in site.copies.items() if many > 1},
        }
        for at, ref in secret_refs(site):
            try:
                self.secrets.read(ref)
            except MissingSecret as error:
                self.say("error", at, f'secret "{error.name}" {error.problem}', error.remedy)
            else:
                if complaint := self.secrets.exposed(ref):
                    self.say("warning", at, complaint)
        cameras = self._cameras()
        self._meaning()
        return cameras

    def _cameras(self) -> dict[str, _Camera]:
        cameras: dict[str, _Camera] = {}
        owner: dict[tuple[str, int], str] = {}
        target = self.site.targets.vms
        for camera_id, camera in self.site.cameras.items():
            if camera.vms is None:
                continue
            at = ("cameras", camera_id, "vms", "token")
            try:
                secret = self.secrets.read(camera.vms.token)
                token = decode(secret)
                self.secrets.conceal(token.share.get_secret_value())
                override = camera.vms.base_url or (target.base_url if target else None)
                url = token.base_url(override, insecure=bool(target and target.insecure))
            except MissingSecret:
                continue  # told already
            except TokenError as error:
                self.say("error", at, error.problem, error.remedy)
                continue
            cameras[camera_id] = _Camera(token, secret, url)
            self.say("ok", ("cameras", camera_id), f"camera {token.camid} at {url}, access {token.access}")
            first = owner.setdefault((url, token.camid), camera_id)
            if first != camera_id:
                self.say("warning", at, f'"{first}" is the same camera', "give each camera its own token")
        return cameras

    def _meaning(self) -> None:
        """What is allowed, and probably not meant."""
        site = self.site
        used = {ref.camera for device in site.devices.values() for ref in device.cameras}
        for sensor_id, (device_id, _, sensor) in site.sensors.items():
            used.update(ref.camera for ref in sensor.cameras)
            at = ("devices", device_id, "sensors", sensor_id)
            if not sensor.cameras:
                self.say("warning", at, "no camera sees this sensor", "name some in `cameras: [...]`")
            elif site.targets.vms and all(site.cameras[ref.camera].vms is None for ref in sensor.cameras):
                self.say("warning", at, "the VMS knows none of its cameras", "give them `vms: {token: …}`")
        for camera_id in site.cameras:
            if camera_id not in used:
                self.say("warning", ("cameras", camera_id), "no sensor names this camera")
        for device_id, device in site.devices.items():
            if not device.sensors:
                self.say("warning", ("devices", device_id), "this device has no sensors")
        asked = {name for _, select in _selects(site) for name in select}
        for schedule in site.schedules:
            if schedule not in asked:
                self.say("warning", ("schedules", schedule), "nothing asks for this schedule")
        for adapter in site.adapters:
            if not site.devices_of(adapter):
                self.say("warning", ("adapters", adapter), "no device speaks this protocol")
        told = {f"{name}-publisher" for name, _ in site.targets.items()}
        for service, many in site.copies.items():
            if many > 1 and service.endswith("-publisher") and service not in told:
                self.say("warning", ("copies", service), "the site has no such target: these copies idle")
        if not site.targets.items():
            self.say_of(
                "warning", "targets", "nobody is told of anything", "add `targets: {vms: {}}` or camio"
            )

    # ── With one ─────────────────────────────────────────────────────────────────────────────────

    async def online(
        self, cameras: dict[str, _Camera], found: dict[str, rooms.Room], broker: Endpoint | None
    ) -> None:
        synchronised = host_clock_synchronised()
        if synchronised:
            self.say_of("ok", "clock", "this host's clock is synchronised")
        elif synchronised is False:
            self.say_of(
                "warning",
                "clock",
                "this host's clock is not synchronised",
                "run an NTP client, such as chrony",
            )
        limit = asyncio.Semaphore(_AT_ONCE)

        async def limited(task: Coroutine[Any, Any, None]) -> None:
            async with limit:
                await task

        tasks = [self._device(device_id, found, broker) for device_id in self.site.devices]
        try:
            import httpx  # noqa: F401, PLC0415
        except ImportError:
            self.say_of("error", "targets", "httpx is not installed", "pip install 'tocsin[vms-publisher]'")
        else:
            tasks += [self._camera(camera_id, camera) for camera_id, camera in cameras.items()]
            if self.site.targets.camio:
                tasks.append(self._camio(self.site.targets.camio))
        await asyncio.gather(*(limited(task) for task in tasks))
        self._ports()
        if broker is not None:
            await self._gateway(broker)
        self._clocks()

    # ── Devices ──────────────────────────────────────────────────────────────────────────────────

    async def _device(self, device_id: str, found: dict[str, rooms.Room], broker: Endpoint | None) -> None:
        device = self.site.devices[device_id]
        at = ("devices", device_id)
        room = found.get(device.adapter)
        around = Around(
            timezone=self.site.timezone, settings=self.site.adapters.get(device.adapter), broker=broker
        )
        try:
            probe = room.load_probe() if room else None
            if probe is None:
                self.say("ok", at, f"not tried: adapter {device.adapter} has no way to")
                return
            said = self._found[device_id] = await probe(device, self.secrets.read, around)
        except rooms.RoomError as error:
            self.say("warning", at, f"not tried: {error}")
        except MissingSecret:
            pass  # told already
        except Exception as error:  # a probe of a room, perhaps not ours
            self.say("error", at, f"trying it failed ({type(error).__name__})", "tell the adapter's author")
        else:
            if isinstance(said, str):
                self.say("error", at, said)
            elif said is None:
                self.say("ok", at, "trying it found nothing wrong")
            else:
                where = " and ".join(str(port) for port in said.ports) or "the gateway's own broker"
                self.say("ok", at, _WAITS[said.tried].format(where=where))

    def _ports(self) -> None:
        """Each port that a device comes to, once."""
        seen: dict[tuple[str, Port], None] = {}
        for device_id, said in self._found.items():
            if isinstance(said, Waits):
                adapter = self.site.devices[device_id].adapter
                seen.update(dict.fromkeys((adapter, port) for port in said.ports))
        for adapter, port in seen:
            level, problem, remedy = listening.look(port, f"adapter-{adapter}")
            self.say(level, ("adapters", adapter), problem, remedy)

    # ── What a running gateway knows ─────────────────────────────────────────────────────────────

    async def _gateway(self, broker: Endpoint) -> None:
        try:
            said = await known.ask(broker, self.site.site)
        except NoGateway as error:
            self.say_of(
                "warning",
                "gateway",
                f"how its services are, and what they heard of its devices, is not known: {error}",
                "start its broker, or say where it is (TOCSIN_MQTT_URL)",
            )
            return
        for adapter in dict.fromkeys(device.adapter for device in self.site.devices.values()):
            self._service(f"adapter-{adapter}", ("adapters", adapter), said)
        self._copies("correlator", (), said)
        for target in [name for name, _ in self.site.targets.items()]:
            self._copies(f"{target}-publisher", ("targets", target), said)
        for device_id, device in self.site.devices.items():
            service = said.services.get(f"adapter-{device.adapter}")
            if service is not None and service.status != "offline":
                refused = next((one for one in service.refused if one.device == device_id), None)
                self._heard(device_id, said, refused)

    def _copies(self, service: str, at: Sequence[str], said: Known) -> None:
        for name in names_of(service, self.site.copies_of(service)):
            self._service(name, at, said)

    def _service(self, name: str, at: Sequence[str], said: Known) -> None:
        def say(level: Level, problem: str, remedy: str = "") -> None:
            if at:
                self.say(level, at, f"{name} {problem}", remedy)
            else:
                self.say_of(level, "gateway", f"{name} {problem}", remedy)

        service = said.services.get(name)
        if service is None:
            say("warning", "has not been seen at the broker", "start it")
        elif service.status == "offline":
            say("warning", "is not running", "start it")
        elif service.status == "degraded":
            say("warning", f"is degraded: {service.reason}")
        else:
            say("ok", "is running")
        for one in service.refused if service is not None else ():
            if one.device is None and (when := _recently(one)):
                whose = f" from {one.peer}" if one.peer else ""
                say("warning", f"refused something{whose} {when}: {one.message}")

    def _heard(self, device_id: str, said: Known, refused: Refusal | None) -> None:
        """What is known of a device: of those that nobody can try, this is all that can be said."""
        device, at = self.site.devices[device_id], ("devices", device_id)
        waits = isinstance(self._found.get(device_id), Waits)
        states = [said.sensors[sensor] for sensor in device.sensors if sensor in said.sensors]
        last = max((state.last_seen for state in states if state.last_seen), default=None)
        offset = max((state.clock_offset or 0.0 for state in states), key=abs, default=0.0)
        if refused is not None and (when := _recently(refused)):
            since = last is not None and last > refused.at
            words = f"the gateway refused what it sent {when}: {refused.message}"
            self.say("warning" if since or not waits else "error", at, words)
        if waits and abs(offset) > device.max_skew:
            self.say("error", at, f"its clock is off by {offset:+.0f} s", "have it follow NTP")
        if any(state.online is False for state in states):
            self.say("warning", at, "the gateway holds it, or some sensor of it, for offline")
        elif last is not None:
            self.say("ok", at, f"the gateway heard of its sensors {_ago(last)}")
        elif waits:
            self.say("ok", at, "the gateway has not heard of its sensors yet")

    # ── Targets ──────────────────────────────────────────────────────────────────────────────────

    async def _camera(self, camera_id: str, camera: _Camera) -> None:
        at = ("cameras", camera_id)
        path = f"/api/v2/cameras/{camera.token.camid}/event_processing/events/?limit=1"
        answer = await self._get(
            at, camera.url + path, f"Acc {camera.secret.get_secret_value().strip()}", "vms"
        )
        if answer is None:
            return
        if answer.status_code == 404:
            self.say(
                "error",
                at,
                f"the VMS knows no camera {camera.token.camid}",
                "was it deleted? copy a new token",
            )
        elif answer.status_code == 200:
            self.say("ok", at, f"{urlsplit(camera.url).netloc} takes its token")
        else:
            self._unexpected(at, camera.url, answer)

    async def _camio(self, target: CamioTarget) -> None:
        at = ("targets", "camio")
        try:
            token = self.secrets.read(target.token).get_secret_value().strip()
        except MissingSecret:
            return  # told already
        answer = await self._get(at, f"{target.base_url}/pacs/devices", f"Bearer {token}", "camio")
        if answer is None:
            return
        if answer.status_code == 404:
            self.say("error", at, f"there is no {target.base_url}/pacs/devices (404)", "check base_url")
        elif answer.is_success:
            self.say("ok", at, "Camio takes its token")
        else:
            self._unexpected(at, target.base_url, answer)

    def _unexpected(self, at: tuple[str, ...], base: str, answer: httpx.Response) -> None:
        host = urlsplit(base).netloc
        if answer.status_code in (401, 403):
            self.say(
                "error",
                at,
                f"{host} refuses the token ({answer.status_code})",
                "put a valid token in its secret",
            )
        elif answer.is_redirect:
            self.say("error", at, f"{host} points elsewhere ({answer.status_code})", "check base_url")
        elif answer.status_code == 429 or answer.status_code >= 500:
            self.say("warning", at, f"{host} is in trouble ({answer.status_code})", "try again later")
        else:
            self.say("error", at, f"{host} answers {answer.status_code}", "check base_url")

    async def _get(
        self, at: tuple[str, ...], url: str, authorization: str, target_name: str
    ) -> httpx.Response | None:
        """The answer, noting the server's clock; None, having said why, if there is none."""
        import httpx  # noqa: PLC0415

        host = urlsplit(url).netloc
        target: Target | None = getattr(self.site.targets, target_name)
        ca_file = target.ca_file if target else None
        try:
            # As the publishers go: past the proxies that the environment names.
            trust = self._trust(ca_file)
            async with httpx.AsyncClient(timeout=_PATIENCE, verify=trust, trust_env=False) as client:
                sent = time.time()
                answer = await client.get(url, headers={"Authorization": authorization})
                now = (sent + time.time()) / 2
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            self.say("error", at, *_in_plain_words(error, host, ca_file))
            return None
        with suppress(KeyError, ValueError):
            # The header is cut to the second, so half of one is the fairest guess.
            self.offsets[host] = parsedate_to_datetime(answer.headers["date"]).timestamp() + 0.5 - now
        if answer.is_success and is_page(answer.content):
            self.say(
                "error",
                at,
                f"{host} answers with a web page",
                "check the address; or does something on the way answer in its place?",
            )
            return None
        return answer

    def _trust(self, ca_file: str | None) -> ssl.SSLContext:
        if ca_file not in self._trusts:
            self._trusts[ca_file] = ssl.create_default_context(cafile=ca_file)
        return self._trusts[ca_file]

    def _clocks(self) -> None:
        for host, offset in sorted(self.offsets.items()):
            if abs(offset) > _CLOCK_TOLERANCE:
                self.say_of(
                    "warning",
                    "clock",
                    f"the clock of {host} differs from this host's by {offset:+.0f} s",
                    "have both follow NTP",
                )
            else:
                self.say_of("ok", "clock", f"{host} and this host agree on the time")


def _recently(one: Refusal) -> str:
    """How long ago something was refused, and how often; empty if that is long ago."""
    if utcnow() - one.at > _RECENT:
        return ""
    return _ago(one.at) + (f" ({one.times} times)" if one.times > 1 else "")


def _ago(at: datetime) -> str:
    seconds = max(0.0, (utcnow() - at).total_seconds())
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _in_plain_words(error: BaseException, host: str, ca_file: str | None) -> tuple[str, str]:
    """Why a request had no answer, and what to do."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for cause in chain:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"the certificate of {host} is not trusted ({cause.verify_message})",
                "check the address, or name the CA in `ca_file`",
            )
        if isinstance(cause, FileNotFoundError) and ca_file:
            return f"there is no CA file {ca_file}", "check `ca_file`"
        if isinstance(cause, ssl.SSLError):
            return f"TLS with {host} fails ({cause.reason or 'no TLS there'})", "check address and port"
        late = type(cause).__name__.endswith(("Timeout", "TimeoutException"))
        if said := unreached(TimeoutError() if late else cause, host, there="whether it runs"):
            problem, _, remedy = said.partition(": ")
            return problem, remedy
    return f"{host} cannot be reached ({type(error).__name__})", "check the address and the network"


def secret_refs(
    value: Any, at: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], SecretRef]]:
    """Every secret that a part of the site names, and where."""
    if isinstance(value, SecretRef):
        yield at, value
    elif isinstance(value, BaseModel):
        for name, info in type(value).model_fields.items():
            yield from secret_refs(getattr(value, name), (*at, info.alias or name))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from secret_refs(item, (*at, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from secret_refs(item, (*at, index))


def _selects(site: Site) -> Iterator[tuple[str, frozenset[str]]]:
    """The schedules that each selection asks for."""
    chosen = [(name, target.select) for name, target in site.targets.items()]
    chosen += [(id_, placed.sensor.select) for id_, placed in site.sensors.items() if placed.sensor.select]
    while chosen:
        name, select = chosen.pop()
        if select.schedule:
            yield name, select.schedule
        if select.exclude:
            chosen.append((name, select.exclude))
