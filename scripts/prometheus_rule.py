"""Writes the alert rules as the Prometheus Operator wants them: `python -m scripts.prometheus_rule`.

Kustomize cannot put a plain rule file into an object, so rules.yaml is made of
observability/alerts.yml, which stays the one source.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALERTS = ROOT / "observability" / "alerts.yml"
RULES = ROOT / "k8s" / "components" / "monitoring" / "rules" / "rules.yaml"

_HEAD = """\
# Made of observability/alerts.yml by `python -m scripts.prometheus_rule`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tocsin
spec:
"""


def rule(alerts: str) -> str:
    """The object that holds the rule file `alerts`, whose top level is `groups:`."""
    return _HEAD + textwrap.indent(alerts[alerts.index("groups:") :], "  ")


if __name__ == "__main__":
    RULES.write_text(rule(ALERTS.read_text()))
