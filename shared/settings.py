"""Settings of a service: how it reaches the broker, where its files are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from shared.bus import Endpoint
    from shared.secrets import Secrets


def _setting(default: str | None, help: str, *, secret: bool = False) -> str | None:
    return field(default=default, metadata={"help": help}, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Each is `TOCSIN_<NAME>` in the environment and `--<name>` of `tocsin run`."""

    site: str | None = _setting("/etc/tocsin/site.yaml", "the site file")
    copy: str | None = _setting(
        None,
        "which of several copies of the service this is, from 0; or a name that ends in it, such as a pod's",
    )
    mqtt_url: str | None = _setting(
        "mqtt://127.0.0.1:1883", "the broker: mqtt://HOST:PORT or mqtts://…", secret=True
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
    metrics_port: str | None = _setting("9100", "port of /metrics, /healthz and /readyz; 0 for none")
    log_level: str | None = _setting("info", "debug, info, warning or error")
    store_max_bytes: str | None = _setting(
        str(4 * 1024**3), "how much the store may hold, but for the ids that it remembers (30 MB at most)"
    )

    @classmethod
    def of(cls, options: Mapping[str, str | None], environ: Mapping[str, str] = os.environ) -> Settings:
        """Options first, then the environment, then the defaults."""
        given = {
            each.name: value
            for each in fields(cls)
            if (value := options.get(each.name) or environ.get(f"TOCSIN_{each.name.upper()}"))
        }
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
