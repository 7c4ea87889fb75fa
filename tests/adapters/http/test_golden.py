"""Golden cases: a message is an `answer` of the device, or what it `said` on its WebSocket.

`beside` says which of the requests beside a WebSocket the answer is for. `place` and `since` are what
is remembered behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from services.adapters.http.codec import Channel, Pages, list_of
from services.adapters.http.config import Log, Poll, Profile, Socket, language
from shared import dialect
from tests import golden

HERE = Path(__file__).parent
NAMES = dialect.names("services.adapters.http")


def _messages(said: Profile, message: Mapping[str, Any]) -> list[Any]:
    if "said" in message:
        return [message["said"]]
    fetch = said.fetch.catch_up[message["beside"]] if isinstance(said.fetch, Socket) else said.fetch
    answer = message["answer"]
    if isinstance(fetch, Log):
        channel = Channel(fetch)
        assert not channel.fails(answer)
        return list_of(channel.items(answer))
    assert isinstance(fetch, Poll)
    pages = Pages(fetch)
    assert not pages.fails(answer)
    if pages.items is None:
        return pages.messages([answer])
    items = list_of(pages.items(answer))
    if fetch.cursor is not None:
        place = pages.place(answer, items, None)
        assert place is not None
        assert place.cursor == message.get("place")
        if "since" in message:
            assert place.since == golden._time(message["since"])
    return pages.messages(items)


@pytest.mark.parametrize("path", golden.cases(HERE), ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    case = golden.load(path)
    spoken = language(case["profile"])
    reader = golden.reader(case, spoken)

    def read(
        message: Mapping[str, Any], received: datetime, memory: dialect.Memory
    ) -> Iterable[dialect.Result]:
        for tree in _messages(spoken.profile, message):
            result = reader.read(dialect.Message(tree, received=received), memory)
            yield result

    golden.check(case, read)


def test_every_profile_has_cases() -> None:
    cases = {golden.load(path)["profile"] for path in golden.cases(HERE)}
    assert cases == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_profiles_say_where_it_is_documented(name: str) -> None:
    said = language(name).profile
    assert len(said.about) > 40
    assert len(said.source) > 10
