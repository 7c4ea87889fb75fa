"""What `tocsin init` and `tocsin rotate` make, and that a real Mosquitto goes by it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import mqtt5
import pytest

from services.broker import find_mosquitto
from services.identities import Gateway, Refused
from shared.lock import FolderLock
from shared.site import SiteError
from tests.peers import program, require_peer

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("adapter-mqtt", "correlator", "vms-publisher")
IDENTITIES = (*SERVICES, "operator", "reader")
NOT_AUTHORISED = 135
SITE = """\
site: hq
timezone: UTC
cameras:
  yard: {name: Yard, vms: {token: {secret: camera_yard}}}
devices:
  zigbee:
    adapter: mqtt
    profile: zigbee2mqtt
    sensors: {yard-pir: {type: motion, topic: yard-pir, cameras: [yard]}}
  frigate:
    adapter: mqtt
    broker: mqtts://frigate.example
    profile: frigate
    credentials: {username: tocsin, password: {secret: frigate}}
    sensors: {drive: {type: ai, camera: drive, cameras: [yard]}}
targets:
  vms: {}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    program("openssl", "apt-get install openssl")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "site.yaml").write_text(SITE)
    return tmp_path


def gateway(folder: Path) -> Gateway:
    return Gateway(folder, ["127.0.0.1", "localhost"], SERVICES)


def said(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True).stdout


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (folder / "broker").rglob("*") if path.is_file()}


def test_everybody_gets_a_key_that_only_they_can_read(folder: Path) -> None:
    gateway(folder).init()
    keys = set()
    for name in IDENTITIES:
        own = folder / "broker" / name
        assert said("x509", "-in", f"{own}/tls.crt", "-noout", "-subject") == f"subject=CN = {name}\n"
        assert said("verify", "-CAfile", f"{own}/ca.crt", "-purpose", "sslclient", f"{own}/tls.crt")
        keys.add((own / "tls.key").read_bytes())
    assert len(keys) == len(IDENTITIES)
    for path in (folder / "broker").rglob("*"):
        assert not path.stat().st_mode & 0o077, path
    if os.geteuid() == 0:
        assert (folder / "broker/correlator/tls.key").stat().st_uid == 10001
        assert (folder / "broker/server/server.key").stat().st_uid == 1883
        assert (folder / "broker/reader/tls.key").stat().st_uid == folder.stat().st_uid


def test_a_second_time_there_is_nothing_to_do(folder: Path) -> None:
    gateway(folder).init()
    before = snapshot(folder)
    assert gateway(folder).init().lines == []
    assert snapshot(folder) == before
    # Another service, another name of the broker: only what that wants.
    more = Gateway(folder, ["gateway.example"], [*SERVICES, "adapter-dc09"]).init()
    assert more.lines == [
        "made certificates of adapter-dc09",
        "made the broker's certificate, as gateway.example",
        "made the ACL of site hq",
    ]
    assert snapshot(folder).items() >= {k: v for k, v in before.items() if "/correlator/" in k}.items()


def init_for_29_days(folder: Path) -> None:
    script = folder / "mosquitto" / "make-certs"
    script.parent.mkdir()
    text = (ROOT / "mosquitto" / "make-certs").read_text()
    assert "\ndays=825\n" in text
    script.write_text(text.replace("\ndays=825\n", "\ndays=29\n"))
    script.chmod(0o755)
    gateway(folder).init()
    shutil.copy2(ROOT / "mosquitto" / "make-certs", script)


def test_a_certificate_that_is_about_to_end_is_made_anew(folder: Path) -> None:
    init_for_29_days(folder)
    assert gateway(folder).init().lines == [
        f"made certificates of {', '.join(IDENTITIES)}",
        "made the broker's certificate, as 127.0.0.1, localhost",
    ]
    assert gateway(folder).init().lines == []


def test_while_they_hold_a_gateway_starts_without_the_cas_key(folder: Path) -> None:
    init_for_29_days(folder)
    key = folder / "broker" / "ca" / "ca.key"
    key.rename(folder / "elsewhere")
    done = gateway(folder).init()
    assert done.lines == []
    assert [line for line in done.missing if line.startswith("broker/server/server.crt ends within 30 days")]
    (folder / "elsewhere").rename(key)
    done = gateway(folder).init()
    assert len(done.lines) == 2
    # It is no use to a Mosquitto that runs until it is told.
    assert "if Mosquitto runs, have it read that: tocsin rotate with --reload, or restart it" in done.missing
    told: list[bool] = []
    done = Gateway(folder, ["localhost"], SERVICES, lambda: told.append(True)).init()
    assert told
    assert not [line for line in done.missing if "Mosquitto" in line]


def test_rotation_makes_all_anew_and_keeps_passwords_and_ca(folder: Path) -> None:
    gateway(folder).init()
    before = snapshot(folder)
    gateway(folder).rotate()
    after = snapshot(folder)
    kept = {name for name in before if before[name] == after[name]}
    changed = {name.removeprefix(f"{folder}/broker/") for name in before.keys() - kept}
    assert changed == {
        *(f"{name}/tls.{kind}" for name in IDENTITIES for kind in ("key", "crt")),
        "server/server.key",
        "server/server.crt",
    }
    gateway(folder).rotate(passwords=True)
    assert snapshot(folder)[f"{folder}/broker/reader/password"] != before[f"{folder}/broker/reader/password"]


def test_a_new_ca_is_trusted_beside_the_old_one_until_that_is_dropped(folder: Path) -> None:
    broker = folder / "broker"
    gateway(folder).init()
    old = (broker / "ca" / "ca.crt").read_bytes()
    gateway(folder).rotate(new_ca=True)
    new = (broker / "ca" / "ca.crt").read_bytes()
    assert (
        (broker / "reader" / "ca.crt").read_bytes()
        == (broker / "server" / "ca.crt").read_bytes()
        == new + old
    )
    assert len(list((broker / "server" / "trusted").iterdir())) == 2
    # Who still has the old ca.crt believes the broker; services show certificates of the new CA.
    (folder / "old.crt").write_bytes(old)
    assert said("verify", "-CAfile", f"{folder}/old.crt", f"{broker}/server/server.crt")
    assert said("verify", "-CAfile", f"{broker}/ca/ca.crt", f"{broker}/correlator/tls.crt")
    assert gateway(folder).init().lines == []
    gateway(folder).rotate()
    assert said("verify", "-CAfile", f"{folder}/old.crt", f"{broker}/server/server.crt")
    with pytest.raises(Refused, match="--drop-old-ca"):
        gateway(folder).rotate(new_ca=True)
    gateway(folder).rotate(drop_old_ca=True)
    assert said("verify", "-CAfile", f"{broker}/ca/ca.crt", f"{broker}/server/server.crt")
    assert (broker / "reader" / "ca.crt").read_bytes() == new
    [trusted] = (broker / "server" / "trusted").iterdir()
    assert trusted.read_bytes() == new
    assert said("x509", "-in", str(trusted), "-noout", "-hash") == trusted.stem + "\n"
    with pytest.raises(Refused, match="--new-ca"):
        gateway(folder).rotate(drop_old_ca=True)


def test_the_secrets_that_are_missing_are_named_for_the_service_that_needs_them(folder: Path) -> None:
    assert gateway(folder).init().missing == [
        "secrets/adapter-mqtt/frigate is missing (devices.frigate.credentials.password)",
        "secrets/vms-publisher/camera_yard is missing (cameras.yard.vms.token)",
    ]
    (folder / "secrets" / "adapter-mqtt" / "frigate").write_text("word")
    (folder / "secrets" / "vms-publisher" / "camera_yard").write_text("")
    assert gateway(folder).init().missing == [
        "secrets/vms-publisher/camera_yard is empty in the file "
        f"{folder}/secrets/vms-publisher/camera_yard (cameras.yard.vms.token)"
    ]
    if os.geteuid() == 0:
        status = (folder / "secrets" / "adapter-mqtt" / "frigate").stat()
        assert (status.st_gid, status.st_mode & 0o777) == (10001, 0o640)


def test_without_a_site_file_there_is_one_to_fill_in(tmp_path: Path) -> None:
    program("openssl", "apt-get install openssl")
    gateway(tmp_path).init()
    assert (tmp_path / "site" / "site.yaml").exists()
    # Later its absence is a mistake.
    (tmp_path / "site" / "site.yaml").unlink()
    with pytest.raises(SiteError, match=r"site\.yaml"):
        gateway(tmp_path).init()


def test_what_cannot_be_done_is_said(folder: Path) -> None:
    with pytest.raises(Refused, match="tocsin init first"):
        gateway(folder).rotate()
    gateway(folder).init()
    key = folder / "broker" / "ca" / "ca.key"
    key.rename(folder / "elsewhere")
    assert gateway(folder).init().lines == []
    with pytest.raises(Refused, match=r"ca\.key is not here"):
        gateway(folder).rotate()
    (folder / "elsewhere").rename(key)
    for line in ("zigbee2mqtt readwrite", "server read a/b", "a/b read c"):
        (folder / "site" / "broker-users").write_text(f"# who else\n\n{line}\n")
        with pytest.raises(Refused, match="broker-users:3: a line is USER ACCESS TOPIC"):
            gateway(folder).init()
    (folder / "site" / "broker-users").write_text("stranger read tocsin/#\n")
    with pytest.raises(ValueError, match="Tocsin's own topics"):
        gateway(folder).init()
    own = str(os.getpid())
    ran = subprocess.run(
        [sys.executable, "-m", "services.cli", "rotate", str(folder), "--reload", own],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "not mosquitto" in ran.stderr


class Changes:
    """Keeps a copy of a folder as it is before each change of a file: as a SIGKILL there would leave it."""

    def __init__(self, folder: Path, kept: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._kept = kept
        self.copies: list[Path] = []
        for name in ("replace", "unlink", "rename"):
            patch.setattr(Path, name, self._copying(getattr(Path, name)))
        patch.setattr(shutil, "rmtree", self._copying(shutil.rmtree))

    def _copying(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **named: Any) -> Any:
            self.copies.append(self._kept / f"before change {len(self.copies) + 1}")
            shutil.copytree(self._folder, self.copies[-1])
            return real(*arguments, **named)

        return change


STEPS = {
    "all anew": {"passwords": True},
    "a new CA": {"new_ca": True},
    "the old CA dropped": {"drop_old_ca": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_it_is_mended_by_the_next_start(
    folder: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is half done, `init` leaves pairs that fit, one chain, and no key of the CA lying about."""
    broker = folder / "broker"

    def there() -> Gateway:
        return Gateway(folder, ["127.0.0.1"], [])

    there().init()
    if step == "the old CA dropped":
        there().rotate(new_ca=True)
    with monkeypatch.context() as patch:
        changes = Changes(broker, folder / "killed", patch)
        there().rotate(**STEPS[step])
    assert len(changes.copies) > 4
    for copy in changes.copies:
        shutil.rmtree(broker)
        copy.rename(broker)
        there().init()
        where = f"{step}, killed {copy.name}"
        server, authority = broker / "server", broker / "ca"
        for pair in (authority / "ca", server / "server", broker / "operator/tls", broker / "reader/tls"):
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(f"{pair}.crt", f"{pair}.key")
        certificates = [str(broker / name / "tls.crt") for name in ("operator", "reader")]
        assert said("verify", "-CAfile", f"{authority}/ca.crt", *certificates), where
        trusted = (server / "ca.crt").read_bytes()
        assert said("verify", "-CAfile", f"{server}/ca.crt", f"{server}/server.crt"), where
        assert trusted == (broker / "operator" / "ca.crt").read_bytes(), where
        assert trusted == (broker / "reader" / "ca.crt").read_bytes(), where
        old = [(authority / f"previous.{kind}").exists() for kind in ("crt", "key")]
        assert old in ([True, True], [False, False]), where
        assert trusted.count(b"BEGIN") == 1 + old[0], where
        assert not [path for path in broker.rglob("ca.key") if path.parent != authority], where


def test_a_wrong_site_file_stops_it_before_anything_is_changed(folder: Path) -> None:
    gateway(folder).init()
    before = snapshot(folder)
    (folder / "site" / "site.yaml").write_text("site: [")
    for what in ({"new_ca": True}, {"passwords": True}):
        with pytest.raises(SiteError):
            gateway(folder).rotate(**what)
        assert snapshot(folder) == before


def test_two_at_once_are_one_too_many(folder: Path) -> None:
    gateway(folder).init()
    lock = FolderLock(folder / "broker" / "ca")
    lock.take()
    for again in (gateway(folder).init, gateway(folder).rotate):
        with pytest.raises(Refused, match="another tocsin init or rotate"):
            again()
    lock.release()
    assert gateway(folder).init().lines == []


def test_a_file_is_on_disk_before_it_takes_the_others_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power failure could leave an empty key, or an empty password, which lets everybody in."""
    synced: set[int] = set()
    real_sync, real_replace = os.fsync, Path.replace

    def sync(file: int) -> None:
        synced.add(os.fstat(file).st_ino)
        real_sync(file)

    def replace(path: Path, to: Path) -> Path:
        assert path.stat().st_ino in synced, path
        return real_replace(path, to)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    gateway(folder).init()
    assert (folder / "broker" / "access").stat().st_ino in synced


def test_an_empty_password_is_none(folder: Path) -> None:
    gateway(folder).init()
    (folder / "broker" / "reader" / "password").chmod(0o600)
    (folder / "broker" / "reader" / "password").write_text("\n")
    assert "made a password of reader (broker/reader/password)" in gateway(folder).init().lines
    assert len((folder / "broker" / "reader" / "password").read_text()) > 20


def test_copies_have_their_topics(folder: Path) -> None:
    with (folder / "site" / "site.yaml").open("a") as site:
        site.write("copies: {vms-publisher: 2}\n")
    gateway(folder).init()
    rules = (folder / "broker" / "access" / "acl").read_text()
    assert "tocsin/v1/hq/services/vms-publisher-1\n" in rules


# ── at a real Mosquitto ──────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def mosquitto(folder: Path, ports: tuple[int, int]) -> AsyncIterator[asyncio.subprocess.Process]:
    """mosquitto/mosquitto.conf as it stands, but for its paths and ports."""
    conf = (ROOT / "mosquitto" / "mosquitto.conf").read_text()
    for old, new in {
        "listener 8883": f"listener {ports[0]} 127.0.0.1",
        "listener 8884": f"listener {ports[1]} 127.0.0.1",
        "/mosquitto/certs": f"{folder}/broker/server",
        "/mosquitto/config": f"{folder}/broker/access",
        "/mosquitto/data": str(folder),
        "log_dest stdout": f"log_dest file {folder}/mosquitto.log",
    }.items():
        assert old in conf
        conf = conf.replace(old, new)
    (folder / "mosquitto.conf").write_text(conf + ("\nuser root\n" if os.geteuid() == 0 else ""))
    process = await asyncio.create_subprocess_exec(
        str(find_mosquitto()), "-c", str(folder / "mosquitto.conf")
    )
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", ports[1])
                    writer.close()
                    break
                except OSError:
                    assert process.returncode is None
                    await asyncio.sleep(0.02)
        yield process
    finally:
        process.terminate()
        await process.wait()


async def ask(
    port: int, folder: Path, user: str, topic: str, *, certificate: bool = False, password: str | None = None
) -> str:
    """What becomes of somebody who publishes: "taken", "not authorised", or "not let in"."""
    own = folder / "broker" / user
    context = ssl.create_default_context(cafile=str(own / "ca.crt") if (own / "ca.crt").exists() else None)
    if certificate:
        context.load_cert_chain(own / "tls.crt", own / "tls.key")
    else:
        context.load_verify_locations(folder / "broker" / "reader" / "ca.crt")
        password = password or (own / "password").read_text().strip()
    connect = mqtt5.ConnectPacket(
        "client", clean_start=True, username=None if certificate else user,
        password=None if certificate else (password or "").encode(),
    )  # fmt: skip
    async with asyncio.timeout(10):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.write(connect.write())
            greeting, _ = mqtt5.read(memoryview(await reader.read(1024)))
            assert isinstance(greeting, mqtt5.ConnAckPacket)
            if greeting.reason_code != mqtt5.ConnAckReasonCode.SUCCESS:
                return "not let in"
            writer.write(mqtt5.PublishPacket(topic, b"{}", qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=1).write())
            answer, _ = mqtt5.read(memoryview(await reader.read(1024)))
            assert isinstance(answer, mqtt5.PubAckPacket)
            writer.close()
        except (OSError, IndexError):
            return "not let in"
    return "not authorised" if int(answer.reason_code) == NOT_AUTHORISED else "taken"


async def test_mosquitto_goes_by_it_and_reads_it_anew(folder: Path, free_ports: tuple[int, int]) -> None:
    require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    (folder / "site" / "broker-users").write_text("z2m readwrite zigbee2mqtt/#\n")
    gateway(folder).init()
    rules = (folder / "broker" / "access" / "acl").read_text()
    assert "topic read zigbee2mqtt/" in rules.partition("user adapter-mqtt\n")[2].partition("\n\n")[0]
    assert "frigate/" not in rules  # it is on a broker of its own

    with_certificate, with_password = free_ports
    sighting, event, motion = (
        "tocsin/v1/hq/sightings/motion/a",
        "tocsin/v1/hq/events/motion/a",
        "zigbee2mqtt/a",
    )
    async with mosquitto(folder, free_ports) as process:

        def reload() -> None:
            process.send_signal(signal.SIGHUP)

        assert await ask(with_certificate, folder, "correlator", sighting, certificate=True) == "taken"
        assert (
            await ask(with_certificate, folder, "adapter-mqtt", sighting, certificate=True)
            == "not authorised"
        )
        assert await ask(with_password, folder, "z2m", motion) == "taken"
        assert await ask(with_password, folder, "z2m", event) == "not authorised"
        assert await ask(with_password, folder, "reader", motion) == "not authorised"
        assert await ask(with_password, folder, "reader", motion, password="guessed") == "not let in"

        # A password that somebody has chosen, and a user who is no more.
        (folder / "broker" / "reader" / "password").write_text("chosen\n")
        (folder / "site" / "broker-users").write_text("")
        Gateway(folder, ["127.0.0.1"], SERVICES, reload).rotate(new_ca=True)
        while await ask(with_password, folder, "z2m", motion) != "not let in":
            await asyncio.sleep(0.05)
        assert await ask(with_password, folder, "reader", motion, password="chosen") == "not authorised"
        # By a CA that this Mosquitto has not known when it started.
        assert await ask(with_certificate, folder, "correlator", sighting, certificate=True) == "taken"
