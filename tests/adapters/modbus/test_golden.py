"""What devices' published registers must become. A case is a device and what is written into it:

    source: where the registers are described
    device: {profile: …, unit: …, sensors: …}     # as in the site file
    steps:
      - write: {input: {0: [1, 375]}, discrete: {7: 1}}    # by table and first address
        expect: [{kind: water.leak, sensor: cable, native: {…}, details: {…}}]   # all; by default none

What is not written stays, or is 0. The first step is what the gateway finds at first. The
device is simulated, and read by the adapter.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from services.adapters.modbus.codec import Table
from tests import golden
from tests.adapters.modbus.room import Gateway, device, running, simulated


@pytest.mark.parametrize("path", golden.cases(Path(__file__).parent), ids=lambda path: path.stem)
async def test_golden(path: Path) -> None:
    case = golden.load(path)
    async with simulated(device(**case["device"])) as (panel, there):
        gateway = Gateway({"panel": there})
        first, *steps = case["steps"]
        fill(panel.write, first)
        async with running(gateway):
            await gateway.polled(12)
            assert gateway.reports == [], "the first state is known, not new"
            for number, step in enumerate(steps, 2):
                gateway.reports.clear()
                fill(panel.write, step)
                await gateway.polled(12)
                expected = step.get("expect", [])
                assert [(report.kind.value, report.sensor) for report in gateway.reports] == [
                    (one["kind"], one["sensor"]) for one in expected
                ], f"step {number}"
                for report, one in zip(gateway.reports, expected, strict=True):
                    for part in ("native", "details"):
                        said = getattr(report, part)
                        assert {key: said.get(key) for key in one.get(part, {})} == one.get(part, {})
        assert set(gateway.refused) <= {"no_reading"}


def fill(write: object, step: dict[str, dict[str, dict[str, int | list[int]]]]) -> None:
    assert callable(write)
    for table, content in step["write"].items():
        for address, values in content.items():
            write(Table(table), int(address), *(values if isinstance(values, list) else [values]))
