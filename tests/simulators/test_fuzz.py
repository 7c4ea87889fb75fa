"""A short run of the fuzzer, always the same."""

from __future__ import annotations

import pytest

from tests.simulators.fuzz_vms import acceptable, fuzz


@pytest.mark.parametrize("seed", range(3))
async def test_hostile_requests_break_nothing(seed: int) -> None:
    assert await fuzz(seed=seed, rounds=2000) == 2000


def test_the_second_reading_knows_right_from_wrong() -> None:
    event = {"camid": 237863, "name": "motion", "time": "2026-11-21T18:22:14.398", "meta": {"a": "b"}}
    assert acceptable(event)
    for wrong in ({"time": "2026-11-21T18:22:14Z"}, {"meta": {"a": 1}}, {"camid": 1}, {"name": "x"}):
        assert not acceptable(event | wrong)
