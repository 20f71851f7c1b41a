"""Metrics: one registry a process, names of one family, nothing that could hold an id."""

import re

import pytest
from prometheus_client import generate_latest
from prometheus_client.registry import DuplicateTimeseries

from shared.metrics import (
    AnalyticsMetrics,
    ApiMetrics,
    EdgeMetrics,
    PersisterMetrics,
    ServiceMetrics,
)

SERVICES: list[type[EdgeMetrics | PersisterMetrics | ApiMetrics | AnalyticsMetrics]] = [
    EdgeMetrics,
    PersisterMetrics,
    ApiMetrics,
    AnalyticsMetrics,
]


@pytest.mark.parametrize("service", SERVICES)
def test_every_name_is_ours_has_a_unit_and_no_label_that_could_be_an_id(
    service: type[EdgeMetrics | PersisterMetrics | ApiMetrics | AnalyticsMetrics],
) -> None:
    # Given all metrics of a service
    metrics = list(service("1.0").registry.collect())
    # When their names are read
    ours = [metric for metric in metrics if not metric.name.startswith(("process_", "python_"))]
    # Then they share the prefix, explain themselves, and label nothing by a person or a thread
    assert len(ours) > 5
    for metric in ours:
        assert re.fullmatch(r"messaging_[a-z_]+", metric.name)
        assert metric.documentation
        for sample in metric.samples:
            assert not {"user", "user_id", "thread", "thread_id", "message_id"} & set(sample.labels)


def test_a_tally_is_exported_as_a_counter() -> None:
    # Given two counters of a hot path, one of them with a label
    service = ServiceMetrics("test", "1.0")
    things = service.tallies("messaging_things_total", "Things, by kind.", "kind")
    others = service.tallies("messaging_others_total", "Others.")
    # When they count
    things.of("small").value += 2
    others.of().value += 1
    text = generate_latest(service.registry).decode()
    # Then Prometheus sees counters
    assert 'messaging_things_total{kind="small"} 2.0' in text
    assert "messaging_others_total 1.0" in text
    assert "# TYPE messaging_things_total counter" in text


def test_the_tally_of_a_label_is_kept() -> None:
    metrics = EdgeMetrics("1.0")
    assert metrics.closes.of("1012") is metrics.closes.of("1012")
    assert metrics.closes.of("1012") is not metrics.closes.of("1013")


def test_two_metrics_cannot_have_one_name() -> None:
    service = ServiceMetrics("test", "1.0")
    service.tallies("messaging_things_total", "Things.")
    with pytest.raises(DuplicateTimeseries):
        service.counter("messaging_things_total", "Things.")


def test_two_processes_in_one_test_do_not_share_their_numbers() -> None:
    # Given two edges in one process, as tests have them
    first, second = EdgeMetrics("1.0"), EdgeMetrics("1.0")
    # When one counts
    first.closes.of("1012").value += 1
    first.sessions.set(3)
    # Then the other does not
    assert 'code="1012"' not in generate_latest(second.registry).decode()
    assert "messaging_edge_sessions 0.0" in generate_latest(second.registry).decode()


def test_a_gauge_may_be_asked_at_scrape_time() -> None:
    service = ServiceMetrics("test", "1.0")
    service.gauge("messaging_test_depth", "Depth.", read=lambda: 7)
    assert "messaging_test_depth 7.0" in generate_latest(service.registry).decode()


def test_the_version_is_told() -> None:
    text = generate_latest(EdgeMetrics("1.2.3").registry).decode()
    assert 'messaging_build_info{service="edge",version="1.2.3"} 1.0' in text
