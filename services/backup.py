"""`tocsin backup` and `tocsin restore`: stores, site file and, if asked, secrets, in one archive.

Stores are copied while their services run: each copy is the store at one instant. They are copied
givers first: an event that is handed over meanwhile is then in both copies, never in neither. A taker
knows what it took, so in both is once.

A store that is put back is older than the world. What its gateway delivered since the backup is in it
as not yet delivered, and no store knows of it. So a restored publisher looks up whatever it may have
delivered in its earlier life before it sends it (see `shared.delivery.work.note_restored`).
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from services import archive
from services.archive import Archive, BadArchive, File, Manifest
from shared import __version__, custody
from shared.delivery import work
from shared.events import utcnow
from shared.lock import FolderInUse, FolderLock
from shared.secrets import MAX_BYTES as MAX_SECRET
from shared.settings import Settings
from shared.store import Schema, StoreNewer
from shared.yamltext import YamlError, parse

_STDIO = "-"


class Refused(Exception):
    """It was not done; nothing was changed. The text says why, and what to do."""


class Partly(Exception):
    """A restore was begun and not ended; the text says why."""


@dataclass(frozen=True)
class _Kind:
    """A sort of store."""

    schema: Schema
    holds: Callable[[sqlite3.Connection], dict[str, int]]
    restored: Callable[[sqlite3.Connection], None]
    """Make a store fit to go on after it was put back."""


_KINDS = {
    "outbox.db": _Kind(custody.OUTBOX_SCHEMA, custody.holds, custody.restored),
    "work.db": _Kind(work.SCHEMA, work.holds, work.restored),
}


def _say(text: str = "") -> None:
    # Standard output may be the archive.
    print(text, file=sys.stderr)


def _why(error: Exception) -> str:
    """What went wrong, without the system's numbers."""
    match error:
        case OSError(filename=None) if error.strerror:
            return error.strerror.lower()
        case FileExistsError() | NotADirectoryError():
            return f"{error.filename} is a file where a folder should be"
        case FileNotFoundError():
            return f"there is no {error.filename}"
        case IsADirectoryError():
            return f"{error.filename} is a folder"
        case OSError() if error.strerror:
            return f"{error.filename}: {error.strerror.lower()}"
    return str(error)


# ── backup ───────────────────────────────────────────────────────────────────────────────────────


def backup(settings: Settings, args: argparse.Namespace) -> int:
    """Make a backup; returns the exit code."""
    try:
        with ExitStack() as opened:
            target = _target(args.to, settings)
            folder = opened.enter_context(
                tempfile.TemporaryDirectory(
                    prefix=".tocsin-backup-", dir=target.parent if target else _beside(settings)
                )
            )
            staged = _gather(settings, args, Path(folder))
            manifest = _manifest(settings, staged, Path(folder))
            if target is None:
                archive.write(sys.stdout.buffer, manifest, staged)
                sys.stdout.buffer.flush()
            else:
                _write(target, manifest, staged)
    except (Refused, OSError, sqlite3.Error) as error:
        _say(f"no backup was made: {_why(error)}")
        return 1
    _tell_backup(target, manifest, settings)
    return 0


def _target(to: str, settings: Settings) -> Path | None:
    """The file to write; None for standard output."""
    if to == _STDIO:
        if sys.stdout.isatty():
            raise Refused("an archive is no text for a terminal: say `tocsin backup - > FILE`")
        return None
    path = Path(to)
    if path.is_dir() or to.endswith("/"):
        _make_folder(path)
        site = _site_id(Path(settings.site or "")) or "site"
        path /= f"tocsin-{site}-{archive.stamp(utcnow())}.tar.gz"
    if path.exists():
        raise Refused(f"{path} is there already; name another file, or a folder")
    if not path.suffix and path.parent.is_dir():
        # A folder that is not there yet, rather than a file whose name says nothing of what it is.
        raise Refused(
            f"there is no folder {path}; end the name with / to have it made, or with .tar.gz for a file of "
            "this name"
        )
    if not path.parent.is_dir():
        raise Refused(f"there is no folder {path.parent}; make it, or end the name with / to have it made")
    return path


def _make_folder(path: Path) -> None:
    """Make a folder and those above it. Where one of them is a file, the error names that one."""
    if not path.is_dir():
        if path.parent != path:
            _make_folder(path.parent)
        path.mkdir(exist_ok=True)


def _beside(settings: Settings) -> str | None:
    """Where copies for standard output are laid: in a container /tmp is memory, or may hold little."""
    state = settings.state_dir or ""
    return None if "TMPDIR" in os.environ or not os.access(state, os.W_OK) else state


def _gather(settings: Settings, args: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Copies of all that goes into the archive, by name."""
    staged: dict[str, Path] = {}

    def stage(name: str) -> Path:
        path = folder / str(len(staged))
        path.touch(mode=0o600)
        staged[name] = path
        return path

    root = Path(settings.state_dir or "")
    for store in stores(root):
        to = stage(f"stores/{store.relative_to(root).as_posix()}")
        to.unlink()
        _copy_store(store, to)
    if not staged:
        raise Refused(f"there is no store below {root}; name the folder of the state with --state-dir")
    if not args.without_site:
        site = Path(settings.site or "")
        if not site.is_file():
            raise Refused(f"there is no site file {site}; name it with --site, or say --without-site")
        shutil.copyfile(site, stage(archive.SITE))
    if args.secrets:
        for secret, name in _secrets(settings):
            shutil.copyfile(secret, stage(name))
    return staged


def stores(root: Path) -> list[Path]:
    """The stores below a state folder, givers before takers."""
    found = [path for name in _KINDS for path in root.rglob(name) if path.is_file()]
    usable = [path for path in found if archive.is_name(f"stores/{path.relative_to(root).as_posix()}")]
    # Adapters give to the correlator's own store, both to the publishers'.
    return sorted(usable, key=lambda path: (path.name == "work.db", path.parent.name == "correlator", path))


def _copy_store(source: Path, to: Path) -> None:
    """A copy of a store at one instant, without what was deleted. Its service goes on meanwhile."""
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(source.absolute()))}?mode=ro", uri=True, timeout=30)
        ) as connection:
            connection.execute("VACUUM INTO ?", (str(to),))
    except sqlite3.Error as error:
        raise Refused(
            f"the store {source} can't be copied: {error}; run this as the user of its service, and see "
            f"that there is room in {to.parent.parent}"
        ) from error
    to.chmod(0o600)


def _secrets(settings: Settings) -> Iterator[tuple[Path, str]]:
    if not settings.secrets_dir:
        raise Refused("name the folder of the secrets with --secrets-dir")
    root = Path(settings.secrets_dir)
    for path in sorted(root.rglob("*")):
        # What begins with a dot is Kubernetes' own.
        name = f"secrets/{path.relative_to(root).as_posix()}"
        if path.is_file() and archive.is_name(name):
            if path.stat().st_size > MAX_SECRET:
                raise Refused(f"{path} is too large to be a secret; move it elsewhere")
            yield path, name


def _manifest(settings: Settings, staged: dict[str, Path], folder: Path) -> Manifest:
    files = []
    for name, path in staged.items():
        about: dict[str, Any] = {}
        if name.startswith("stores/"):
            kind = _KINDS[Path(name).name]
            with closing(sqlite3.connect(path)) as connection:
                version = kind.schema.version_of(connection)
                about = {"schema": version}
                if version == kind.schema.version:
                    about["holds"] = kind.holds(connection)
        files.append(File(name, path.stat().st_size, archive.digest(path), **about))
    site = _site_id(staged[archive.SITE] if archive.SITE in staged else Path(settings.site or ""))
    return Manifest(archive.FORMAT, __version__, utcnow(), site, tuple(files))


def _write(target: Path, manifest: Manifest, staged: dict[str, Path]) -> None:
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    try:
        with part.open("wb") as out:
            archive.write(out, manifest, staged)
            out.flush()
            os.fsync(out.fileno())
        _name(part, target)
    finally:
        part.unlink(missing_ok=True)
    _sync(target.parent)


def _name(part: Path, target: Path) -> None:
    """Give a file its name, unless that is somebody's."""
    try:
        os.link(part, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # FAT, as on disks that are carried about, has no links.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        part.replace(target)


def _tell_backup(target: Path | None, manifest: Manifest, settings: Settings) -> None:
    for file in manifest.files:
        _say(_entry(file))
    if any(file.name.startswith("secrets/") for file in manifest.files):
        _say(
            "\n!!! THE SECRETS ARE IN THIS ARCHIVE, IN CLEAR: tokens, keys, passwords. Whoever has the file\n"
            "!!! has them. Encrypt it, or keep it where you would keep them.\n"
        )
    elif archive.SITE in {file.name for file in manifest.files}:
        _say("the secrets are not in it: keep them elsewhere, or say --secrets")
    named = list(_named_files(Path(settings.site or "")))
    if named:
        _say(f"the site file names files that are not in it: {', '.join(named)}")
    _say(f"{target or 'standard output'}: {_amount(target.stat().st_size) if target else 'written'}")


def _entry(file: File) -> str:
    return f"{file.name:<44} {_amount(file.bytes):>9}  {_in_words(file)}".rstrip()


def _in_words(file: File) -> str:
    return ", ".join(f"{what} {number}" for what, number in file.holds.items())


def _amount(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _site(path: Path) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, YamlError):
        return None


def _site_id(path: Path) -> str | None:
    """The id of a site, even if there are mistakes elsewhere in its file."""
    said = _site(path)
    site = said.get("site") if isinstance(said, dict) else None
    return site if isinstance(site, str) and archive.is_name(f"secrets/{site}") else None


def _named_files(path: Path) -> Iterator[str]:
    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for one in value.values() if isinstance(value, dict) else value:
                yield from texts(one)

    for text in dict.fromkeys(texts(_site(path))):
        if "/" in text and len(text) < 4096 and "\0" not in text and (path.parent / text).is_file():
            yield text


# ── restore ──────────────────────────────────────────────────────────────────────────────────────


def restore(settings: Settings, args: argparse.Namespace) -> int:
    """Put a backup back; returns the exit code."""
    try:
        with ExitStack() as opened:
            source: BinaryIO
            if args.archive == _STDIO:
                source = sys.stdin.buffer
            else:
                source = opened.enter_context(Path(args.archive).open("rb"))
            Restore(settings, args, Archive(source)).run(opened)
    except BadArchive as error:
        _say(f"{args.archive}: {error}. Nothing was changed")
        return 2
    except Partly as error:
        _say(f"only a part was restored: {error}. Do it again, before anything starts")
        return 1
    except (Refused, OSError, sqlite3.Error) as error:
        _say(f"nothing was restored: {_why(error)}")
        return 1
    return 0


class Restore:
    """One restore: everything is checked and laid beside its place, then moved into it."""

    def __init__(self, settings: Settings, args: argparse.Namespace, source: Archive) -> None:
        self._args = args
        self._archive = source
        self._manifest = source.manifest
        self._state = Path(settings.state_dir or "")
        self._site = Path(settings.site or "")
        self._secrets = Path(settings.secrets_dir) if settings.secrets_dir else None
        self._staged: dict[str, Path] = {}

    def run(self, opened: ExitStack) -> None:
        """Raises `Refused`, `BadArchive` or OSError, and has then changed nothing; or `Partly`."""
        if self._args.dry_run:
            self._try()
            return
        wanted = self._places()
        if (there := self._in_the_way(wanted)) and not self._args.overwrite:
            raise Refused(
                f"there is already {', '.join(there)}. With --overwrite these are moved aside and kept as "
                "NAME.before-…; --without-site leaves the site file as it is"
            )
        self._tell_origin()
        opened.callback(self._clear)
        self._take_locks(opened, wanted)
        self._room(wanted)
        self._archive.unpack(lambda file: self._stage(file, wanted))
        for name, path in self._staged.items():
            if name.startswith("stores/"):
                _make_ready(path, name)
        try:
            self._put(wanted)
        except OSError as error:
            raise Partly(_why(error)) from error
        self._tell(wanted)
        _say("restored. Start the services")

    def _try(self) -> None:
        """Say what is in it, and whether it is whole, then what a restore would meet."""
        self._tell_origin()
        self._archive.unpack(lambda file: None)
        for file in self._manifest.files:
            _say(_entry(file))
        _say("it is whole: each file is what its check sum says")
        try:
            wanted = self._places()
        except Refused as error:
            raise Refused(f"a restore would be refused: {error}") from None
        there = self._in_the_way(wanted)
        self._tell_left_alone(wanted)
        if there and self._args.overwrite:
            for path in there:
                _say(f"{path} would be kept as {path}.before-…")
        elif there:
            _say(
                f"there is already {', '.join(there)}: a restore would need --overwrite, and keep these as "
                "NAME.before-…"
            )
        _say("nothing was changed: this was a dry run")

    def _tell_origin(self) -> None:
        _say(
            f"backup of {self._manifest.site or 'an unnamed site'}, "
            f"{self._manifest.made:%Y-%m-%d %H:%M:%S} UTC, by Tocsin {self._manifest.tocsin}"
        )

    def _places(self) -> dict[str, Path]:
        """Where each file goes that is wanted. Raises `Refused`."""
        wanted = {file.name: self._place(file) for file in self._manifest.files if self._wanted(file)}
        self._same_site()
        return wanted

    def _wanted(self, file: File) -> bool:
        if file.name == archive.SITE:
            return not self._args.without_site
        if file.name.startswith("secrets/"):
            return bool(self._args.secrets)
        kind = _KINDS.get(Path(file.name).name)
        if kind is None:
            raise Refused(
                f"this Tocsin has no store {file.name}: restore with the Tocsin that made the backup"
            )
        if (file.schema or 0) > kind.schema.version:
            raise Refused(
                f"{file.name} has version {file.schema}, this Tocsin knows up to {kind.schema.version}: "
                f"restore with Tocsin {self._manifest.tocsin} or a newer one"
            )
        return True

    def _place(self, file: File) -> Path:
        what, name = file.name.split("/", 1)
        if what == "site":
            return self._site
        if what == "secrets":
            if self._secrets is None:
                raise Refused("name the folder of the secrets with --secrets-dir")
            return self._secrets / name
        return self._state / name

    def _same_site(self) -> None:
        here = _site_id(self._site)
        if archive.SITE in {file.name for file in self._manifest.files} and not self._args.without_site:
            return
        if here and self._manifest.site and here != self._manifest.site:
            raise Refused(
                f"the backup is of the site {self._manifest.site}, the site file {self._site} is of {here}: "
                "what its stores hold would never be taken. Put that site's file there first"
            )

    def _in_the_way(self, wanted: dict[str, Path]) -> list[str]:
        """What would be moved aside. Takes out of `wanted` what is the same already."""
        sizes = {file.name: file for file in self._manifest.files}
        there = []
        for name, path in list(wanted.items()):
            if path.is_file() and not name.startswith("stores/"):
                same = path.stat().st_size == sizes[name].bytes and archive.digest(path) == sizes[name].sha256
                if same:
                    del wanted[name]
                    continue
            if path.exists() or path.is_symlink():
                there.append(str(path))
        return there

    def _take_locks(self, opened: ExitStack, wanted: dict[str, Path]) -> None:
        for folder in dict.fromkeys(
            path.parent for name, path in wanted.items() if name.startswith("stores/")
        ):
            self._folder(folder)
            lock = FolderLock(folder)
            try:
                lock.take()
            except FolderInUse as error:
                raise Refused(f"{error}. A store can't be replaced under a service") from None
            opened.callback(lock.release)
            _own(folder / "lock", folder)

    def _folder(self, folder: Path) -> None:
        """Make a folder and those above it; they belong to whom the one above belongs to."""
        if not folder.is_dir():
            self._folder(folder.parent)
            folder.mkdir(mode=0o700)
            _own(folder, folder.parent)

    def _room(self, wanted: dict[str, Path]) -> None:
        for file in self._manifest.files:
            if file.name in wanted and file.bytes > 1 << 20:
                folder = wanted[file.name].parent
                if shutil.disk_usage(folder).free < 2 * file.bytes:
                    raise Refused(f"there is no room in {folder} for {file.name} ({_amount(file.bytes)})")

    def _stage(self, file: File, wanted: dict[str, Path]) -> Path | None:
        place = wanted.get(file.name)
        if place is None:
            return None
        self._folder(place.parent)
        path = place.with_name(f".{place.name}.restoring")
        self._staged[file.name] = path
        return path

    def _clear(self) -> None:
        for path in self._staged.values():
            path.unlink(missing_ok=True)

    def _put(self, wanted: dict[str, Path]) -> None:
        """Move all into place. Killed in the midst it has done a part, and can be done again."""
        now = utcnow()
        suffix = f".before-{archive.stamp(now)}"
        for name, path in self._staged.items():
            place = wanted[name]
            if name == archive.SITE:
                path.chmod(0o644)
            _own(path, place.parent)
            _sync(path)
            if place.name == "work.db":
                # Clocks of adapters on other hosts may be a little ahead.
                note = work.note_restored(place.parent, now + timedelta(minutes=1))
                _own(note, place.parent)
            # A log without its store must never meet another store.
            for part in ("", "-wal", "-shm"):
                old = place.with_name(place.name + part)
                if old.exists() or old.is_symlink():
                    old.rename(old.with_name(f"{place.name}{suffix}{part}"))
            path.rename(place)
            _sync(place.parent)
        self._staged.clear()

    def _tell_left_alone(self, wanted: dict[str, Path]) -> None:
        for file in self._manifest.files:
            if file.name in wanted:
                continue
            if file.name == archive.SITE and not self._args.without_site:
                _say(f"{self._site} is the same already")
            elif file.name.startswith("secrets/") and not self._args.secrets:
                _say(f"{file.name} is left alone without --secrets")

    def _tell(self, wanted: dict[str, Path]) -> None:
        self._tell_left_alone(wanted)
        for file in self._manifest.files:
            if file.name in wanted:
                holds = f", {_in_words(file)}" if file.holds else ""
                _say(f"{wanted[file.name]}: {_amount(file.bytes)}{holds}")
        if any(name.startswith("stores/") for name in wanted):
            _say(_OLD_NEWS)


_OLD_NEWS = """
The stores are as old as the backup. What they hold goes out again, also what was delivered since:
- events of adapters: publishers whose stores were not restored know for days what they took;
- deliveries to the VMS: each is looked for there first, and sent only if it is not there;
- deliveries to Camio, which can't be searched: what was delivered since the backup comes twice;
- dead letters stay until they are replayed. One that was replayed since would come twice."""


def _make_ready(path: Path, name: str) -> None:
    """Look at a store that is to be put back, and make it fit to go on. Raises `BadArchive`."""
    kind = _KINDS[Path(name).name]
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA trusted_schema=OFF")
            (said,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if said != "ok":
                raise BadArchive(f"{name} is damaged: {said}")
            kind.schema.migrate(connection)
            connection.execute("BEGIN")
            kind.restored(connection)
            kind.holds(connection)
            connection.execute("COMMIT")
    except StoreNewer as error:
        raise BadArchive(f"{name}: {error}") from None
    except sqlite3.Error as error:
        raise BadArchive(f"{name} is no store of this sort: {error}") from None


def _own(path: Path, like: Path) -> None:
    """Give a file to whom another one belongs, if we are root: services are not."""
    if os.geteuid() == 0:
        status = like.stat()
        os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
