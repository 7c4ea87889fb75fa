"""Writes the Grafana dashboard: `python -m scripts.dashboard`.

It is laid out as the questions of somebody who looks at it: is every sensor alive, is anything held up
and where, how long does it take from the sensor to the target, whose clock is off, what was refused and
why. A test makes it anew and compares, and asks a real Prometheus each of its queries.
"""

from __future__ import annotations

import string
from pathlib import Path

from grafana_foundation_sdk.builders import (
    bargauge,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.builders.common import ReduceDataOptions, StackingConfig
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphDrawStyle,
    StackingMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

PATH = Path(__file__).resolve().parent.parent / "observability/grafana/dashboards/tocsin.json"

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_GREEN, _AMBER, _RED, _PLAIN = "green", "orange", "red", "text"
_OF_SERVICE = "* on (site, namespace, instance, job) group_left (service) tocsin_build_info"
"""Says whose a metric is that has no such label."""
_OF_VERSION = "* on (site, namespace, instance, job) group_left (service, version) tocsin_build_info"


_SILENT_FOR = "(time() - (tocsin_sensor_last_seen_timestamp_seconds > 0))"
_NEVER_HEARD = "tocsin_sensor_last_seen_timestamp_seconds == 0 and tocsin_sensor_supervision_seconds"


def _query(expression: str, legend: str = "") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).legend_format(legend).datasource(_SOURCE)


def _limits(*, amber: float | None = None, red: float | None = None) -> dashboard.ThresholdsConfig:
    steps = [Threshold(color=_GREEN if amber or red else _PLAIN)]
    steps += [Threshold(value, color) for value, color in ((amber, _AMBER), (red, _RED)) if value is not None]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _yes_or_no(yes: str, no: str) -> ValueMap:
    return ValueMap(
        {"1": ValueMappingResult(yes, _GREEN, index=0), "0": ValueMappingResult(no, _RED, index=1)}
    )


def _number(
    title: str,
    expression: str,
    about: str,
    *,
    unit: str = "short",
    amber: float | None = None,
    red: float | None = None,
) -> stat.Panel:
    """One number, coloured by how bad it is."""
    return (
        stat.Panel().title(title).description(about).datasource(_SOURCE)
        .targets([_query(expression).instant()])
        .unit(unit).thresholds(_limits(amber=amber, red=red))
        .color_mode(BigValueColorMode.BACKGROUND).graph_mode(BigValueGraphMode.NONE)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .span(4).height(4)
    )  # fmt: skip


def _lines(
    title: str,
    about: str,
    *queries: prometheus.Dataquery,
    unit: str = "short",
    least: float | None = 0,
) -> timeseries.Panel:
    panel = timeseries.Panel().title(title).description(about).datasource(_SOURCE)
    if least is not None:
        panel.min(least)
    return panel.targets([*queries]).unit(unit).fill_opacity(10).span(8).height(8)


def _bars(title: str, about: str, *queries: prometheus.Dataquery) -> timeseries.Panel:
    """What happened in each interval."""
    return (
        _lines(title, about, *queries)
        .draw_style(GraphDrawStyle.BARS).fill_opacity(80).line_width(0).decimals(0)
        .stacking(StackingConfig().mode(StackingMode.NORMAL))
    )  # fmt: skip


def _happened(metric: str, by: str, what: str = "") -> prometheus.Dataquery:
    legend = " ".join([*(f"{{{{{label}}}}}" for label in by.split(", ")), what]).strip()
    return _query(f"sum by ({by}) (increase({metric}[$__rate_interval]))", legend)


def _columns(*shown: tuple[str, str]) -> list[DataTransformerConfig]:
    """The columns of a table, by label or query, with their headings. All others are hidden."""
    return [
        DataTransformerConfig("merge", options={}),
        DataTransformerConfig(
            "filterFieldsByName", options={"include": {"names": [name for name, _ in shown]}}
        ),
        DataTransformerConfig(
            "organize",
            options={
                "indexByName": {name: place for place, (name, _) in enumerate(shown)},
                "renameByName": dict(shown),
            },
        ),
    ]


def _cells(*queries: str) -> list[Builder[Dataquery]]:
    """Queries of a table; the value of the first of several is in column `Value #A`, and so on."""
    return [_query(expression).instant().format(PromQueryFormat.TABLE) for expression in queries]


def _at_a_glance(board: dashboard.Dashboard) -> None:
    for panel in (
        _number(
            "Sensors overdue",
            f"count({_SILENT_FOR} > tocsin_sensor_supervision_seconds or ({_NEVER_HEARD})) or vector(0)",
            "Silent for longer than their `supervision` in the site file, or never heard.",
            amber=1,
        ),
        _number(
            "Devices offline",
            "count(tocsin_device_online == 0) or vector(0)",
            "Their sensors cannot be heard.",
            red=1,
        ),
        _number(
            "Oldest event held",
            "max(tocsin_custody_oldest_seconds)",
            "Received so long ago, and somebody who must be told is not.",
            unit="s", amber=60, red=300,
        ),
        _number(
            "Sensor to target, 99 of 100, last hour",
            "max(histogram_quantile(0.99, sum by (target, le) (rate(tocsin_delivery_seconds_bucket[1h]))))",
            "From receipt at the adapter to the target's answer, of the slowest target.",
            unit="s", amber=1, red=5,
        ),
        _number(
            "Dead letters",
            "sum(tocsin_dead_letters)",
            "Refused by a target for good; kept until they are replayed.",
            amber=1,
        ),
        _number(
            "Alerts",
            'count(ALERTS{alertname=~"Tocsin.*", alertstate="firing"}) or vector(0)',
            "docs/alerts.md says what each means and what to do.",
            amber=1,
        ),
    ):  # fmt: skip
        board.with_panel(panel)
    board.with_panel(
        table.Panel().title("What is wrong").datasource(_SOURCE)
        .description("Alerts that fire. docs/alerts.md says what each means and what to do.")
        .targets(_cells('ALERTS{alertname=~"Tocsin.*", alertstate="firing"}'))
        .transformations(_columns(
            ("severity", "severity"), ("alertname", "alert"), ("sensor", "sensor"), ("device", "device"),
            ("service", "service"), ("target", "target"), ("reason", "reason"), ("instance", "at"),
        ))
        .no_value("nothing")
        .span(24).height(6)
    )  # fmt: skip


def _sensors(board: dashboard.Dashboard) -> None:
    board.with_row(dashboard.Row("Is every sensor alive?"))
    board.with_panel(
        table.Panel().title("Sensors").datasource(_SOURCE)
        .description("How long each has been silent, and how long it may be, where the site file says.")
        .targets(_cells(
            _SILENT_FOR,
            "tocsin_sensor_supervision_seconds",
            f"{_SILENT_FOR} / tocsin_sensor_supervision_seconds",
        ))
        .transformations(_columns(
            ("sensor", "sensor"),
            ("Value #A", "silent for"), ("Value #B", "may be silent for"), ("Value #C", "of that"),
        ))
        .override_by_regexp("silent", [DynamicConfigValue("unit", "s"), DynamicConfigValue("decimals", 0)])
        .override_by_name("of that", [
            DynamicConfigValue("unit", "percentunit"),
            DynamicConfigValue("thresholds", _limits(amber=0.8, red=1).build()),
            DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
        ])
        .span(8).height(10)
    )  # fmt: skip
    board.with_panel(
        statetimeline.Panel().title("Devices").datasource(_SOURCE)
        .description("Known to be away, or silent for longer than their `supervision`.")
        .targets([_query("min by (device) (tocsin_device_online)", "{{device}}")])
        .mappings([_yes_or_no("online", "offline")])
        .span(8).height(10)
    )  # fmt: skip
    board.with_panel(
        _bars("Events", "By the type of their sensor.", _happened("tocsin_events_received_total", "type"))
        .height(10)
    )  # fmt: skip


def _custody(board: dashboard.Dashboard) -> None:
    board.with_row(dashboard.Row("Is anything held up, and where?"))
    board.with_panel(_lines(
        "Held",
        "Messages in custody. What an adapter holds waits for the correlator or a publisher, what a "
        "publisher holds for its target.",
        _query("sum by (service) (tocsin_custody_outstanding)", "{{service}}"),
    ))  # fmt: skip
    board.with_panel(_lines(
        "Age of the oldest held", "A lost event would show here: it grows old in custody.",
        _query("max by (service) (tocsin_custody_oldest_seconds)", "{{service}}"), unit="s",
    ))  # fmt: skip
    board.with_panel(_lines(
        "Lanes held up",
        "Lanes (cameras) whose requests fail, and those of them that wait for another secret.",
        _query("sum by (target) (tocsin_lanes_held_up)", "{{target}}"),
        _query("sum by (target) (tocsin_lanes_paused)", "{{target}}: credentials refused"),
    ))  # fmt: skip
    board.with_panel(_lines(
        "Stores", "How full each is, of what it may hold.",
        _query("max by (service) (tocsin_store_bytes / tocsin_store_limit_bytes)", "{{service}}"),
        unit="percentunit",
    ))  # fmt: skip
    board.with_panel(_lines(
        "Disk free", "Under the stores.",
        _query("min by (service) (tocsin_disk_free_bytes)", "{{service}}"), unit="bytes",
    ))  # fmt: skip
    board.with_panel(
        statetimeline.Panel().title("Ready").datasource(_SOURCE)
        .description("It has a broker, room, and all it needs. Its /readyz says what it lacks.")
        .targets([_query(f"min by (service) (tocsin_ready {_OF_SERVICE})", "{{service}}")])
        .mappings([_yes_or_no("ready", "not ready")])
        .span(8).height(8)
    )  # fmt: skip


def _latency(board: dashboard.Dashboard) -> None:
    board.with_row(dashboard.Row("How long from sensor to target?"))
    board.with_panel(_lines(
        "Sensor to target", "From receipt at the adapter to the target's answer: half, and 99 of 100.",
        *(
            _query(
                f"histogram_quantile({quantile}, sum by (target, le) "
                "(rate(tocsin_delivery_seconds_bucket[$__rate_interval])))",
                f"{{{{target}}}}: {name}",
            )
            for quantile, name in ((0.5, "half"), (0.99, "99 of 100"))
        ),
        unit="s",
    ))  # fmt: skip
    board.with_panel(
        heatmap.Panel().title("Sensor to VMS").datasource(_SOURCE)
        .description("How many took how long.")
        .targets([
            _query(
                'sum by (le) (increase(tocsin_delivery_seconds_bucket{target="vms"}[$__rate_interval]))',
                "{{le}}",
            ).format(PromQueryFormat.HEATMAP)
        ])
        .calculate(False).y_axis(heatmap.YAxisConfig().unit("s"))
        .span(8).height(8)
    )  # fmt: skip
    board.with_panel(_lines(
        "Within the gateway", "From sending an event to its last receipt, 99 of 100.",
        _query(
            "histogram_quantile(0.99, sum by (service, le) "
            "(rate(tocsin_handover_seconds_bucket[$__rate_interval])))",
            "{{service}}",
        ),
        unit="s",
    ))  # fmt: skip


def _clocks(board: dashboard.Dashboard) -> None:
    board.with_row(dashboard.Row("Whose clock is off?"))
    board.with_panel(
        bargauge.Panel().title("Devices").datasource(_SOURCE)
        .description("How far the clock is from the gateway's, of the devices that tell their time.")
        .targets([_query("sort_desc(abs(tocsin_device_clock_offset_seconds))", "{{device}}").instant()])
        .unit("s").min(0).thresholds(_limits(amber=2, red=5)).orientation(VizOrientation.HORIZONTAL)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .span(8).height(8)
    )  # fmt: skip
    board.with_panel(
        _lines(
            "Over time", "Device clock minus gateway clock.",
            _query("tocsin_device_clock_offset_seconds", "{{device}}"), unit="s", least=None,
        ).axis_centered_zero(True)
    )  # fmt: skip
    board.with_panel(
        statetimeline.Panel().title("This host").datasource(_SOURCE)
        .description("Whether its kernel holds the clock to be right. Devices are measured against it.")
        .targets([_query(f"min by (service) (tocsin_host_clock_synchronised {_OF_SERVICE})", "{{service}}")])
        .mappings([_yes_or_no("synchronised", "not synchronised")])
        .span(8).height(8)
    )  # fmt: skip


def _refused(board: dashboard.Dashboard) -> None:
    board.with_row(dashboard.Row("What was refused, and why?"))
    board.with_panel(_bars(
        "By the gateway", "Bad input, by adapter and reason.",
        _happened("tocsin_events_rejected_total", "adapter, reason"),
    ))  # fmt: skip
    board.with_panel(_bars(
        "By the targets",
        "Deliveries that were refused for good, and requests that are repeated: `retry` (the target was away "
        "or busy), `uncertain` (no answer), `not_allowed` (credentials).",
        _happened('tocsin_deliveries_total{outcome!="delivered"}', "target, outcome"),
        _happened("tocsin_attempts_total", "target, outcome"),
    ))  # fmt: skip
    board.with_panel(_bars(
        "Not as it should be",
        "Lost before they came here; of no sensor of the site file; told to nobody, for the correlator does "
        "not know the sensor; not understood.",
        _happened("tocsin_events_missed_total", "adapter", "missed"),
        _happened("tocsin_events_unlisted_total", "adapter", "unlisted"),
        _happened('tocsin_sightings_total{outcome="unknown_sensor"}', "outcome"),
        _happened("tocsin_messages_set_aside_total", "service", "set aside"),
    ))  # fmt: skip


def _services(board: dashboard.Dashboard) -> None:
    board.with_row(dashboard.Row("Services"))
    board.with_panel(
        table.Panel().title("What runs").datasource(_SOURCE)
        .targets(_cells(
            f"(time() - process_start_time_seconds) {_OF_VERSION}",
            f"(time() - tocsin_site_loaded_timestamp_seconds) {_OF_VERSION}",
            f"(tocsin_bus_certificates_end_timestamp_seconds - time()) {_OF_VERSION}",
        ))
        .transformations(_columns(
            ("service", "service"), ("version", "version"),
            ("Value #A", "started"), ("Value #B", "site file"), ("Value #C", "certificates end in"),
        ))
        .override_by_regexp("started|site file|certificates end in", [
            DynamicConfigValue("unit", "s"), DynamicConfigValue("decimals", 0),
        ])
        .description("How long ago each started and took up its site file; how long its certificates hold.")
        .span(8).height(8)
    )  # fmt: skip
    board.with_panel(_lines(
        "Memory", "Resident.",
        _query(f"process_resident_memory_bytes {_OF_SERVICE}", "{{service}}"), unit="bytes",
    ))  # fmt: skip
    board.with_panel(_lines(
        "Processor", "Of one core.",
        _query(f"rate(process_cpu_seconds_total[$__rate_interval]) {_OF_SERVICE}", "{{service}}"),
        unit="percentunit",
    ))  # fmt: skip


def text() -> str:
    """The dashboard, as the file holds it."""
    board = (
        dashboard.Dashboard("Tocsin").uid("tocsin").tags(["tocsin"]).readonly()
        .description("docs/alerts.md says what to do; made by scripts/dashboard.py.")
        .time("now-6h", "now").refresh("30s").timezone("browser").tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )  # fmt: skip
    for section in (_at_a_glance, _sensors, _custody, _latency, _clocks, _refused, _services):
        section(board)
    made = board.build()
    for number, panel in enumerate(made.panels or (), 1):
        panel.id_val = number
        for name, query in zip(string.ascii_uppercase, getattr(panel, "targets", None) or (), strict=False):
            query.ref_id = name
    for variable in (made.templating.list_val if made.templating else None) or ():
        # Those are an interval's, and the library gives them to all.
        variable.auto = variable.auto_min = variable.auto_count = None
    return JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(made) + "\n"


def main() -> None:
    PATH.write_text(text(), encoding="utf-8")
    print(f"wrote {PATH.name}")


if __name__ == "__main__":
    main()
