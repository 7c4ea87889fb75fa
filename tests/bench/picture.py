"""The picture of a measurement: how latencies are distributed, and an outage's backlog draining."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt


def draw(results: dict[str, Any], services: Sequence[str], path: Path) -> None:
    """Write a PNG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5))
    for runs, style, label in (
        (results["latency"], "-", "gateway"),
        (results["floor"]["latency"], "--", "floor (one hop)"),
    ):
        for run, colour in zip(runs, ("tab:blue", "tab:orange"), strict=True):
            values = run["milliseconds"]
            shares = [100 * (index + 1) / len(values) for index in range(len(values))]
            left.plot(values, shares, style, color=colour, label=f"{label}, {run['rate']}/s")
    left.set_xscale("log")
    left.set_xlabel("sensor to VMS, ms")
    left.set_ylabel("% of events at most so late")
    left.set_title("Latency")
    left.grid(visible=True, which="both", alpha=0.3)
    left.legend()

    drain = results["drain"]
    seconds = [point["seconds"] for point in drain["curve"]]
    for name in services:
        right.plot(seconds, [point[name] for point in drain["curve"]], label=f"{name}, MB")
    right.axvline(drain["returned_at"], color="grey", linestyle=":", label="the VMS is back")
    right.set_ylim(bottom=0)
    right.set_xlabel("s")
    right.set_ylabel("resident memory, MB")
    right.set_title(f"{drain['events']:,} events wait for the VMS, then drain")
    right.grid(visible=True, alpha=0.3)
    delivered = right.twinx()
    delivered.plot(seconds, [point["delivered"] for point in drain["curve"]], "k-", alpha=0.5)
    delivered.set_ylabel("delivered (black)")
    right.legend(loc="center left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
