"""The Grafana dashboard is what its code says, and what Grafana can read."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from scripts import dashboard
from tests import peers
from tests.observability.prometheus import FOLDER, alerts

BOARD: dict[str, Any] = json.loads(dashboard.PATH.read_text())
PANELS: list[dict[str, Any]] = BOARD["panels"]

TYPES = """\
import type { Dashboard, Panel, RowPanel } from "@grafana/schema";
import type * as bargauge from "@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen";
import type * as heatmap from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as timeline from "@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

// JSON holds the value of an enumeration, not its name.
type Plain<T> = T extends string ? `${T}`
    : T extends (infer One)[] ? Plain<One>[]
    : T extends object ? { [Key in keyof T]: Plain<T[Key]> }
    : T;
"""  # noqa: E501
OPTIONS = {
    "bargauge": "bargauge.Options",
    "heatmap": "heatmap.Options",
    "stat": "stat.Options",
    "state-timeline": "timeline.Options",
    "table": "table.Options",
    "timeseries": "timeseries.Options",
}
FIELDS = {
    "heatmap": "heatmap.FieldConfig",
    "state-timeline": "timeline.FieldConfig",
    "table": "table.FieldConfig",
    "timeseries": "timeseries.FieldConfig",
}


def test_it_is_what_the_code_says() -> None:
    assert dashboard.PATH.read_text() == dashboard.text(), "run: python -m scripts.dashboard"


def typed() -> list[tuple[str, Any, str]]:
    """What the dashboard is made of, each with Grafana's type of it and where it stands."""
    found: list[tuple[str, Any, str]] = [("Dashboard", {**BOARD, "panels": []}, "the dashboard")]
    for panel in PANELS:
        sort, title = panel["type"], panel["title"]
        found.append(("RowPanel" if sort == "row" else "Panel", panel, title))
        custom = panel.get("fieldConfig", {}).get("defaults", {}).get("custom")
        for part, types in ((panel.get("options"), OPTIONS), (custom, FIELDS)):
            if part is not None:  # what is left out, Grafana has by default
                found.append((types[sort], part, title))
    return found


def test_grafanas_own_types_fit(tmp_path: Path) -> None:
    """The TypeScript compiler finds nothing that Grafana's schema does not have, and nothing missing."""
    schema = peers.npm_package("@grafana/schema", "13.2.3") / "@grafana" / "schema"
    compiler = peers.npm_package("typescript", "5.9.3") / "typescript" / "bin" / "tsc"
    (tmp_path / "node_modules" / "@grafana").mkdir(parents=True)
    (tmp_path / "node_modules" / "@grafana" / "schema").symlink_to(schema)

    def compile(parts: list[tuple[str, Any, str]]) -> str:
        lines = [
            f"// {where}\nexport const part{number}: Plain<{type_}> = {json.dumps(value)};"
            for number, (type_, value, where) in enumerate(parts)
        ]
        (tmp_path / "board.ts").write_text("\n".join([TYPES, *lines]))
        done = subprocess.run(
            ["node", str(compiler), "--noEmit", "--strict", "--skipLibCheck", "--target", "es2022",
             "--module", "esnext", "--moduleResolution", "bundler", "board.ts"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert bool(done.returncode) == bool(done.stdout), done.stdout + done.stderr
        return done.stdout

    assert compile(typed()) == ""
    # It does look: what is not in the schema, or not of it, is found.
    wrong = compile(
        [
            ("Panel", {**PANELS[0], "titel": "x"}, ""),
            ("stat.Options", {**PANELS[0]["options"], "colorMode": "loud"}, ""),
        ]
    )
    assert len(re.findall("error TS", wrong)) == 2
    assert '"titel"' in wrong
    assert '"loud"' in wrong


def test_panels_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_queries_of_a_panel_can_be_told_apart() -> None:
    for panel in PANELS:
        names = [query["refId"] for query in panel.get("targets", ())]
        assert all(names)
        assert len({*names}) == len(names)


def test_it_is_provisioned() -> None:
    provisioning = FOLDER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["isDefault"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/tocsin.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    interval = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    variables = {one["name"] for one in BOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD))) <= variables | {"__rate_interval"}


def test_every_metric_of_an_alert_can_be_looked_at() -> None:
    shown = " ".join(query["expr"] for panel in PANELS for query in panel.get("targets", ()))
    unseen = {
        name
        for alert in alerts().values()
        for name in re.findall(r"\btocsin_\w+", alert["expr"])
        if name not in shown
    }
    # These show in the table of alerts.
    assert unseen == {
        "tocsin_store_full",
        "tocsin_store_failures_total",
        "tocsin_disk_size_bytes",
        "tocsin_bus_connected",
        "tocsin_bus_dropped_total",
        "tocsin_site_file_wrong",
    }
