"""Settings of a service: how it reaches the broker, where its files are."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from shared.bus import Endpoint
    from shared.secrets import Secrets

_MOST_BYTES = 4 * 1024**3
_UNITS = {"k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_WITH_UNIT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([kmgt])(?:i?b)?", re.IGNORECASE)
_NUMBER = re.compile(r"\s*[0-9]{1,18}\s*")


class WrongSetting(ValueError):
    """A setting is what it cannot be. The text, one line, names it and says what to write."""


def _broker(value: str) -> str | None:
    from shared.bus import Endpoint  # noqa: PLC0415  as below

    try:
        Endpoint(value).address()
    except ValueError as error:
        return str(error)
    return None


def _port(value: str) -> str | None:
    if _NUMBER.fullmatch(value) and int(value) <= 65535:
        return None
    return f"{_quoted(value)} is not a port; write a number up to 65535, or 0 for none"


def _level(value: str) -> str | None:
    if value.upper() in logging.getLevelNamesMapping():
        return None
    return f"{_quoted(value)} is not a level; write debug, info, warning or error"


def _bytes(value: str) -> str | None:
    if _NUMBER.fullmatch(value) and int(value):
        return None
    meant = _WITH_UNIT.fullmatch(value.strip())
    remedy = str(round(float(meant[1]) * _UNITS[meant[2].lower()])) if meant else f"one such as {_MOST_BYTES}"
    return f"{_quoted(value)} is not a whole number of bytes; write {remedy}"


def _quoted(value: str) -> str:
    return f'"{" ".join(value.split())[:64]}"'


def _setting(
    default: str | None,
    help: str,
    wrong: Callable[[str], str | None] | None = None,
    *,
    secret: bool = False,
) -> str | None:
    """`wrong` says what is wrong with a value, and what to write; None if it is right."""
    return field(default=default, metadata={"help": help, "wrong": wrong}, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Each is `TOCSIN_<NAME>` in the environment and `--<name>` of `tocsin run`."""

    site: str | None = _setting("/etc/tocsin/site.yaml", "the site file")
    copy: str | None = _setting(
        None,
        "which of several copies of the service this is, from 0; or a name that ends in it, such as a pod's",
    )
    mqtt_url: str | None = _setting(
        "mqtt://127.0.0.1:1883", "the broker: mqtt://HOST:PORT or mqtts://…", _broker, secret=True
    )
    mqtt_ca: str | None = _setting(None, "file of the CA that signed the broker's certificate")
    mqtt_cert: str | None = _setting(None, "file of this service's certificate")
    mqtt_key: str | None = _setting(None, "file of its key")
    mqtt_username: str | None = _setting(None, "user name at the broker")
    mqtt_password: str | None = _setting(
        None, "password at the broker; rather put it in the secret `mqtt_password`", secret=True
    )
    state_dir: str | None = _setting("/var/lib/tocsin", "folder of the service's store")
    secrets_dir: str | None = _setting(None, "folder of secret files")
    metrics_host: str | None = _setting("0.0.0.0", "address of /metrics, /healthz and /readyz")  # noqa: S104
    metrics_port: str | None = _setting("9100", "port of /metrics, /healthz and /readyz; 0 for none", _port)
    log_level: str | None = _setting("info", "debug, info, warning or error", _level)
    store_max_bytes: str | None = _setting(
        str(_MOST_BYTES),
        "how much the store may hold, but for the ids that it remembers (30 MB at most)",
        _bytes,
    )

    @classmethod
    def of(cls, options: Mapping[str, str | None], environ: Mapping[str, str] = os.environ) -> Settings:
        """Options first, then the environment, then the defaults. Raises `WrongSetting`."""
        given: dict[str, str] = {}
        for each in fields(cls):
            option, variable = options.get(each.name), f"TOCSIN_{each.name.upper()}"
            value = option or environ.get(variable)
            if not value:
                continue
            wrong = each.metadata["wrong"]
            if wrong is not None and (why := wrong(value)):
                raise WrongSetting(f"{'--' + each.name.replace('_', '-') if option else variable}: {why}")
            given[each.name] = value
        return cls(**given)

    def endpoint(self, secrets: Secrets) -> Endpoint:
        """Where the broker is. From now on `secrets` hide what its password is known to be."""
        from shared.bus import Endpoint, password_in  # noqa: PLC0415  settings come before there are models

        in_url = password_in(self.mqtt_url or "")
        for password in (in_url, unquote(in_url), self.mqtt_password or ""):
            secrets.conceal(password)
        return Endpoint(
            url=self.mqtt_url or "",
            ca=Path(self.mqtt_ca) if self.mqtt_ca else None,
            cert=Path(self.mqtt_cert) if self.mqtt_cert else None,
            key=Path(self.mqtt_key) if self.mqtt_key else None,
            username=self.mqtt_username,
            password=self.mqtt_password,
            ask_password=partial(self._password, secrets),
        )

    def _password(self, secrets: Secrets) -> str | None:
        path = Path(self.secrets_dir or "") / "mqtt_password"
        if self.secrets_dir is None or not path.is_file():
            return None
        value = path.read_text().strip()
        secrets.conceal(value)
        return value
