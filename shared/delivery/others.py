"""What another copy of a publisher may have too.

Of several copies each takes the sightings of its sensors that the correlator has stamped for it: who stamps
and who takes must have the same number of copies in mind. `look_into` says what is done about those that two
copies may be given, since the number has changed.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from msgspec import UNSET

from shared.bus import Message
from shared.copies import Claim, Share, name_of
from shared.custody import Numbers, Seen
from shared.delivery import work
from shared.events import PLAIN_JSON, Malformed, Receipt, Sighting, id_key
from shared.service import Runtime
from shared.store import Store

log = logging.getLogger("tocsin.delivery")

_EVERY = 0.02
_MOST = 4000
"""Looked into at once; more are left to their adapters, which send them again."""
_OBJECTION = 1.0
"""How long another copy has to say that it has an event."""
_TURNED, _SETTLED = 120.0, 600.0
"""Seconds after a change of the number of copies, until all services have the new site file as a rule, and
with certainty."""
_Doubtful = dict[tuple[str, int], tuple[Sighting, str | None, Claim]]
"""By the event's id and the copy that is to take it."""


class Take(Protocol):
    """Takes a sighting; `doubted` if another copy may have it as well."""

    def __call__(self, sighting: Sighting, reply: str | None, *, doubted: bool = False) -> None: ...


class OtherCopies:
    """This copy's part of the sensors, and its dealings with the others. It has what this copy is to have
    taken by `take`, and receipted by `owe` what is known here."""

    def __init__(
        self,
        runtime: Runtime,
        target: str,
        store: Store,
        seen: Seen,
        numbers: Numbers,
        *,
        take: Take,
        owe: Callable[[str | None, tuple[str, ...], str], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._runtime = runtime
        self._target = target
        self._store = store
        self._seen = seen
        self._numbers = numbers
        self._take = take
        self._owe = owe
        self._spawn = spawn
        self._sharing = work.Sharing()
        self._share: Share | None = None
        """Which sensors are this copy's, where there are several."""
        self._turning = False
        self._wary = False
        """Whether another copy may know what comes to this one."""
        self._doubtful: _Doubtful = {}
        self._unknown: dict[str, tuple[Sighting, str | None, asyncio.TimerHandle]] = {}
        """What will be taken unless another copy objects."""
        self._objected: dict[str, None] = {}
        """What another copy objected to before it was looked into here."""
        self._elsewhere: dict[str, int] = {}
        """What another copy was told to take, of sensors that are this one's."""
        self._stopping = False
        runtime.bus.subscribe(runtime.topics.custody(runtime.name), self._on_objection)

    def load(self, connection: sqlite3.Connection) -> None:
        """Recall how the sensors were shared before."""
        self._sharing = work.load_sharing(connection)

    @property
    def doubted(self) -> int:
        """Up to this sequence number another copy may have been given the same event."""
        return self._sharing.doubted

    def claim(self, topic: str) -> Claim:
        """What this copy has to do with the sensor that a topic ends in."""
        return Claim.MINE if self._share is None else self._share.claim(topic)

    def may_have(self, sighting: Sighting, claim: Claim, *, again: bool) -> bool:
        """Whether another copy may have it, or is to. `again`: it may have been published before."""
        if sighting.data.copies is UNSET and not self._wary:
            return False
        if claim is not Claim.MINE or sighting.data.copy_of(self._target) != self._runtime.copy:
            return True
        return self._wary and again and (self._share is not None or self._is_unsettled(sighting))

    def told_to(self, id_: str) -> int | None:
        """The copy that was told to take an event that this one takes now. It is said once."""
        return self._elsewhere.pop(id_, None) if self._elsewhere else None

    def tend(self) -> None:
        """From time to time: whether a change of the number of copies is over."""
        if self._turning and time.time() > self._sharing.changed + _TURNED:
            self.divide()

    def stop(self) -> None:
        """Look into nothing more."""
        self._stopping = True
        self.forget()

    def _is_unsettled(self, sighting: Sighting) -> bool:
        """Whether an event is from before the last change of the number of copies, or not long after."""
        return sighting.data.event.recordedtime.timestamp() < self._sharing.changed + _SETTLED

    def look_into(self, sighting: Sighting, reply: str | None, claim: Claim) -> None:
        """What is sent again may be with another copy, for which it was meant then; and while the number of
        copies changes, two correlators may mean it for two. Who knows its id receipts it, and objects to the
        copy that is to take it now. That one takes it if nobody objects within a second, and looks for it at
        the target before it sends it: who had it may be gone, or away."""
        if len(self._doubtful) + len(self._unknown) >= _MOST:
            return
        if not self._doubtful:
            asyncio.get_running_loop().call_later(_EVERY, self._look_into_them)
        taker = sighting.data.copy_of(self._target)
        self._doubtful[sighting.data.event.id, taker] = (sighting, reply, claim)

    def _look_into_them(self) -> None:
        doubtful, self._doubtful = self._doubtful, {}
        if doubtful and not self._stopping:
            self._spawn(self._look_into(doubtful))

    async def _look_into(self, doubtful: _Doubtful) -> None:
        keys = [id_key(id_) for id_, _ in doubtful]
        known = await self._store.read(lambda connection: self._seen.known(connection, keys))
        objections: dict[int, list[str]] = {}
        for (id_, taker), (sighting, reply, claim) in doubtful.items():
            if id_key(id_) in known:
                self._owe(reply, sighting.data.targets, id_)
                if taker != self._runtime.copy:
                    objections.setdefault(taker, []).append(id_)
            elif claim is Claim.OTHERS or claim is Claim.LOST:
                continue
            elif taker != self._runtime.copy:
                self._note_elsewhere(id_, taker)
            elif id_ in self._unknown:
                continue
            elif id_ in self._objected:
                del self._objected[id_]
            elif claim is Claim.MINE and not self._is_unsettled(sighting):
                self._take(sighting, reply, doubted=True)
            elif self._elsewhere.get(id_, self._runtime.copy) < self._runtime.copy:
                del self._elsewhere[id_]  # left to that one, this time
            else:
                wait = asyncio.get_running_loop().call_later(_OBJECTION, self._take_unknown, id_)
                self._unknown[id_] = (sighting, reply, wait)
        for taker, ids in objections.items():
            self.object_to(taker, ids)
        _bound(self._elsewhere)

    def _note_elsewhere(self, id_: str, taker: int) -> None:
        """An event of a sensor of this copy's was given to another one, and may be given to this one too. If
        both wait whether somebody objects, the first of them takes it."""
        if id_ not in self._unknown:
            self._elsewhere[id_] = taker
        elif taker < self._runtime.copy:
            self._unknown.pop(id_)[2].cancel()

    def object_to(self, taker: int, ids: Sequence[str]) -> None:
        """Tell another copy that events are this one's already."""
        receipt = Receipt(by=self._runtime.name, of=(self._target,), ids=tuple(ids))
        topic = self._runtime.topics.custody(name_of(self._runtime.service, taker))
        self._runtime.bus.publish(topic, receipt.to_bytes(), content_type=PLAIN_JSON)

    def _on_objection(self, message: Message) -> None:
        try:
            receipt = Receipt.from_bytes(message.payload)
        except Malformed as error:
            log.warning(
                "another copy's objection could not be read",
                extra={"topic": message.topic, "error": str(error)[:200]},
            )
            return
        for id_ in receipt.ids:
            if (found := self._unknown.pop(id_, None)) is not None:
                found[2].cancel()
            else:
                self._objected[id_] = None
        _bound(self._objected)

    def _take_unknown(self, id_: str) -> None:
        sighting, reply, _ = self._unknown.pop(id_)
        if not self._store.full:
            self._take(sighting, reply, doubted=True)

    def forget(self) -> None:
        """Leave to the adapters what waits for an objection: it comes again, perhaps to another copy."""
        for _, _, wait in self._unknown.values():
            wait.cancel()
        self._unknown.clear()
        self._objected.clear()
        self._elsewhere.clear()
        self._doubtful.clear()

    def divide(self) -> None:
        """Take note of the number of copies. What is held may from now on be given to another copy too."""
        copies, before = self._runtime.copies, self._sharing
        now = int(time.time())
        if copies != before.copies:
            self.forget()
            lately = before.before if now < before.changed + _TURNED else ()
            numbers = tuple(dict.fromkeys((*lately, before.copies)))
            self._sharing = work.Sharing(copies, numbers, now, self._numbers.last)
            self._store.submit_lazy(work.keep_sharing, self._sharing)
            log.info("the number of copies has changed", extra={"copies": copies, "copy": self._runtime.copy})
        self._turning = now < self._sharing.changed + _TURNED
        alone = copies == 1 and self._runtime.copy == 0 and not self._turning
        self._share = (
            None
            if alone
            else Share(self._runtime.copy, copies, self._sharing.before if self._turning else ())
        )
        self._wary = self._share is not None or self._sharing.changed > 0


def _bound(kept: dict[str, Any]) -> None:
    while len(kept) > _MOST:
        del kept[next(iter(kept))]
