"""The archive that `tocsin backup` writes and `tocsin restore` reads.

A gzipped tar. Its first member, `manifest.json`, names all others in their order, each with its size and
SHA-256; nothing else is in it. The names say what each is: `stores/SERVICE/NAME.db`, `site/site.yaml`,
`secrets/NAME`. A reader places each by its name and writes nothing anywhere else, whatever the archive
holds.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
from msgspec import Meta

from shared.events import UtcTime

FORMAT = 1
SITE = "site/site.yaml"
_MANIFEST = "manifest.json"
_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_NAME = re.compile(
    rf"stores/(?:{_PART}/){{0,4}}{_PART}\.db|{re.escape(SITE)}|secrets/(?:{_PART}/){{0,2}}{_PART}"
)
_CHUNK = 1 << 20
_MANIFEST_ROOM = 8 << 20
_MEMBER_ROOM = 64 << 10


class BadArchive(Exception):
    """It is damaged, not an archive of Tocsin's, or of a newer one. The text says which."""


class File(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    bytes: Annotated[int, Meta(ge=0)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    schema: int | None = None
    """Of a store: its version."""
    holds: dict[str, int] = {}
    """Of a store: how many of what."""


class Manifest(msgspec.Struct, frozen=True):
    format: int
    tocsin: str
    """Version of Tocsin that made it."""
    made: UtcTime
    site: str | None
    """Id of the site, if its file could be read."""
    files: tuple[File, ...]


def is_name(name: str) -> bool:
    """Whether a file of an archive may have this name."""
    return _NAME.fullmatch(name) is not None


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(to: BinaryIO, manifest: Manifest, files: Mapping[str, Path]) -> None:
    """Write an archive of `files`, by their names. Raises OSError."""
    with (
        gzip.GzipFile(fileobj=to, mode="wb", compresslevel=6, filename="", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):

        def add(name: str, size: int, content: BinaryIO) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = size, 0o600, int(manifest.made.timestamp())
            tar.addfile(member, content)

        said = msgspec.json.format(msgspec.json.encode(manifest))
        add(_MANIFEST, len(said), io.BytesIO(said))
        for file in manifest.files:
            with files[file.name].open("rb") as content:
                add(file.name, file.bytes, content)


class _Bounded(io.RawIOBase):
    """Gives no more than `room` bytes: a small archive can unpack to a very large one."""

    def __init__(self, source: BinaryIO, room: int) -> None:
        self._source = source
        self.room = room

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.room -= len(data)
        if self.room < 0:
            raise BadArchive("it holds more than its manifest says")
        return data


class Archive:
    """An archive being read from its beginning to its end, once."""

    def __init__(self, source: BinaryIO) -> None:
        """Reads the manifest. Raises `BadArchive`."""
        self._packed = _Bounded(gzip.GzipFile(fileobj=source, mode="rb"), _MANIFEST_ROOM)  # type: ignore[arg-type]
        with _told():
            self._tar = tarfile.open(fileobj=self._packed, mode="r|")  # noqa: SIM115
            content = self._next(_MANIFEST)
            self.manifest = _manifest(content.read(_MANIFEST_ROOM))
        self._packed.room = sum(file.bytes + _MEMBER_ROOM for file in self.manifest.files) + _MEMBER_ROOM

    def _next(self, name: str) -> tarfile.ExFileObject:
        member = self._tar.next()
        if member is None or member.name != name:
            found = f"{member.name!r}" if member else "its end"
            raise BadArchive(f"where {name} should be there is {found}")
        content = self._tar.extractfile(member) if member.isreg() else None
        if content is None:
            raise BadArchive(f"{name} is no plain file in it")
        return content  # type: ignore[return-value]

    def unpack(self, place: Callable[[File], Path | None]) -> None:
        """Write each file where `place` says (None: nowhere), readable by its owner only, and compare it
        with the manifest. Raises `BadArchive`, or OSError."""
        for file in self.manifest.files:
            path = place(file)
            with _told(), _new(path) if path else nullcontext() as out:
                content = self._next(file.name)
                size, hashed = 0, hashlib.sha256()
                while chunk := content.read(_CHUNK):
                    size += len(chunk)
                    hashed.update(chunk)
                    if out is not None:
                        out.write(chunk)
            if size != file.bytes or hashed.hexdigest() != file.sha256:
                raise BadArchive(f"{file.name} is not what the manifest says of it")
        with _told():
            extra = self._tar.next()
            if extra is not None:
                raise BadArchive(f"it holds {extra.name!r}, which its manifest does not name")
            while self._packed.read(_CHUNK):  # to the check sum at its end
                pass


def _new(path: Path) -> BinaryIO:
    path.unlink(missing_ok=True)
    # Exclusive, so it follows no link that somebody has put there.
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _manifest(said: bytes) -> Manifest:
    try:
        version = msgspec.json.decode(said, type=dict[str, msgspec.Raw]).get("format", msgspec.Raw(b"null"))
        if (found := msgspec.json.decode(version)) != FORMAT:
            raise BadArchive(
                f"its format is {found}, this Tocsin reads {FORMAT}: use the Tocsin that made it"
            )
        manifest = msgspec.json.decode(said, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadArchive(f"its manifest can't be read: {error}") from None
    names = [file.name for file in manifest.files]
    for name in names:
        if not is_name(name):
            raise BadArchive(f"its manifest names {name!r}, which is no name in an archive of Tocsin's")
    if len(set(names)) != len(names):
        raise BadArchive("its manifest names a file twice")
    return manifest


@contextmanager
def _told() -> Iterator[None]:
    """What the libraries say of a damaged archive, as `BadArchive`."""
    try:
        yield
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BadArchive(f"it is damaged or no archive of Tocsin's: {error}") from None


def stamp(at: datetime) -> str:
    """A time, as part of a file's name."""
    return at.strftime("%Y%m%dT%H%M%SZ")
