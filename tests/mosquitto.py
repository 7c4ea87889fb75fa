"""mosquitto/mosquitto.conf as somebody would install it, for a Mosquitto of the tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from services.broker import find_mosquitto

ROOT = Path(__file__).resolve().parent.parent


def make_certs(folder: Path, names: str, *identities: str) -> None:
    """`mosquitto/make-certs`: a CA, a broker reached by `names`, and `identities`."""
    command = [str(ROOT / "mosquitto" / "make-certs"), str(folder), names, *identities]
    subprocess.run(command, check=True, capture_output=True)


def install(
    folder: Path,
    certificates: Path,
    rules: str,
    *,
    listen: tuple[str, str] = ("8883", "8884"),
    users: Iterable[str] = (),
    more: str = "",
) -> list[str]:
    """Write the configuration as it stands but for its paths, and what belongs to it; the command that
    starts the broker. `listen`: PORT [ADDRESS] with certificates, and with passwords, which are the
    users' names. `more` is added at the end."""
    conf = (ROOT / "mosquitto" / "mosquitto.conf").read_text()
    for old, new in {
        "listener 8883": f"listener {listen[0]}",
        "listener 8884": f"listener {listen[1]}",
        "/mosquitto/certs": str(certificates),
        "/mosquitto/config": str(folder),
        "/mosquitto/data": str(folder),
        "log_dest stdout": f"log_dest file {folder}/mosquitto.log",
    }.items():
        assert old in conf
        conf = conf.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "acl").write_text(rules)
    passwords = folder / "passwords"
    passwords.write_text("".join(f"{user}:{user}\n" for user in users))
    if passwords.stat().st_size:
        subprocess.run([str(find_mosquitto("mosquitto_passwd")), "-U", str(passwords)], check=True)
    return command(folder, conf + more)


def command(folder: Path, conf: str) -> list[str]:
    """What starts a broker with this configuration."""
    path = folder / "mosquitto.conf"
    # It would become the user `mosquitto`, who may not write here. First, since a bridge takes to
    # itself what follows it.
    path.write_text(("user root\n" if os.geteuid() == 0 else "") + conf)
    return [str(find_mosquitto()), "-c", str(path)]
