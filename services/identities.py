"""`tocsin init` and `tocsin rotate`: who is known to a gateway's broker, by what, and with which rights.

In the gateway's folder, beside compose.yaml:

    site/site.yaml        yours: the site file
    site/broker-users     yours, if need be: foreign devices at this broker, lines of USER ACCESS TOPIC
    secrets/SERVICE/NAME  yours: the value of {secret: NAME}, for the service that needs it
    broker/ca/            the CA and its key; whoever has that can be anybody
    broker/server/        Mosquitto's certificate and key, and the CAs that it trusts
    broker/access/        Mosquitto's ACL and password file
    broker/IDENTITY/      ca.crt, tls.crt and tls.key of a service; of people and devices a password too

`init` makes what is missing or about to expire and leaves the rest, so it may run at every start.
`rotate` makes all certificates anew. Services read theirs at each connection, and Mosquitto when it
is told to (`--reload`), so nothing is stopped: connections that stand go on, new ones use the new.

A new CA takes two steps. `rotate --new-ca` has everybody trust the new one beside the old; services
show certificates of the new one, Mosquitto still one of the old, so that others have time to fetch
the new `ca.crt`. `rotate --drop-old-ca` ends that time.

Each file is replaced whole, and in an order in which `init` finishes what was killed half-way.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from services import rooms
from services.broker_acl import Extra, acl, known_services
from services.check import secret_refs
from shared.lock import FolderInUse, FolderLock
from shared.secrets import MissingSecret, Secrets
from shared.site import SecretRef, Site, SiteError, load

PEOPLE = ("operator", "reader")
SERVICE_UID = 10001
"""Of the services' images: who may read a service's key, and (as a group) its secrets."""
BROKER_UID = 1883
"""Of the eclipse-mosquitto image."""

_ROOT = Path(__file__).resolve().parent.parent
_RENEW_BEFORE = 30 * 86400
"""Seconds before its end at which `init` makes a certificate anew."""
_RESERVED = ("ca", "server", "access")
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

STARTER = """\
# The site file: your devices, their sensors, and the cameras that see them. docs/site-file.md has all
# that may stand in it, and each adapter's page an example. Services follow its changes by themselves.
site: gateway
timezone: UTC
cameras: {}
devices: {}
targets:
  vms: {}
"""


class Refused(Exception):
    """It cannot be done; the text says why, and what to do."""


@dataclass(slots=True)
class Done:
    """What was done, in words, and what the site file still wants."""

    lines: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


class Gateway:
    """A gateway's folder. `names` are those by which the broker is reached; `services` are those that
    there are, by default all that are installed. `reload` has Mosquitto read its files anew; without it
    that is left to do."""

    def __init__(
        self,
        folder: Path,
        names: Iterable[str],
        services: Iterable[str] | None = None,
        reload: Callable[[], None] | None = None,
    ) -> None:
        self.folder = folder
        self._signal = reload
        self._unread = False
        self.broker = folder / "broker"
        self.names = tuple(names)
        self.services = tuple(sorted(known_services() if services is None else services))
        self._ca = self.broker / "ca"
        self._scratch = self._ca / "making"
        self._server = self.broker / "server"
        self._access = self.broker / "access"
        self._done = Done()

    def init(self) -> Done:
        """Make what is missing. Raises `Refused`, or `SiteError` for a site file that is wrong."""
        return self._settle(renew=False)

    def rotate(self, *, new_ca: bool = False, drop_old_ca: bool = False, passwords: bool = False) -> Done:
        """Make every certificate anew; with `passwords`, every password too. Raises as `init` does."""
        if not (self._ca / "ca.crt").exists():
            raise Refused(f"there is nothing to rotate in {self.broker}: run tocsin init first")

        def change() -> None:
            if new_ca:
                self._begin_change()
            if drop_old_ca:
                self._end_change()

        return self._settle(renew=True, passwords=passwords, change=change)

    def _begin_change(self) -> None:
        """Has `_certificates` make a new CA: there is none while ca.crt is that of the previous one."""
        if self._changing() and not self._half():
            raise Refused("a change of CA is under way: end it first with --drop-old-ca")
        if not self._changing():
            for kind in ("key", "crt"):
                self._write(self._ca / f"previous.{kind}", self._of_the_ca(f"ca.{kind}"), None)
        self._say("the CA changes: the old one is trusted beside the new one until --drop-old-ca")

    def _end_change(self) -> None:
        if not self._changing() or self._half():
            raise Refused("there is no old CA: --new-ca begins a change")
        (self._ca / "previous.crt").unlink()
        self._say("the old CA is dropped; Mosquitto forgets it when it is next restarted")

    def _changing(self) -> bool:
        return (self._ca / "previous.crt").exists()

    def _half(self) -> bool:
        """Whether a change of CA was broken off before there was a new one."""
        return self._changing() and self._of_the_ca("previous.crt") == self._of_the_ca("ca.crt")

    def _of_the_ca(self, name: str) -> bytes:
        try:
            return (self._ca / name).read_bytes()
        except FileNotFoundError:
            raise Refused(
                f"{self._ca / name} is not here: put the CA's key back to make certificates"
            ) from None

    def _settle(
        self, *, renew: bool, passwords: bool = False, change: Callable[[], None] = lambda: None
    ) -> Done:
        for name in ("site", "secrets", "broker"):
            self._mine(self.folder / name)
        site = self._site()
        extras = self._extras(site)
        users = sorted({*PEOPLE, *(extra.user for extra in extras)} - set(self.services))
        rules = acl(site.site, self.services, extras, site.copies).encode()
        with self._alone():
            first = not (self._ca / "ca.crt").exists()
            change()
            self._folders(site)
            self._certificates([*self.services, *PEOPLE], renew)
            changed = self._passwords(users, renew=passwords)
            if self._write(self._access / "acl", rules, BROKER_UID):
                self._say(f"made the ACL of site {site.site}")
                changed = True
            if changed:
                self._reload()
            if self._unread and not first:
                self._done.missing.append(
                    "if Mosquitto runs, have it read that: tocsin rotate with --reload, or restart it"
                )
        return self._done

    def _reload(self) -> None:
        if self._signal is None:
            self._unread = True
        else:
            self._signal()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Two at once would mix their keys and certificates."""
        self._private(self._ca)
        lock = FolderLock(self._ca)
        try:
            lock.take()
        except FolderInUse:
            raise Refused(f"another tocsin init or rotate works in {self.broker}: wait for its end") from None
        try:
            self._give(self._ca / "lock", None)
            shutil.rmtree(self._scratch, ignore_errors=True)  # of one that was killed
            yield
        finally:
            lock.release()

    def _say(self, line: str) -> None:
        self._done.lines.append(line)

    # ── the site file ────────────────────────────────────────────────────────────────────────────

    def _site(self) -> Site:
        file = self.folder / "site" / "site.yaml"
        if not file.exists() and not self._ca.exists():
            file.write_text(STARTER)
            self._give(file, None)
            self._say("made site/site.yaml, without devices: fill it in")
        _open_to_group(file.parent, SERVICE_UID)
        names = rooms.names()
        return load(file, {name: rooms.room(name) for name in names}, adapters=names)

    def _extras(self, site: Site) -> list[Extra]:
        """Grants outside Tocsin's topics: those of site/broker-users, and what our own adapters follow."""
        extras = []
        file = self.folder / "site" / "broker-users"
        lines = file.read_text().splitlines() if file.exists() else []
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or line.startswith("#"):
                continue
            if len(words) != 3 or not _USER.fullmatch(words[0]) or words[0] in _RESERVED:
                raise Refused(
                    f"{file}:{number}: a line is USER ACCESS TOPIC, as: zigbee2mqtt readwrite z2m/#"
                )
            extras.append(Extra(*words))
        for device in site.devices.values():
            heard: tuple[str, ...] = getattr(device, "heard_at_the_gateway", ())
            extras += [Extra(f"adapter-{device.adapter}", "read", topic) for topic in heard]
        return list(dict.fromkeys(extras))

    def _folders(self, site: Site) -> None:
        """Each service's folder of secrets, for its user to read; and what is still missing in them."""
        needed: dict[str, dict[str, str]] = {name: {} for name in self.services}
        for at, ref in secret_refs(site):
            needed.setdefault(reader_of(site, at), {}).setdefault(ref.secret, ".".join(map(str, at)))
        for service, refs in needed.items():
            folder = self.folder / "secrets" / service
            self._mine(folder)
            _open_to_group(folder, SERVICE_UID)
            held = Secrets(folder, environ={}, warn=lambda _: None)
            for name, where in refs.items():
                try:
                    held.read(SecretRef(secret=name))
                except MissingSecret as error:
                    self._done.missing.append(
                        f"secrets/{service}/{name} {error.problem.split(' (')[0]} ({where})"
                    )

    # ── certificates ─────────────────────────────────────────────────────────────────────────────

    def _certificates(self, identities: list[str], renew: bool) -> None:
        current, previous = self._ca / "ca.crt", self._ca / "previous.crt"
        if not current.exists() or self._half():
            with self._signing(None, []) as made:
                for kind in ("key", "crt"):
                    self._write(self._ca / f"ca.{kind}", (made / f"ca.{kind}").read_bytes(), None)
            self._say("made a CA (broker/ca)")
        if not self._changing():
            previous.with_suffix(".key").unlink(missing_ok=True)
        trusted = [current, previous] if self._changing() else [current]
        bundle = b"".join(one.read_bytes() for one in trusted)
        # In this order everybody is believed at each moment: Mosquitto trusts a CA before somebody shows
        # a certificate of it, and services trust the old one until Mosquitto shows none of it any more.
        self._trust(trusted)
        due = [one for one in identities if renew or self._due(self.broker / one / "tls.crt", current)]
        if due:
            with self._signing(current, due) as made:
                for identity in due:
                    self._hand_out(self.broker / identity, made / identity, "tls", self._owner(identity))
            self._say(f"made certificates of {', '.join(due)}")
        said = "".join(f"{name}\n" for name in self.names).encode()
        renamed = self._write(self._server / "names", said, BROKER_UID)
        if renew or renamed or self._due(self._server / "server.crt", trusted[-1]):
            with self._signing(trusted[-1], []) as made:
                self._hand_out(self._server, made / "server", "server", BROKER_UID)
            self._say(f"made the broker's certificate, as {', '.join(self.names)}")
            self._reload()
        for identity in identities:
            self._write(self.broker / identity / "ca.crt", bundle, self._owner(identity))
        self._write(self._server / "ca.crt", bundle, BROKER_UID)
        self._trust(trusted, and_no_other=True)

    def _trust(self, authorities: list[Path], *, and_no_other: bool = False) -> None:
        """Mosquitto reads ca.crt only when it starts, but looks into this folder at each handshake for a
        CA that it has not seen yet, by the hash of its name."""
        folder = self._server / "trusted"
        self._private(self._server, BROKER_UID)
        self._private(folder, BROKER_UID)
        kept: set[str] = set()
        for authority in authorities:
            number = _openssl("x509", "-in", str(authority), "-noout", "-hash").strip()
            name = f"{number}.{sum(one.startswith(number) for one in kept)}"
            kept.add(name)
            self._write(folder / name, authority.read_bytes(), BROKER_UID)
        if and_no_other:
            for other in folder.iterdir():
                if other.name not in kept:
                    other.unlink()

    @contextlib.contextmanager
    def _signing(self, authority: Path | None, identities: list[str]) -> Iterator[Path]:
        """A folder with certificates of the server and of `identities`, by an authority or a new one."""
        script = next(
            (path for root in (self.folder, _ROOT) if (path := root / "mosquitto" / "make-certs").exists()),
            None,
        )
        if script is None or not shutil.which("openssl"):
            raise Refused("certificates are made by openssl and mosquitto/make-certs, which are not here")
        made = self._scratch
        made.mkdir(mode=0o700)
        try:
            if authority is not None:
                for source in (authority, authority.with_suffix(".key")):
                    self._write(made / f"ca{source.suffix}", self._of_the_ca(source.name), None)
            ran = subprocess.run(  # noqa: S603
                [str(script), str(made), ",".join(self.names), *identities],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if ran.returncode:
                raise Refused(f"{script} failed: {ran.stderr.strip()}")
            yield made
        finally:
            shutil.rmtree(made)

    def _due(self, certificate: Path, authority: Path) -> bool:
        """Whether it is to be made. One that ends soon can wait, if the CA's key is kept elsewhere."""
        if not self._stale(certificate, authority, _RENEW_BEFORE):
            return False
        if authority.with_suffix(".key").exists() or self._stale(certificate, authority, 0):
            return True
        self._done.missing.append(
            f"{certificate.relative_to(self.folder)} ends within {_RENEW_BEFORE // 86400} days: put the CA's "
            f"key back ({authority.with_suffix('.key').relative_to(self.folder)}) and run this again"
        )
        return False

    def _stale(self, certificate: Path, authority: Path, before: int) -> bool:
        """Whether there is none, its key is another's, it is not the authority's, or it ends in so many
        seconds."""
        if not certificate.exists() or not certificate.with_suffix(".key").exists():
            return True
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
                certificate, certificate.with_suffix(".key")
            )
        except ssl.SSLError:
            return True
        for question in (
            ["verify", "-CAfile", str(authority), str(certificate)],
            ["x509", "-in", str(certificate), "-noout", "-checkend", str(before)],
        ):
            asked = subprocess.run(["openssl", *question], capture_output=True, check=False)  # noqa: S603, S607
            if asked.returncode:
                return True
        return False

    def _hand_out(self, folder: Path, made: Path, name: str, owner: int | None) -> None:
        self._private(folder, owner)
        # A reader between the two finds that they do not fit, and tries again; so does `_stale` after a kill.
        for kind in ("key", "crt"):
            self._write(folder / f"{name}.{kind}", made.with_name(f"{made.name}.{kind}").read_bytes(), owner)

    # ── passwords ────────────────────────────────────────────────────────────────────────────────

    def _passwords(self, users: list[str], *, renew: bool) -> bool:
        """Mosquitto's password file, for the passwords in the users' folders. Whether it differs."""
        file = self._access / "passwords"
        self._private(self._access, BROKER_UID)
        hashes = dict(
            line.split(":", 1)
            for line in (file.read_text().splitlines() if file.exists() else ())
            if ":" in line
        )
        lines = []
        for user in users:
            held = self.broker / user / "password"
            self._private(held.parent, self._owner(user))
            # Mosquitto would let everybody in by an empty one.
            if renew or not held.exists() or not held.read_bytes().strip():
                self._write(held, secrets.token_urlsafe(24).encode() + b"\n", self._owner(user))
                self._say(f"made a password of {user} (broker/{user}/password)")
            word = held.read_bytes().rstrip(b"\r\n")
            known = hashes.get(user, "")
            lines.append(f"{user}:{known if _fits(word, known) else hashed(word)}\n")
        return self._write(file, "".join(lines).encode(), BROKER_UID)

    # ── files ────────────────────────────────────────────────────────────────────────────────────

    def _owner(self, identity: str) -> int | None:
        return SERVICE_UID if identity in self.services else None

    def _private(self, folder: Path, owner: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._give(folder, owner)

    def _write(self, path: Path, data: bytes, owner: int | None) -> bool:
        """Write for its owner alone to read, at once as far as readers can tell, and for good. Whether it
        differs."""
        if path.exists() and path.read_bytes() == data:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            new.chmod(0o400 if owner is not None else 0o600)
            self._give(new, owner)
            os.fsync(file.fileno())
        new.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return True

    def _give(self, path: Path, owner: int | None) -> None:
        """To a user of a container, or (None) to whom the gateway's own files belong."""
        if os.geteuid() != 0:
            return
        if owner is not None:
            os.chown(path, owner, owner)
            return
        # In a container the folder itself is no part of the host's; what is mounted into it is.
        known = (self.folder / "mosquitto", self.folder)
        status = next(one for one in known if one.exists()).stat()
        os.chown(path, status.st_uid, status.st_gid)

    def _mine(self, folder: Path) -> None:
        """Make a folder, or take over one that the container engine made to mount it."""
        if not folder.exists():
            folder.mkdir(parents=True)
        if folder.stat().st_uid == 0:
            self._give(folder, None)


def _open_to_group(folder: Path, group: int) -> None:
    """What is in the folder stays its owner's; the group may read it, and nobody else."""
    if os.geteuid() != 0:
        return
    for path in (folder, *(one for one in folder.iterdir() if one.is_file() and not one.is_symlink())):
        os.chown(path, -1, group)
        # Set-group-id: what is put there later is the group's too.
        path.chmod(0o2750 if path == folder else path.stat().st_mode & 0o700 | 0o040)


def reader_of(site: Site, at: tuple[str | int, ...]) -> str:
    """The service that needs the secret that is named at this place of the site file."""
    match at:
        case ("cameras", _, target, *_) | ("targets", target, *_):
            return f"{target}-publisher"
        case ("devices", device, *_):
            return f"adapter-{site.devices[str(device)].adapter}"
        case ("adapters", adapter, *_):
            return f"adapter-{adapter}"
    raise ValueError(f"nobody reads the secret at {at}")


def hashed(password: bytes, salt: bytes | None = None) -> str:
    """As Mosquitto 2 has it in its password file: PBKDF2 with SHA-512, 101 rounds. The passwords made
    here are random, so more rounds would protect nothing."""
    salt = secrets.token_bytes(12) if salt is None else salt
    key = hashlib.pbkdf2_hmac("sha512", password, salt, 101, 64)
    return "$7$101$" + base64.b64encode(salt).decode() + "$" + base64.b64encode(key).decode()


def _fits(password: bytes, known: str) -> bool:
    parts = known.split("$")
    if parts[:3] != ["", "7", "101"] or len(parts) != 5:
        return False
    return hmac.compare_digest(hashed(password, base64.b64decode(parts[3])), known)


def _openssl(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True).stdout  # noqa: S603, S607


def _check_mosquitto(pid: int) -> None:
    """Another process would end at a SIGHUP."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        raise Refused(f"--reload {pid}: there is no such process") from None
    if name != "mosquitto":
        raise Refused(f"--reload {pid}: that process is {name}, not mosquitto")


def main(args: argparse.Namespace) -> int:
    """Returns the exit code: 1 if it cannot be done."""

    def reload() -> None:
        os.kill(args.reload, signal.SIGHUP)

    gateway = Gateway(
        Path(args.folder).resolve(), args.names.split(","), reload=reload if args.reload is not None else None
    )
    try:
        if args.reload is not None:
            _check_mosquitto(args.reload)
        if args.command == "init":
            done = gateway.init()
        else:
            done = gateway.rotate(new_ca=args.new_ca, drop_old_ca=args.drop_old_ca, passwords=args.passwords)
    except (Refused, SiteError, rooms.RoomError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for line in done.lines:
        print(line)
    for line in done.missing:
        print(f"still to do: {line}")
    if not done.lines + done.missing:
        print("nothing to do")
    return 0
