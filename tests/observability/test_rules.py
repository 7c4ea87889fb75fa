"""The alert rules, without anything that runs: promtool's own checks, and the tests of alerts.test.yml."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from scripts.services import services
from tests.observability.prometheus import FOLDER, alerts, promtool, selectors

TESTS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.test.yml").read_text())["tests"]


def test_the_configuration_is_right() -> None:
    said = promtool("check", "config", "--lint-fatal", "prometheus.yml")
    assert "is valid" in said
    assert "SUCCESS: 1 rule files found" in said


def test_every_service_is_scraped_and_no_other() -> None:
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert job["job_name"] == "tocsin"
    (names,) = [found["names"] for found in job["dns_sd_configs"]]
    assert names == sorted(service.name for service in services())


def test_alerts_fire_when_they_should_and_are_silent_when_not() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts.test.yml")


@pytest.mark.parametrize("name", alerts())
def test_it_is_tried_both_ways(name: str) -> None:
    tried = [
        bool(each["exp_alerts"])
        for test in TESTS
        for each in test.get("alert_rule_test", ())
        if each["alertname"] == name
    ]
    assert {*tried} == {True, False}


@pytest.mark.parametrize("name", alerts())
def test_it_says_what_is_wrong_and_what_to_do(name: str) -> None:
    alert = alerts()[name]
    assert name.startswith("Tocsin")
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    notes = alert["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = notes["runbook_url"].partition("#")
    text = (FOLDER.parent / page).read_text()
    headings = {heading.lower() for heading in re.findall(r"(?m)^### (\w+)$", text)}
    assert anchor in headings
    (section,) = re.findall(rf"(?ms)^### {name}\n\n(.*?)(?=^##|\Z)", text)
    assert re.match(r"(?s)\*Means:\* .*\n\n\*Do:\* ", section)


def test_every_section_is_of_an_alert() -> None:
    text = (FOLDER.parent / "docs/alerts.md").read_text()
    assert re.findall(r"(?m)^### (\w+)$", text) == sorted(
        alerts(), key=lambda name: text.index(f"### {name}\n")
    )


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("a{x=\"sum(b)\"} > 1 and on (c, d) group_left () (rate(e_total[5m]) unless f offset 1m)",
         {'a{x="sum(b)"}', "e_total", "f"}),
        ("histogram_quantile(0.5, sum by (le, t) (rate(b_bucket[5m])))", {"b_bucket"}),
        ("sum(x) without (y) / count (z:z_rate5m)", {"x", "z:z_rate5m"}),
        ("time() - (a > 0) > bool 3", {"a"}),
    ],
)  # fmt: skip
def test_what_counts_as_a_selector(query: str, found: set[str]) -> None:
    assert selectors(query) == found
