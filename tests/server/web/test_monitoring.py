"""Dashboard, alerts and scaling ask for metrics that a server tells, with labels that it gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from .conftest import Running

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
FROM_PROMETHEUS = {"job", "instance"}


def _selectors(node: Any) -> Iterator[Any]:
    if isinstance(node, promql.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vs", "vector_selector", "args", "selector"):
        child = getattr(node, name, None)
        for one in child if isinstance(child, list) else [child]:
            if one is not None and not isinstance(one, str | float | int):
                yield from _selectors(one)


def asked(query: str) -> dict[str, set[str]]:
    """Metric -> labels that are matched. Raises ValueError where it is no query."""
    found: dict[str, set[str]] = {}
    for selector in _selectors(promql.parse(query)):
        found.setdefault(selector.name, set()).update(m.name for m in selector.matchers.matchers)
    return found


@pytest.fixture(scope="module")
def told(server: Running) -> dict[str, set[str]]:
    """Metric -> its labels, of a server that has inspected, with a key that expires."""
    server.keys.add("expires", "viewer", "ann", timedelta(days=3))
    server.inspected("good.png", "m-1")
    server.inspected("bad.png", "m-2")
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(server.client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def _dashboard() -> list[str]:
    document = json.loads((DEPLOY / "monitoring" / "grafana.json").read_text(encoding="utf-8"))
    return [target["expr"].replace("$job", "refdiff") for panel in document["panels"] for target in panel["targets"]]


def _rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DEPLOY / "monitoring" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def test_queries_are_read() -> None:
    assert asked('sum(rate(a_total{x="1"}[5m])) > 2 * max(b)') == {"a_total": {"x"}, "b": set()}
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        asked("sum(rate(a_total[5m])")


@pytest.mark.parametrize("query", [*_dashboard(), *(rule["expr"] for rule in _rules())])
def test_query_asks_for_metrics_and_labels_that_exist(told: dict[str, set[str]], query: str) -> None:
    wanted = asked(query)
    assert wanted
    for metric, labels in wanted.items():
        if metric != "up":  # Prometheus's own
            assert metric in told
            assert labels - FROM_PROMETHEUS <= told[metric]


def test_every_alert_says_what_it_means_and_how_bad_it_is() -> None:
    rules = _rules()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


def test_workers_are_scaled_by_a_metric_that_exists(told: dict[str, set[str]]) -> None:
    scaled = yaml.safe_load((DEPLOY / "kubernetes" / "scaling.yaml").read_text(encoding="utf-8"))
    (trigger,) = scaled["spec"]["triggers"]
    assert told[trigger["metadata"]["valueLocation"]] == set()


def test_panels_have_their_place() -> None:
    panels = json.loads((DEPLOY / "monitoring" / "grafana.json").read_text(encoding="utf-8"))["panels"]
    cells = [(x, y) for p in panels for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
             for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])]  # fmt: skip
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({p["id"] for p in panels}) == len(panels)
