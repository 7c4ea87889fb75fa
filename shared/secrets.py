"""Secrets: read from files or the environment, read again when a file changes, kept out of texts.

The value of `{secret: panel_key}` is the file `panel_key` in the secrets directory
(`$TOCSIN_SECRETS_DIR`; Docker's and Kubernetes' secrets look like that), else the environment's
`TOCSIN_SECRET_PANEL_KEY`: upper case, dashes as underscores. Line ends after the value are no part
of it.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, quote_plus

from shared import files
from shared.model import SecretStr
from shared.site import SecretRef

MAX_BYTES = 64 << 10
_CHECK_EVERY = 1.0
_SHORTEST = 4
"""Shorter values are not searched for in texts: they would tear holes into innocent words."""

_log = logging.getLogger(__name__)


class MissingSecret(Exception):
    """A secret cannot be read. Says where it was looked for and what to do; holds no value."""

    def __init__(self, name: str, problem: str, remedy: str) -> None:
        super().__init__(f'secret "{name}" {problem}; {remedy}')
        self.name, self.problem, self.remedy = name, problem, remedy


@dataclass(slots=True)
class _Held:
    checked: float
    mark: tuple[int, ...]
    value: SecretStr


class Secrets:
    """Reads secrets by name and remembers them. Not for use from several threads."""

    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        warn: Callable[[str], None] = _log.warning,
    ) -> None:
        """`directory` is by default the environment's TOCSIN_SECRETS_DIR; with neither, only the
        environment is looked at. `warn` is told, once each, of files that everybody can read."""
        self._environ = os.environ if environ is None else environ
        named = directory or self._environ.get("TOCSIN_SECRETS_DIR")
        self._directory = Path(named) if named else None
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._told: dict[str, SecretStr | None] = {}
        self._warn = warn
        self._warned: set[str] = set()
        self._hidden: dict[str, list[str]] = {}

    def read(self, ref: SecretRef) -> SecretStr:
        """The present value; a file is looked at again at most once a second.

        Raises `MissingSecret` if there is none, or if it is empty, too large or not text.
        """
        name, now = ref.secret, self._clock()
        held = self._held.get(name)
        if held is not None and now - held.checked < _CHECK_EVERY:
            return held.value
        mark = self._mark(name)
        if held is not None and held.mark == mark:
            held.checked = now
            return held.value
        self._held.pop(name, None)
        self._told.setdefault(name, None)
        value = self._fetch(name)
        self.conceal(value.get_secret_value())
        self._held[name] = _Held(now, mark, value)
        if held is None and self._told[name] is None:
            self._told[name] = value
        return value

    def changed(self) -> frozenset[str]:
        """Names of the secrets read so far whose value differs from when this was last asked:
        replaced, appeared or gone. For followers, to be asked now and then."""
        names = set()
        for name, told in self._told.items():
            try:
                value: SecretStr | None = self.read(SecretRef(secret=name))
            except MissingSecret:
                value = None
            if value != told:
                names.add(name)
                self._told[name] = value
        return frozenset(names)

    def exposed(self, ref: SecretRef) -> str | None:
        """What is wrong with the permissions of a secret's file, if anything.

        Only a file of one's own is judged: what Docker and Kubernetes mount is readable to all
        inside the container, belongs to root, and is meant to be so.
        """
        path = self._path(ref.secret)
        try:
            status = path.stat() if path else None
        except OSError:
            return None
        if status and status.st_mode & stat.S_IROTH and status.st_uid == os.geteuid():
            return f"everybody on this machine can read {path}; chmod 600 it"
        return None

    def conceal(self, value: str) -> None:
        """Have `redact` hide a further value, such as a token found inside another secret."""
        for form in _forms(value):
            bucket = self._hidden.setdefault(form[:_SHORTEST], [])
            if form not in bucket:
                bucket.append(form)
                bucket.sort(key=len, reverse=True)

    def redact(self, text: str) -> str:
        """`text` with `***` in place of every secret read so far, also where it stands in base64,
        hex, JSON or URL encoding. Values of fewer than four characters are not looked for.

        A second line of defence for logs; its cost does not grow with the number of secrets.
        """
        hidden = self._hidden
        if not hidden:
            return text
        kept: list[str] = []
        start = at = 0
        last = len(text) - _SHORTEST
        while at <= last:
            bucket = hidden.get(text[at : at + _SHORTEST])
            form = next((form for form in bucket if text.startswith(form, at)), None) if bucket else None
            if form is None:
                at += 1
                continue
            kept += (text[start:at], "***")
            at += len(form)
            start = at
        return "".join((*kept, text[start:])) if kept else text

    def _path(self, name: str) -> Path | None:
        return self._directory / name if self._directory else None

    def _variable(self, name: str) -> str:
        return "TOCSIN_SECRET_" + name.upper().replace("-", "_")

    def _mark(self, name: str) -> tuple[int, ...]:
        """Differs when the file may have changed; () when there is none."""
        path = self._path(name)
        return files.mark(path) if path else ()

    def _fetch(self, name: str) -> SecretStr:
        path, variable = self._path(name), self._variable(name)
        text: str | None = None
        where = f"the file {path}"
        if path:
            try:
                with path.open("rb") as file:
                    data = file.read(MAX_BYTES + 1)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                raise MissingSecret(
                    name, f"cannot be read from {path} ({error.strerror})", "let this service's user read it"
                ) from None
            else:
                if len(data) > MAX_BYTES:
                    raise MissingSecret(
                        name, f"in {path} is larger than {MAX_BYTES >> 10} KiB", "is it the right file?"
                    )
                try:
                    text = data.decode()
                except UnicodeDecodeError:
                    raise MissingSecret(
                        name, f"in {path} is not UTF-8 text", "write binary keys in hex or base64"
                    ) from None
        if text is None:
            text, where = self._environ.get(variable), f"the environment's {variable}"
        if text is None:
            looked = f"{path} and the environment's {variable}" if path else f"the environment's {variable}"
            raise MissingSecret(
                name,
                f"is missing (looked at {looked})",
                "put its value there"
                if path
                else "set it, or set TOCSIN_SECRETS_DIR and put it in a file there",
            )
        text = text.rstrip("\r\n")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise MissingSecret(name, f"in {where} is not UTF-8 text", "write binary keys in hex or base64")
        if not text:
            raise MissingSecret(name, f"is empty in {where}", "put its value there")
        complaint = self.exposed(SecretRef(secret=name))
        if complaint and name not in self._warned:
            self._warned.add(name)
            self._warn(complaint)
        return SecretStr(text)


def _forms(value: str) -> set[str]:
    """A secret as it may stand in a text."""
    if len(value) < _SHORTEST:
        return set()
    forms = {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    forms |= {quote(value, safe="", errors="replace"), quote(value, errors="replace")}
    forms.add(quote_plus(value, errors="replace"))
    # A key of several lines is often printed line by line.
    forms.update(line for line in value.splitlines() if len(line) >= 16 and not line.startswith("-----"))
    data = value.encode("utf-8", "surrogatepass")
    forms |= {data.hex(), data.hex().upper()}
    forms |= {base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()}
    for before in range(3):
        # In base64 the text of a value depends on its place in a group of three bytes, as in
        # "user:password"; what depends on its neighbours is cut off at both ends.
        skip = (0, 2, 3)[before]
        encoded = base64.b64encode(b"\0" * before + data).decode().rstrip("=")
        if (before + len(data)) % 3:
            encoded = encoded[:-1]
        whole = encoded[skip:]
        if len(whole) >= 8:
            forms |= {whole, whole.replace("+", "-").replace("/", "_"), quote(whole, safe="")}
    return {form for form in forms if len(form) >= _SHORTEST}
