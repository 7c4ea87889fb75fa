"""Keeps out of a service what its libraries bring along and no service uses.

The command imports it before anything else. `python -m tests.bench.memory` shows where memory goes.
"""

import ctypes
import sys
from types import ModuleType

_M_ARENA_MAX = -8

# pydantic looks for plugins of its own by importlib.metadata, which brings email, csv and zipfile:
# 1.5 MB and 40 ms.
_loader = ModuleType("pydantic.plugin._loader")
vars(_loader)["get_plugins"] = tuple
sys.modules.setdefault(_loader.__name__, _loader)

# httpx takes its command line along where click and rich happen to be installed, 6 MB, and does without
# where they are not: None makes its import an ImportError.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

# By default each thread gets a heap of its own, and what it has freed no other can use. A service's
# threads do little, one at a time. (Only glibc has mallopt.)
if hasattr(_libc := ctypes.CDLL(None), "mallopt"):
    _libc.mallopt(_M_ARENA_MAX, 1)
