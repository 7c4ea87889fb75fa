"""The ways in which events are fetched: each gives batches of messages, and where the log stands behind them.

A way asks for more only when it is resumed, so what a batch gave is safe on disk by then: whoever does
not resume it holds back the device.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from services.adapters.http import codec
from services.adapters.http.client import LARGEST, Answer, Client, Failed, Refused, Status, now
from services.adapters.http.codec import Channel, Malformed, Pages, Place
from services.adapters.http.config import Device, Find, Key, Log, Login, Poll, Socket
from shared.dialect import Unreadable, as_text, parse

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

_MOST_PAGES = 100_000
_MOST_HISTORY = 20_000
_EARLIEST = datetime(1, 1, 1, tzinfo=UTC)
_WAITED = 1.0
"""Seconds after which a long poll's answer is something that happened while we waited."""
_MOST_WAITING = 64
"""WebSocket messages that wait here; what comes above waits in the device's own buffers."""

CURSOR_LOST = "cursor_lost"
"""The reason that is told when the device has forgotten what was not fetched."""
Tell = Callable[[str, str], None]
"""How a way tells of what is wrong with the device: a reason and a message."""


@dataclass(slots=True)
class Batch:
    """Messages in the order in which they happened."""

    messages: Sequence[Any] = ()
    place: Place | None = None
    """Where the log stands behind them; None if there is no telling."""
    clock: datetime | None = None
    catching_up: bool = False
    """They lay there when we came: some may be old."""
    state: bool = False
    """They say how things are now."""
    skip: bool = False
    """They are older than anything that is to be told."""


class Way:
    """What all ways know."""

    def __init__(
        self,
        client: Client,
        device: Device,
        options: Mapping[str, str],
        tell: Tell,
        heard: Callable[[], None],
    ) -> None:
        """`heard` is called when the device showed that it is alive without saying anything."""
        self.client = client
        self.device = device
        self.tell = tell
        self.heard = heard
        self._options = {f"option.{name}": value for name, value in options.items()}

    def fields(self, place: Place | None, **more: Any) -> dict[str, Any]:
        """For templates."""
        at = now()
        return {
            **self._options,
            "now": codec.iso(at),
            "now_s": int(at.timestamp()),
            **(place.fields() if place else {}),
            **more,
        }

    def pause(self, usual: float) -> float:
        return usual if self.device.interval is None else self.device.interval


# ── Polls ────────────────────────────────────────────────────────────────────────────────────────


class Polling(Way):
    """An address that is asked again and again, at once if it holds more."""

    def __init__(self, poll: Poll, *common: Any) -> None:
        super().__init__(*common)
        self.poll = poll
        self.pages = Pages(poll)
        self._link: str | None = None

    async def batches(self, place: Place | None) -> AsyncGenerator[Batch, None]:
        """For ever."""
        pause = self.pause(self.poll.interval)
        if self.poll.cursor is None:
            while True:
                yield await self.state()
                await asyncio.sleep(pause)
        catching_up = True
        if place is None:
            async for batch in self.first():
                yield batch
                place = batch.place
            catching_up = self.device.begin == "start"
        # The first answer says that the device is there, so it does not wait for an event.
        wait = min(self.poll.wait, _WAITED)
        while True:
            asked = time.monotonic()
            batch, more = await self.page(place, wait)
            wait = self.poll.wait
            if self.poll.wait and time.monotonic() - asked > _WAITED:
                catching_up = False
            batch.catching_up = catching_up
            catching_up = catching_up and more
            yield batch
            place = batch.place
            if not more:
                await asyncio.sleep(pause)

    async def state(self) -> Batch:
        """What the address says now."""
        answer = await self._ask(None, self.poll.query)
        tree = self._tree(answer)
        items = [tree] if self.pages.items is None else codec.list_of(self.pages.items(tree))
        return Batch(self.pages.messages(items), None, answer.clock, state=True)

    async def trial(self) -> list[Answer]:
        """Answers to a request that changes nothing. Raises what is wrong."""
        if self.poll.cursor is None:
            answer = await self._ask(None, self.poll.query)
            self._tree(answer)
            return [answer]
        place = Place(None, now()) if self.pages.timeline else None
        query = {**self.poll.query, **(self.poll.begin or {})}
        answer = await self._ask(place, query, wait=1, page=1)
        self._batch(answer, place)
        return [answer]

    async def first(self) -> AsyncGenerator[Batch, None]:
        """When the log is seen for the very first time: where its end is; nothing, if all of it counts."""
        if self.device.begin == "start":
            if self.pages.timeline is not None:
                yield Batch((), Place(None, codec.EPOCH))
            return
        if self.pages.timeline is not None:
            start = Place(None, now())
            answer = await self._ask(start, self.poll.query)
            at = (answer.clock or now()).replace(microsecond=0)
            items = codec.list_of(self.pages.items(self._tree(answer))) if self.pages.items else []
            yield Batch((), self.pages.timeline.after(items, Place(None, at)), answer.clock)
            return
        if self.poll.begin is not None:
            answer = await self._ask(None, {**self.poll.query, **self.poll.begin}, wait=1)
            batch, _ = self._batch(answer, None)
            batch.skip = True
            yield batch
            return
        place = None
        for _ in range(_MOST_PAGES):
            batch, more = await self.page(place)
            place = batch.place
            if not more:
                batch.skip = True
                yield batch
                return
        raise Failed("its log has no end")

    async def page(self, place: Place | None, wait: float = 0.0) -> tuple[Batch, bool]:
        """What follows a place, and whether there is more at once."""
        if self.poll.paged:
            return await self._all_pages(place), False
        answer: Answer | None = None
        try:
            answer = await self._ask(place, self.poll.query, wait=int(wait))
        except Status as error:
            if place is None or error.status not in self.poll.gone.status:
                raise
        if answer is not None and (place is None or not self.pages.gone(answer.tree())):
            return self._batch(answer, place)
        self.tell(
            CURSOR_LOST,
            "the device does not know any more up to where its log was read (was it reset, or away longer "
            "than its log reaches?): all that it still has is taken, and what was told already is told once",
        )
        lost = Place(None, place.since) if place and place.since else None
        return self._batch(await self._ask(lost, {**self.poll.query, **self.poll.again}), None)

    async def _all_pages(self, place: Place | None) -> Batch:
        """All pages of what follows a place, whatever their order, put in order."""
        assert self.pages.items is not None
        assert self.pages.timeline is not None
        found: list[Any] = []
        clock = None
        until = int(now().timestamp()) + 1
        for number in range(1, _MOST_PAGES):
            answer = await self._ask(place, self.poll.query, page=number, now_s=until)
            items = codec.list_of(self.pages.items(self._tree(answer)))
            found += items
            clock = answer.clock or clock
            if len(items) < self.poll.limit:
                break
            if len(found) > _MOST_HISTORY:
                raise Failed("its log has no end")
        timeline = self.pages.timeline
        found.sort(key=lambda item: timeline.time(item) or _EARLIEST)
        fresh = timeline.new(found, place)
        return Batch(self.pages.messages(fresh), timeline.after(found, place), clock)

    def _batch(self, answer: Answer, place: Place | None) -> tuple[Batch, bool]:
        tree = self._tree(answer)
        assert self.pages.items is not None
        items = codec.list_of(self.pages.items(tree))
        behind = self.pages.place(tree, items, place)
        timeline = self.pages.timeline
        fresh = items if timeline is None else timeline.new(items, place)
        more = len(items) >= self.poll.limit and (timeline is None or bool(fresh))
        return Batch(self.pages.messages(fresh), behind, answer.clock), more

    def _tree(self, answer: Answer) -> Any:
        tree = answer.tree()
        if self.pages.fails(tree):
            raise Failed("it answers with an error")
        return tree

    async def _ask(self, place: Place | None, query: Mapping[str, str], **more: Any) -> Answer:
        poll = self.poll
        fields = self.fields(place, **{"wait": int(poll.wait), "limit": poll.limit, **more})
        if poll.cursor is not None and poll.cursor.link and place is not None and place.cursor is not None:
            # It may hold the parameters of the request that gave it, which was not one as these are.
            target = codec.with_query(codec.local_link(place.cursor, self.device.url), query, fields)
        elif poll.find is not None:
            target = codec.with_query(await self._find(poll.find), query, fields)
        else:
            target = codec.target(poll.path, query, fields)
        body = codec.fill_tree(poll.body, fields) if poll.body is not None else None
        return await self.client.ask(poll.method, target, body=body, wait=fields["wait"])

    async def _find(self, find: Find) -> str:
        if self._link is None:
            found = codec.getter(find.link)((await self.client.ask("GET", find.path)).tree())
            if not isinstance(found, str):
                raise Failed(
                    f"its answer to {find.path} names no events: does this login or key have the right?"
                )
            self._link = codec.local_link(found, self.device.url)
        return self._link


# ── Channels into a log ──────────────────────────────────────────────────────────────────────────


class Pulling(Way):
    """A channel into the device's log. What is pulled from it is gone from it, so after any doubt whether
    an answer has come there is a new channel, with the whole log."""

    def __init__(self, log: Log, *common: Any) -> None:
        super().__init__(*common)
        self.channel = Channel(log)

    async def batches(self, place: Place | None) -> AsyncGenerator[Batch, None]:
        """Until the channel ends; raises then."""
        log, key = self.channel.log, self.channel.key
        number, whole = await self._subscribe()
        try:
            entries: list[Any] = []
            clock = None
            while whole:
                answer, some = await self._pull(number, 0)
                clock = answer.clock or clock
                entries += some
                if not some:
                    break
                if len(entries) > _MOST_HISTORY:
                    raise Failed("its log has no end")
            skip = place is None and self.device.begin == "end"
            news: list[Any] | None = entries
            if place is not None and place.cursor and whole:
                news = codec.behind(entries, place.cursor, key)
                if news is None:
                    self.tell(
                        CURSOR_LOST,
                        "the last entry that was taken is not in the device's log any more (was it "
                        "restarted, or away for more entries than it keeps?): all that it still has is taken",
                    )
                    news = entries
            # An empty log is a place too: all that comes is new.
            place = self._behind(entries, place) or Place("")
            yield Batch(news or (), place, clock, catching_up=True, skip=skip)
            while True:
                await asyncio.sleep(self.pause(log.interval))
                answer, some = await self._pull(number, int(log.wait))
                place = self._behind(some, place)
                yield Batch(some, place, answer.clock)
        finally:
            # The channel would live on for a while, and the device has but few.
            with suppress(Failed, Malformed, TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._ask(log.unsubscribe, log.unsubscribe_query, channel=number)

    async def trial(self) -> list[Answer]:
        """As `Polling.trial`."""
        answer = await self._ask(self.channel.log.test, {})
        if self.channel.fails(tree := answer.tree()):
            raise Failed(f"it answers with an error: {self._error(tree)}")
        return [answer]

    def _behind(self, entries: Sequence[Any], place: Place | None) -> Place | None:
        return Place(self.channel.key(entries[-1])) if entries else place

    async def _subscribe(self) -> tuple[Any, bool]:
        """The channel, and whether the whole log is in it."""
        log = self.channel.log
        for history in (log.history, log.no_history):
            answer = await self._ask(log.subscribe, log.subscribe_query, history=history)
            tree = answer.tree()
            if not self.channel.fails(tree):
                number = self.channel.channel(tree)
                if number is None:
                    raise Malformed("the answer names no channel")
                return number, history == log.history
            if history == log.history:
                self.tell(
                    "no_history",
                    "the device does not show its log from the beginning: what happens while the gateway is "
                    "away is lost; update its firmware",
                )
        raise Failed(f"it opens no channel into its log: {self._error(tree)}")

    async def _pull(self, number: Any, wait: int) -> tuple[Answer, list[Any]]:
        log = self.channel.log
        answer = await self._ask(log.pull, log.pull_query, channel=number, wait=wait)
        tree = answer.tree()
        if self.channel.fails(tree):
            raise Failed(f"its channel has ended: {self._error(tree)}")
        return answer, codec.list_of(self.channel.items(tree))

    def _error(self, tree: Any) -> str:
        return str(as_text(self.channel.error(tree)) or "it does not say why")[:120]

    async def _ask(self, path: str, query: Mapping[str, str], **more: Any) -> Answer:
        target = codec.target(path, query, self.fields(None, **more))
        return await self.client.ask("GET", target, wait=float(more.get("wait", 0)), once=True)


# ── WebSockets ───────────────────────────────────────────────────────────────────────────────────


class Listening(Way):
    """A WebSocket, and what is asked beside it whenever it is open again."""

    def __init__(self, socket: Socket, *common: Any) -> None:
        super().__init__(*common)
        self.socket = socket
        self.beside = [Polling(one, *common) for one in socket.catch_up]
        log = next((one for one in self.beside if one.pages.timeline), None)
        self._timeline = log.pages.timeline if log else None
        self._wrap = log.poll.wrap if log else None
        self._listening = False

    async def batches(self, place: Place | None) -> AsyncGenerator[Batch, None]:
        """Until the WebSocket ends; raises then."""
        connection = await connect(self.client, self.socket)
        alive = asyncio.create_task(self._keep_alive(connection))
        try:
            # It is open first, so nothing falls between the log and what is told live.
            for asked in self.beside:
                if asked.poll.cursor is None:
                    yield await asked.state()
                    continue
                if place is None:
                    async for batch in asked.first():
                        yield batch
                        place = batch.place
                more = True
                while more:
                    batch, more = await asked.page(place)
                    batch.catching_up = True
                    yield batch
                    place = batch.place
            while True:
                messages = await self._next(connection)
                place = self._behind(messages, place)
                yield Batch(messages, place)
        finally:
            alive.cancel()
            await connection.close()

    async def trial(self) -> list[Answer]:
        """As `Polling.trial`."""
        await (await connect(self.client, self.socket)).close()
        return [answer for asked in self.beside for answer in await asked.trial()]

    def _behind(self, messages: Sequence[Any], place: Place | None) -> Place | None:
        """The log's place, as far as messages that stand in it too tell."""
        wrap = self._wrap
        if self._timeline is None or wrap is None:
            return place
        also = wrap.also.items()
        entries = [
            message.get(wrap.under) if wrap.under else message
            for message in messages
            if isinstance(message, dict) and all(message.get(key) == value for key, value in also)
        ]
        return self._timeline.after(entries, place) if entries else place

    async def _next(self, connection: ClientConnection) -> list[Any]:
        from websockets.exceptions import ConnectionClosed  # noqa: PLC0415

        self._listening = True
        try:
            said = await connection.recv()
        except ConnectionClosed as error:
            why = error.rcvd or error.sent or "the connection was lost"
            raise Failed(f"the WebSocket was closed ({why})") from None
        finally:
            self._listening = False
        self.heard()
        try:
            return [parse(said.encode() if isinstance(said, str) else said, "json")]
        except Unreadable as error:
            self.tell("unreadable", f"a message of the WebSocket cannot be read: {error}")
            return []

    async def _keep_alive(self, connection: ClientConnection) -> None:
        while True:
            await asyncio.sleep(self.socket.keepalive)
            answered = await connection.ping()
            try:
                async with asyncio.timeout(self.socket.keepalive):
                    await answered
            except TimeoutError:
                # While events wait here for room on the disk, its pongs wait behind its messages.
                if self._listening:
                    connection.transport.abort()
                    return
            else:
                self.heard()


async def connect(client: Client, socket: Socket) -> ClientConnection:
    """An open WebSocket. Raises `Refused`, `Failed`."""
    from websockets.asyncio.client import connect as opened  # noqa: PLC0415
    from websockets.exceptions import InvalidHandshake, InvalidStatus  # noqa: PLC0415

    class Straight(opened):
        """Follows no redirect: our credentials would go along."""

        def process_redirect(self, exc: Exception) -> Exception | str:
            return exc

    if isinstance(client.device.scheme, Login):
        raise Failed("a WebSocket behind a login is not supported")
    headers, query = client.credentials()
    target = codec.with_query(socket.path, query, {}) if query else socket.path
    parts = urlsplit(client.device.url)
    url = f"{'wss' if client.tls else 'ws'}://{parts.netloc}{parts.path}{target}"
    try:
        return await Straight(
            url,
            ssl=client.tls,
            additional_headers=headers,
            user_agent_header=None,
            compression=None,
            open_timeout=10,
            close_timeout=2,
            ping_interval=None,
            max_size=LARGEST,
            max_queue=_MOST_WAITING,
            proxy=None,
        )
    except InvalidStatus as error:
        status = error.response.status_code
        if status in (401, 403):
            key = "the key" if isinstance(client.device.scheme, Key) else "us"
            raise Refused(f"it refuses {key} ({status})") from None
        raise Status(status, f"it answers {status} where a WebSocket should be") from None
    except InvalidHandshake as error:
        raise Failed(f"there is no WebSocket: {error}") from None


def way(device: Device, *common: Any) -> Polling | Pulling | Listening:
    """How a device's events are fetched, by its profile. `common` is what a `Way` takes."""
    match device.said.fetch:
        case Poll() as poll:
            return Polling(poll, *common)
        case Log() as log:
            return Pulling(log, *common)
        case Socket() as socket:
            return Listening(socket, *common)
