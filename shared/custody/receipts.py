"""The taker's word that it has what it was given."""

from __future__ import annotations

from shared.bus import Bus
from shared.events import PLAIN_JSON, Receipt


class Receipts:
    """Receipts to be sent, gathered so that one message receipts a batch."""

    def __init__(self, bus: Bus, by: str) -> None:
        self._bus = bus
        self._by = by
        self._due: dict[tuple[str, tuple[str, ...]], list[str]] = {}

    def add(self, reply: str | None, of: tuple[str, ...], id_: str) -> None:
        """Owe a receipt to topic `reply`; without one (a message from outside) there is none to send."""
        if reply is not None:
            self._due.setdefault((reply, of), []).append(id_)

    def send(self) -> None:
        """Send what is owed. What can't be sent is forgotten: the sender will ask again."""
        for (reply, of), ids in self._due.items():
            for start in range(0, len(ids), 500):
                receipt = Receipt(by=self._by, of=of, ids=tuple(ids[start : start + 500]))
                self._bus.publish(reply, receipt.to_bytes(), content_type=PLAIN_JSON)
        self._due.clear()
