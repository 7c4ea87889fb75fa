"""Delivery: the taking side of custody, and the way to a target that may be slow, refuse or be gone.

A `Publisher` takes sightings into its own store, receipts them, and has its `Target` deliver each,
in lanes: one lane for each camera (or whatever the target cares to keep apart), one delivery
at a time in each, life safety first. What waits is on disk; memory holds a few for each lane.

A delivery is on disk as *attempted* before it is first sent, so that after a crash it is known which
ones may have arrived: these are looked up at the target before they are sent again.
"""

from shared.delivery.publisher import Publisher
from shared.delivery.target import Job, Missing, NotAllowed, Refused, Retry, Target, Uncertain, storable

__all__ = ["Job", "Missing", "NotAllowed", "Publisher", "Refused", "Retry", "Target", "Uncertain", "storable"]
