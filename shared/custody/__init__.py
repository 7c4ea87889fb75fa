"""Custody: the duty to keep a message until the next in line has it safely on disk.

`Sender` is the giving side, `Receipts` the taker's word; `Seen` and `Numbers` are what both note beside what
they hold, so that nothing is taken twice and no number is given out again.
"""

from shared.custody.ledger import NUMBERS_SCHEMA, SEEN_SCHEMA, Numbers, Seen, first_days, first_step
from shared.custody.outbox import LANES, OUTBOX_SCHEMA, Entry, holds, restored
from shared.custody.receipts import Receipts
from shared.custody.sender import Sender

__all__ = [
    "LANES",
    "NUMBERS_SCHEMA",
    "OUTBOX_SCHEMA",
    "SEEN_SCHEMA",
    "Entry",
    "Numbers",
    "Receipts",
    "Seen",
    "Sender",
    "first_days",
    "first_step",
    "holds",
    "restored",
]
