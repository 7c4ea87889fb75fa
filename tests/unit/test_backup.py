"""What a backup saves, what a restore does with it, and what it does with one that is not right."""

from __future__ import annotations

import asyncio
import errno
import gzip
import hashlib
import io
import os
import sqlite3
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from services import archive, cli
from shared import __version__
from shared.custody import OUTBOX_SCHEMA, Entry
from shared.delivery import Refused, work
from shared.events import Event, utcnow
from shared.lock import FolderLock
from shared.store import Schema, Store
from tests.gateway import TOPICS, World, event, receipted, sent, sighting, site_of, until
from tests.unit.test_custody import Adapter, adapter
from tests.unit.test_delivery import SITE, Told, command, publisher

NAME = "adapter-test"


class Gateway:
    """A folder with what a gateway has, and the command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.site = folder / "site.yaml"
        self.secrets = folder / "secrets"
        for each in (folder, self.state, self.secrets):
            each.mkdir(exist_ok=True)

    def run(self, *args: str) -> int:
        return cli.main(
            [
                *args,
                "--state-dir",
                str(self.state),
                "--site",
                str(self.site),
                "--secrets-dir",
                str(self.secrets),
            ]
        )

    def tree(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name != "lock"
        }


@pytest.fixture
def here(tmp_path: Path) -> Gateway:
    made = Gateway(tmp_path / "here")
    made.site.write_text(SITE)
    return made


@pytest.fixture
def there(tmp_path: Path) -> Gateway:
    """A new machine."""
    return Gateway(tmp_path / "there")


async def fill(gateway: Gateway, *ids: str) -> None:
    async with holding(gateway) as one:
        one.hub.loses = lambda message: True
        await one.put(*ids)


def holding(gateway: Gateway) -> Any:
    folder = gateway.state / NAME
    folder.mkdir(exist_ok=True)
    return adapter(folder)


async def test_what_was_held_is_delivered_once_after_a_restore(here: Gateway, there: Gateway) -> None:
    (here.secrets / "camio").write_text("token")
    await fill(here, "a", "b", "c")
    world, target = World(here.folder, site_of(SITE, here.folder)), Told()
    target.gate.clear()
    made = [event() for _ in range(5)]
    async with publisher(world, target):
        for one in made:
            world.hub.buses[-1].receive(sent(sighting(one, ("lobby", "dock"))))
        await until(lambda: len(receipted(world.hub)) == 5)
    file = here.folder.parent / "one.tar.gz"
    assert here.run("backup", str(file)) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert there.run("restore", str(file)) == 0
    assert there.site.read_text() == SITE
    assert not (there.secrets / "camio").exists()
    async with holding(there) as one:
        await until(lambda: len(one.published()) >= 3)
        one.receipt("a", "b", "c")
        await until(lambda: one.sender.outstanding == 0)
        assert sorted(one.published()) == ["a", "b", "c"]
        assert await one.put("b") == [False]
    world, target = World(there.folder, site_of(SITE, there.folder)), Told()
    async with publisher(world, target) as part:
        await until(lambda: part.outstanding == 0)
        world.hub.buses[-1].receive(sent(sighting(made[0], ("lobby", "dock"))))
        await until(lambda: receipted(world.hub) == [made[0].id])
    assert sorted(target.got) == sorted((lane, one.id) for one in made for lane in ("lobby", "dock"))


async def test_what_was_delivered_since_the_backup_is_not_sent_again(here: Gateway, there: Gateway) -> None:
    """The publisher of the old machine goes on after the backup, and takes more; then the machine is lost."""
    world, target = World(here.folder, site_of(SITE, here.folder)), Told()
    target.gate.clear()
    target.workers = 1
    # More than a lane has in memory: of those on disk only, none was ever attempted.
    in_backup, after, never = ([event() for _ in range(many)] for many in (60, 4, 4))
    file = here.folder.parent / "one.tar.gz"
    async with publisher(world, target) as part:
        for one in in_backup:
            world.hub.buses[-1].receive(sent(sighting(one)))
        await until(lambda: len(receipted(world.hub)) == 60)
        assert await asyncio.to_thread(here.run, "backup", str(file)) == 0
        for one in after:
            world.hub.buses[-1].receive(sent(sighting(one)))
        target.gate.set()
        await until(lambda: part.outstanding == 0 and len(target.got) == 64)
    assert there.run("restore", str(file)) == 0
    world = World(there.folder, site_of(SITE, there.folder))
    target.calls.clear()
    async with publisher(world, target) as part:
        # An adapter whose store is as old brings what it had handed over, and what it had not.
        for one in (*after, *never):
            world.hub.buses[-1].receive(sent(sighting(one)))
        await until(lambda: len(target.got) == 68 and part.outstanding == 0)
        later = event(age=-120)
        world.hub.buses[-1].receive(sent(sighting(later)))
        await until(lambda: len(target.got) == 69)
    assert sorted(target.ids()) == sorted(one.id for one in (*in_backup, *after, *never, later))
    looked_up = [id_ for verb, _, id_ in target.calls if verb == "find"]
    assert sorted(looked_up) == sorted(one.id for one in (*in_backup, *after, *never))


async def test_a_dead_letter_that_was_replayed_since_the_backup_is_not_sent_again(
    here: Gateway, there: Gateway
) -> None:
    world, target = World(here.folder, site_of(SITE, here.folder)), Told()
    made = event()
    file = here.folder.parent / "one.tar.gz"

    def no(lane: str, one: Event) -> None:
        raise Refused("no")

    target.answer = no
    async with publisher(world, target) as part:
        world.hub.buses[-1].receive(sent(sighting(made)))
        await until(lambda: part.dead == 1)
        while not await part._store.read(work.dead_letters(1)):
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(here.run, "backup", str(file)) == 0
        target.answer = lambda lane, event: None
        command(world, "replay", b'{"seqs": "all"}')
        await until(lambda: target.got)
    assert there.run("restore", str(file)) == 0
    world = World(there.folder, site_of(SITE, there.folder))
    async with publisher(world, target) as part:
        assert part.dead == 1
        command(world, "replay", b'{"seqs": "all"}')
        await until(lambda: part.dead == part.outstanding == 0)
    assert target.ids() == [made.id]


async def test_what_must_be_looked_up_is_so_after_a_kill_too(there: Gateway) -> None:
    (there.state / "vms-publisher").mkdir()
    work.note_restored(there.state / "vms-publisher", utcnow())
    world, target = World(there.folder, site_of(SITE, there.folder)), Told()
    target.gate.clear()
    made = [event(age=1) for _ in range(100)]
    async with publisher(world, target):
        for one in made:
            world.hub.buses[-1].receive(sent(sighting(one)))
        await until(lambda: len(receipted(world.hub)) == 100)
        with closing(sqlite3.connect(there.state / "vms-publisher/work.db")) as connection:
            assert connection.execute("SELECT sum(attempted) FROM work").fetchone() == (100,)


def test_a_note_that_cannot_be_read_doubts_everything_so_far(tmp_path: Path) -> None:
    assert work.restored_until(tmp_path) is None
    noted = utcnow() + timedelta(minutes=1)
    work.note_restored(tmp_path, noted)
    assert work.restored_until(tmp_path) == noted
    (tmp_path / "restored").write_text("")
    before = utcnow()
    assert before <= (work.restored_until(tmp_path) or before) <= utcnow()


async def test_numbers_are_not_used_again(here: Gateway, there: Gateway) -> None:
    await fill(here, "a")
    assert here.run("backup", str(here.folder.parent) + "/") == 0
    async with holding(here) as one:
        highest = max([one.sender.next_sequence() for _ in range(5000)])
    (file,) = here.folder.parent.glob("tocsin-hq-*.tar.gz")
    assert there.run("restore", str(file)) == 0
    async with holding(there) as one:
        assert one.sender.next_sequence() > highest


# ── what is saved ────────────────────────────────────────────────────────────────────────────────


def members(file: Path) -> list[str]:
    with tarfile.open(file) as tar:
        return tar.getnames()


async def test_givers_are_saved_before_takers(here: Gateway) -> None:
    names = (
        "vms-publisher/work.db",
        "correlator/outbox.db",
        "camio-publisher/work.db",
        "adapter-z/outbox.db",
    )
    for name in names:
        (here.state / name).parent.mkdir()
        store = Store(here.state / name, OUTBOX_SCHEMA if "outbox" in name else work.SCHEMA)
        await store.open()
        await store.close()
    (here.state / "adapter-z/outbox.db.before-20260101T000000Z").write_text("put aside")
    assert here.run("backup", str(here.folder / "it.tar.gz")) == 0
    assert members(here.folder / "it.tar.gz") == [
        "manifest.json",
        "stores/adapter-z/outbox.db",
        "stores/correlator/outbox.db",
        "stores/camio-publisher/work.db",
        "stores/vms-publisher/work.db",
        "site/site.yaml",
    ]
    with tarfile.open(here.folder / "it.tar.gz") as tar:
        manifest = orjson.loads((tar.extractfile("manifest.json") or io.BytesIO()).read())
    assert manifest["site"] == "hq"
    assert manifest["tocsin"] == __version__
    versions = [OUTBOX_SCHEMA.version] * 2 + [work.SCHEMA.version] * 2
    assert [file.get("schema") for file in manifest["files"]] == [*versions, None]


async def test_secrets_are_saved_only_if_asked_and_then_it_is_said(
    here: Gateway, there: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    (here.secrets / "camio").write_text("s3cr3t-token")
    (here.secrets / "..data").mkdir()
    (here.secrets / "..data" / "camio").write_text("Kubernetes' own")
    (here.secrets / "vms-publisher").mkdir()
    (here.secrets / "vms-publisher" / "camera_lobby").symlink_to(here.secrets / "camio")
    await fill(here, "a")
    plain, full = here.folder / "plain.tar.gz", here.folder / "full.tar.gz"
    assert here.run("backup", str(plain)) == 0
    assert "SECRETS" not in capfd.readouterr().err
    assert b"s3cr3t" not in gzip.decompress(plain.read_bytes())
    assert here.run("backup", str(full), "--secrets") == 0
    assert "THE SECRETS ARE IN THIS ARCHIVE" in capfd.readouterr().err
    assert full.stat().st_mode & 0o777 == 0o600
    assert members(full)[-2:] == ["secrets/camio", "secrets/vms-publisher/camera_lobby"]
    assert there.run("restore", str(full)) == 0
    assert list(there.secrets.iterdir()) == []
    assert there.run("restore", str(full), "--secrets", "--overwrite") == 0
    restored = there.secrets / "vms-publisher" / "camera_lobby"
    assert restored.read_text() == "s3cr3t-token"
    assert restored.stat().st_mode & 0o777 == 0o600


async def test_a_store_whose_service_was_killed_is_saved_with_its_log(here: Gateway, there: Gateway) -> None:
    """What was committed and not yet moved from the log into the database."""
    path = here.state / NAME / "outbox.db"
    async with holding(here) as one:
        one.hub.loses = lambda message: True
        await one.put("a", "b")
        for part in ("", "-wal"):  # as a kill leaves them
            killed = there.state / NAME / f"outbox.db{part}"
            killed.parent.mkdir(exist_ok=True)
            killed.write_bytes(path.with_name(f"outbox.db{part}").read_bytes())
    there.site.write_text(SITE)
    assert there.run("backup", str(there.folder / "it.tar.gz")) == 0
    assert held(there.folder / "it.tar.gz") == {"a", "b"}


def held(file: Path) -> set[str]:
    """Ids of events in the outboxes and tasks of an archive."""
    found = set()
    with tarfile.open(file) as tar:
        for member in tar.getmembers():
            if member.name.endswith(".db"):
                content = (tar.extractfile(member) or io.BytesIO()).read()
                with closing(sqlite3.connect(":memory:")) as connection:
                    connection.deserialize(content)
                    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                    if "outbox" in member.name:
                        found |= {id_ for (id_,) in connection.execute("SELECT id FROM outbox")}
                    else:
                        bodies = connection.execute("SELECT body FROM work")
                        found |= {orjson.loads(body)["event"]["id"] for (body,) in bodies}
    return found


async def test_under_load_whatever_passes_from_one_to_the_other_is_in_a_copy(here: Gateway) -> None:
    """Events come in and are handed over all the time; what was in custody before a backup was begun,
    and is not delivered, is in it."""
    world, target = World(here.folder, site_of(SITE, here.folder)), Told()
    target.gate.clear()  # so that the publisher keeps all that it takes
    (here.state / NAME).mkdir()
    here_is = Adapter(here.state / NAME, world.hub, (64, 64))
    await here_is.store.open()
    await here_is.sender.open()
    sending = asyncio.create_task(here_is.sender.run())
    taken: list[str] = []
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            made = [event() for _ in range(20)]
            entries = [
                Entry(
                    one.id.encode(), one.id, 1, TOPICS.sighting("motion", "hall"),
                    sighting(one).to_bytes(), here_is.sender.next_sequence(),
                )
                for one in made
            ]  # fmt: skip
            await here_is.sender.put(entries)
            taken.extend(one.id for one in made)
            await asyncio.sleep(0.005)

    async with publisher(world, target):
        loading = asyncio.create_task(load())
        shown = 0
        for number in range(60):
            file = here.folder / f"{number}.tar.gz"
            before = set(taken)
            assert await asyncio.to_thread(here.run, "backup", str(file)) == 0
            assert before <= held(file)
            shown += len(taken) > len(before)  # something came in meanwhile
            if shown == 3:
                break
        assert shown == 3
        stop.set()
        await loading
        await until(lambda: here_is.sender.outstanding == 0)
    sending.cancel()
    await here_is.store.close()


def test_what_cannot_be_saved_is_said_and_leaves_nothing(
    here: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    file = here.folder / "it.tar.gz"
    assert here.run("backup", str(file)) == 1
    assert "no store below" in capfd.readouterr().err
    (here.state / NAME).mkdir()
    (here.state / NAME / "outbox.db").write_bytes(b"no database" * 1000)
    assert here.run("backup", str(file)) == 1
    assert "outbox.db can't be copied: file is not a database" in capfd.readouterr().err
    assert here.run("backup", str(here.folder / "no" / "it.tar.gz")) == 1
    assert "no folder" in capfd.readouterr().err
    file.write_text("mine")
    assert here.run("backup", str(file)) == 1
    assert "is there already" in capfd.readouterr().err
    assert file.read_text() == "mine"
    assert [path.name for path in here.folder.iterdir() if "tocsin" in path.name or "part" in path.name] == []


async def test_where_a_backup_goes_is_told_in_plain_words(
    here: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    await fill(here, "a")
    there = here.folder.parent
    (there / "bk").write_text("mine")
    capfd.readouterr()
    told = {
        f"{there}/bk/": f"no backup was made: {there}/bk is a file where a folder should be\n",
        f"{there}/bk/more/": f"no backup was made: {there}/bk is a file where a folder should be\n",
        f"{there}/new": f"no backup was made: there is no folder {there}/new; end the name with / to have it "
        "made, or with .tar.gz for a file of this name\n",
    }
    for to, said in told.items():
        assert here.run("backup", to) == 1
        assert capfd.readouterr().err == said
    assert (there / "bk").read_text() == "mine"
    assert not (there / "new").exists()


def test_what_cannot_be_restored_is_told_in_plain_words(
    there: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    assert there.run("restore", "/nowhere/it.tar.gz") == 1
    assert there.run("restore", str(there.folder)) == 1
    assert capfd.readouterr().err.splitlines() == [
        "nothing was restored: there is no /nowhere/it.tar.gz",
        f"nothing was restored: {there.folder} is a folder",
    ]


async def test_files_that_the_site_file_names_are_named(
    here: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    (here.folder / "ca.crt").write_text("certificate")
    here.site.write_text(f"site: hq\ntargets: {{vms: {{ca_file: {here.folder}/ca.crt}}}}\nmore: [x/y]\n")
    await fill(here, "a")
    assert here.run("backup", str(here.folder / "it.tar.gz")) == 0
    assert f"names files that are not in it: {here.folder}/ca.crt\n" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_what_root_does_stays_the_services(here: Gateway, there: Gateway) -> None:
    """Services run as users of their own, backups often as root."""
    user = 10001
    (here.secrets / "camio").write_text("token")
    async with holding(here) as one:
        one.hub.loses = lambda message: True
        await one.put("a")
        log = (here.state / NAME / "outbox.db-wal").read_bytes()
    (here.state / NAME / "outbox.db-wal").write_bytes(log)  # as a kill leaves it
    world = World(here.folder, site_of(SITE, here.folder))
    async with publisher(world, Told()):
        pass
    for path in (here.state, *here.state.rglob("*"), there.state, there.secrets):
        os.chown(path, user, user)
    file = here.folder.parent / "it.tar.gz"
    assert here.run("backup", str(file), "--secrets") == 0
    assert there.run("restore", str(file), "--secrets") == 0
    kept = [here.state, there.state, there.secrets]
    found = [path for folder in kept for path in (folder, *folder.rglob("*"))]
    assert {path.name for path in found} >= {"outbox.db", "work.db", "restored", "lock", "camio"}
    assert [path for path in found if path.stat().st_uid != user or path.stat().st_gid != user] == []
    assert there.site.stat().st_uid == 0


async def test_a_long_name_and_a_large_store_fit_into_an_archive(
    here: Gateway, there: Gateway, tmp_path: Path
) -> None:
    long = "a" * 150
    (here.secrets / long).write_text("word")
    await fill(here, "a")
    file = tmp_path / "it.tar.gz"
    assert here.run("backup", str(file), "--secrets") == 0
    assert there.run("restore", str(file), "--secrets") == 0
    assert (there.secrets / long).read_text() == "word"

    name = "stores/adapter-test/outbox.db"
    manifest = archive.Manifest(
        archive.FORMAT, __version__, utcnow(), None, (archive.File(name, 9 << 30, "0" * 64),)
    )
    (tmp_path / "short").write_bytes(b"")
    with pytest.raises(OSError, match="unexpected end"):
        archive.write(io.BytesIO(), manifest, {name: tmp_path / "short"})


async def test_for_standard_output_it_is_laid_beside_the_stores(
    here: Gateway, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A container's /tmp may be memory, and count against the service's."""
    await fill(here, "a")
    with monkeypatch.context() as patch:
        patch.delenv("TMPDIR", raising=False)
        patch.setattr(tempfile, "tempdir", str(here.folder / "nowhere"))
        assert here.run("backup", "-") == 0
    assert capsysbinary.readouterr().out.startswith(b"\x1f\x8b")
    assert not list(here.state.glob(".*"))


async def test_a_disk_without_hard_links_will_do(
    here: Gateway, there: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those that are carried about have it (FAT)."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    await fill(here, "a")
    file = here.folder / "it.tar.gz"
    assert here.run("backup", str(file)) == 0
    assert there.run("restore", str(file), "--dry-run") == 0
    before = file.read_bytes()
    assert here.run("backup", str(file)) == 1
    assert file.read_bytes() == before


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def saved(here: Gateway) -> Path:
    (here.secrets / "camio").write_text("token")
    await fill(here, "a", "b")
    file = here.folder.parent / "saved.tar.gz"
    assert here.run("backup", str(file), "--secrets") == 0
    return file


async def test_nothing_is_overwritten_unasked_and_then_it_is_kept(
    saved: Path, there: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    await fill(there, "mine")
    log = there.state / NAME / "outbox.db-wal"
    log.write_bytes(b"the log of the one that was there")
    there.site.write_text("site: hq\nname: mine\n")
    before = there.tree()
    assert there.run("restore", str(saved)) == 1
    said = capfd.readouterr().err
    assert str(there.state / NAME / "outbox.db") in said
    assert str(there.site) in said
    assert there.tree() == before
    assert there.run("restore", str(saved), "--overwrite") == 0
    after = there.tree()
    assert not log.exists()
    for name, content in before.items():
        (kept,) = [one for one in after if one.startswith(name.removesuffix("-wal") + ".before-")
                   and one.endswith("-wal") == name.endswith("-wal")]  # fmt: skip
        assert after[kept] == content
    async with holding(there) as one:
        await until(lambda: {*one.published()} >= {"a", "b"})
        assert "mine" not in one.published()


async def test_what_is_the_same_already_is_in_nobodys_way(saved: Path, there: Gateway) -> None:
    there.site.write_text(SITE)
    there.site.chmod(0o400)
    assert there.run("restore", str(saved)) == 0
    assert there.site.stat().st_mode & 0o777 == 0o400


def test_a_store_in_use_is_not_replaced(
    saved: Path, there: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    (there.state / NAME).mkdir()
    lock = FolderLock(there.state / NAME)
    lock.take()
    before = there.tree()
    assert there.run("restore", str(saved)) == 1
    assert f"in use by process {os.getpid()}" in capfd.readouterr().err
    assert there.tree() == before
    lock.release()
    assert there.run("restore", str(saved)) == 0


@pytest.mark.parametrize("planted", ["lock", "restored.new", "restored"])
async def test_root_writes_nowhere_else_for_a_link_in_a_services_folder(
    planted: str, here: Gateway, there: Gateway
) -> None:
    """The folder is its service's, which may have been taken over."""
    async with publisher(World(here.folder, site_of(SITE, here.folder)), Told()):
        pass
    file = here.folder.parent / "saved.tar.gz"
    assert here.run("backup", str(file)) == 0
    (store,) = here.state.rglob("work.db")
    folder = there.state / store.parent.relative_to(here.state)
    folder.mkdir(parents=True)
    victim = there.folder / "victim"
    victim.write_text("precious")
    (folder / planted).symlink_to(victim)
    if os.geteuid() == 0:
        os.chown(folder, 10001, 10001)
    owner = victim.stat().st_uid
    there.run("restore", str(file))
    assert victim.read_text() == "precious"
    assert victim.stat().st_uid == owner


def test_a_restore_that_fails_half_way_says_so(
    saved: Path, there: Gateway, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rename = Path.rename

    def failing(path: Path, to: Path) -> Path:
        if to.name == "site.yaml":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", failing)
    assert there.run("restore", str(saved)) == 1
    said = capfd.readouterr().err
    assert "nothing was" not in said
    assert "only a part was restored: input/output error. Do it again, before anything starts" in said
    monkeypatch.undo()
    assert there.run("restore", str(saved), "--overwrite") == 0


def test_the_stores_of_another_site_are_refused(
    saved: Path, there: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    there.site.write_text("site: elsewhere\n")
    assert there.run("restore", str(saved), "--without-site") == 1
    assert "is of the site hq" in capfd.readouterr().err
    assert list(there.state.iterdir()) == []


def test_a_dry_run_changes_nothing_and_checks_everything(
    saved: Path, there: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    assert there.run("restore", str(saved), "--dry-run") == 0
    assert "events 2, of life safety 0" in capfd.readouterr().err
    assert there.tree() == {}
    saved.write_bytes(saved.read_bytes()[:-20])
    assert there.run("restore", str(saved), "--dry-run") == 2


def test_a_dry_run_where_it_was_made_says_what_is_in_it_and_what_is_in_the_way(
    saved: Path, here: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    before = here.tree()
    capfd.readouterr()
    assert here.run("restore", str(saved), "--dry-run") == 0
    said = capfd.readouterr().err
    store = here.state / NAME / "outbox.db"
    told = (
        "backup of hq, ",
        f"stores/{NAME}/outbox.db",
        "events 2, of life safety 0",
        "site/site.yaml",
        "secrets/camio",
        "it is whole",
        f"{here.site} is the same already",
        "secrets/camio is left alone without --secrets",
        f"there is already {store}: a restore would need --overwrite",
        "nothing was changed: this was a dry run",
    )
    at = [said.find(part) for part in told]
    assert at == sorted(at), said
    assert -1 not in at, said
    assert here.run("restore", str(saved), "--dry-run", "--overwrite") == 0
    assert f"{store} would be kept as {store}.before-" in capfd.readouterr().err
    assert here.tree() == before


async def test_a_dry_run_says_what_is_in_it_before_it_says_what_would_be_refused(
    saved: Path, there: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    there.site.write_text("site: elsewhere\n")
    capfd.readouterr()
    assert there.run("restore", str(saved), "--dry-run", "--without-site") == 1
    said = capfd.readouterr().err
    refused = "a restore would be refused: the backup is of the site hq"
    assert 0 <= said.find("it is whole") < said.find(refused)


async def test_a_newer_store_is_refused(
    here: Gateway, there: Gateway, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    newer = Schema((*OUTBOX_SCHEMA.steps, "ALTER TABLE memory ADD COLUMN x"), OUTBOX_SCHEMA.version_of)
    (here.state / NAME).mkdir()
    store = Store(here.state / NAME / "outbox.db", newer)
    await store.open()
    await store.close()
    assert here.run("backup", str(here.folder / "it.tar.gz")) == 0  # saved it may be
    assert there.run("restore", str(here.folder / "it.tar.gz")) == 1
    said = capfd.readouterr().err
    known = OUTBOX_SCHEMA.version
    assert f"has version {known + 1}, this Tocsin knows up to {known}: restore with Tocsin" in said
    assert there.tree() == {}


def unpacks_to(packed: bytes, content: bytes) -> bool:
    try:
        return gzip.decompress(packed) == content
    except (OSError, EOFError, zlib.error):
        return False


def test_wherever_it_is_damaged_nothing_is_changed(saved: Path, there: Gateway) -> None:
    there.site.write_text("site: hq\n# mine\n")
    whole = saved.read_bytes()
    before = there.tree()
    step = max(1, len(whole) // 25)
    spoilt = [whole[:size] for size in range(0, len(whole) - 1, step)]
    spoilt += [whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :] for at in range(10, len(whole), step)]
    # A bit between the data and the check sum, which fills up a byte, does no harm.
    harmful = [one for one in spoilt if not unpacks_to(one, gzip.decompress(whole))]
    assert len(harmful) >= len(spoilt) - 1
    for one in [*harmful, b"", b"no archive", gzip.compress(b"no tar" * 1000)]:
        saved.write_bytes(one)
        assert there.run("restore", str(saved), "--overwrite", "--secrets") == 2, one[:60]
        assert there.tree() == before
    saved.write_bytes(whole)
    assert there.run("restore", str(saved), "--overwrite", "--secrets") == 0


# ── an archive that means harm ───────────────────────────────────────────────────────────────────

Member = tuple[tarfile.TarInfo, bytes]


def plain(name: str, content: bytes = b"harm") -> Member:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> Member:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member, b""


def manifest(*names: str, content: bytes = b"harm", **more: Any) -> Member:
    files = [
        {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name in names
    ]
    said = {"format": 1, "tocsin": "0.1.0", "made": "2026-11-22T08:00:00Z", "site": "hq", "files": files}
    return plain("manifest.json", orjson.dumps(said | more))


def packed(members: Sequence[Member]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1, format=tarfile.PAX_FORMAT) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


SITE_NAME = archive.SITE
HARM: dict[str, Callable[[], list[Member]]] = {
    "up and out": lambda: [manifest("stores/../../../harm.db"), plain("stores/../../../harm.db")],
    "up in a store's name": lambda: [manifest("stores/a/../../harm.db"), plain("stores/a/../../harm.db")],
    "absolute": lambda: [manifest("/var/tmp/harm.db"), plain("/var/tmp/harm.db")],
    "absolute secret": lambda: [manifest("secrets//etc/passwd"), plain("secrets//etc/passwd")],
    "hidden": lambda: [manifest("secrets/.ssh/authorized_keys"), plain("secrets/.ssh/authorized_keys")],
    "NUL": lambda: [manifest("secrets/a\0b"), plain("secrets/a\0b")],
    "no known folder": lambda: [manifest("etc/cron.d/harm"), plain("etc/cron.d/harm")],
    "no known store": lambda: [manifest("stores/a/harm.db"), plain("stores/a/harm.db")],
    "a link for the site": lambda: [manifest(SITE_NAME), link(SITE_NAME, "/etc/passwd")],
    "a link in the way": lambda: [
        manifest("secrets/a/b"), link("secrets/a", "/var"), plain("secrets/a/b"),
    ],
    "a hard link": lambda: [manifest(SITE_NAME), link(SITE_NAME, "/etc/passwd", tarfile.LNKTYPE)],
    "a device": lambda: [manifest(SITE_NAME), link(SITE_NAME, "", tarfile.CHRTYPE)],
    "a folder": lambda: [manifest(SITE_NAME), link(SITE_NAME, "", tarfile.DIRTYPE)],
    "other than said": lambda: [manifest(SITE_NAME), plain(SITE_NAME, b"halm")],
    "longer than said": lambda: [manifest(SITE_NAME), plain(SITE_NAME, b"harm" * 2)],
    "unnamed more": lambda: [manifest(SITE_NAME), plain(SITE_NAME), plain("secrets/more")],
    "another order": lambda: [manifest(SITE_NAME, "secrets/a"), plain("secrets/a"), plain(SITE_NAME)],
    "twice": lambda: [manifest("secrets/a", "secrets/a"), plain("secrets/a"), plain("secrets/a")],
    "missing": lambda: [manifest(SITE_NAME)],
    "no manifest": lambda: [plain(SITE_NAME)],
    "manifest last": lambda: [plain(SITE_NAME), manifest(SITE_NAME)],
    "no JSON": lambda: [plain("manifest.json", b"{")],
    "no UTF-8": lambda: [plain("manifest.json", b'{"a\xc8(": 1}')],
    "a list": lambda: [plain("manifest.json", b"[]")],
    "another format": lambda: [manifest(SITE_NAME, format=2), plain(SITE_NAME)],
    "less than nothing": lambda: [
        manifest(files=[{"name": SITE_NAME, "bytes": -1, "sha256": "0" * 64}]), plain(SITE_NAME),
    ],
    "a bomb": lambda: [manifest(SITE_NAME), plain(SITE_NAME, bytes(20 << 20))],
    "a bomb before the manifest": lambda: [plain("manifest.json", bytes(20 << 20))],
    "no database": lambda: [manifest("stores/a/work.db"), plain("stores/a/work.db")],
}  # fmt: skip


@pytest.mark.parametrize("what", HARM)
def test_harm(what: str, there: Gateway, capfd: pytest.CaptureFixture[str]) -> None:
    there.site.write_text("site: hq\n# mine\n")
    victim = there.folder.parent / "harm.db"
    file = there.folder.parent / "it.tar.gz"
    file.write_bytes(packed(HARM[what]()))
    before = there.tree()
    assert there.run("restore", str(file), "--overwrite", "--secrets") in (1, 2)
    said = capfd.readouterr().err
    assert "hanged" in said or "nothing was restored" in said
    assert "Traceback" not in said
    assert ("it holds more than its manifest says" in said) == ("bomb" in what)
    assert there.tree() == before
    assert not victim.exists()
    assert not Path("/var/tmp/harm.db").exists()


async def test_a_store_that_is_damaged_inside_or_none_is_not_put_in_place(
    here: Gateway, there: Gateway, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The check sums are right, and yet."""
    await fill(here, *(f"id-{number:04}" for number in range(400)))
    assert here.run("backup", str(tmp_path / "whole.tar.gz")) == 0
    with tarfile.open(tmp_path / "whole.tar.gz") as tar:
        whole = (tar.extractfile(f"stores/{NAME}/outbox.db") or io.BytesIO()).read()
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE songs(name)")
        connection.execute("PRAGMA user_version=1")
        connection.commit()
    wrong = [(tmp_path / "other.db").read_bytes()]
    wrong += [
        whole[: page * 4096] + b"\xa5" * 4096 + whole[(page + 1) * 4096 :]
        for page in range(1, len(whole) // 4096)
    ]
    assert len(wrong) > 10
    for one in wrong:
        file = tmp_path / "it.tar.gz"
        name = f"stores/{NAME}/outbox.db"
        file.write_bytes(packed([manifest(name, content=one), plain(name, one)]))
        assert there.run("restore", str(file)) == 2
        assert "is damaged" in (said := capfd.readouterr().err) or "is no store" in said
        assert there.tree() == {}


def test_a_manifest_is_what_it_says() -> None:
    made = archive.Manifest(1, "0.1.0", utcnow(), None, (archive.File(SITE_NAME, 1, "0" * 64),))
    assert msgspec.json.decode(msgspec.json.encode(made), type=archive.Manifest) == made
