"""What is counted of variants: exactly, by table and experiment, and told to Prometheus as it is."""

from __future__ import annotations

import math

from prometheus_client.parser import text_string_to_metric_families

from mlflowkit.judging.online.evidence import Evidence, bin_seconds
from mlflowkit.serving.inference.circuit_breaker import FAILURES, OPEN_SECONDS, Breaker
from mlflowkit.serving.inference.counters import Tallies
from mlflowkit.serving.inference.gateway_metrics import Telemetry, merge
from mlflowkit.values import RoutingTable, Variant


def table(epoch: int, experiment: str = "e1") -> RoutingTable:
    variants = (Variant("champion", "1", "d", "b", weight=0.5), Variant("c", "2", "e", "b", "challenger", 0.5))
    return RoutingTable("s", epoch, variants, experiment, experiment)


def test_counts_are_kept_by_table_until_another_experiment_begins() -> None:
    tallies = Tallies()
    first = tallies.of(table(1))
    tallies.adopt(table(1), first)
    first["c"].answered(0.001, 3)
    first["c"].failed()
    first["champion"].answered(0.5, 1)
    second = tallies.of(table(2))
    assert second["c"] is not first["c"]
    tallies.adopt(table(2), second)
    second["c"].answered(0.002, 1)
    first["c"].answered(0.001, 1)  # it was in flight when the table changed
    found = tallies.evidence()
    counts = found.of("c", [1])
    assert (counts.requests, counts.errors, counts.rows) == (3, 1, 4)
    assert sum(counts.latency.values()) == 2
    assert all(abs(bin_seconds(index) - 0.001) < 3e-5 for index in counts.latency)
    assert found.of("c").requests == 4
    assert tallies.of(table(2))["c"] is second["c"]

    other = tallies.of(table(3, "e2"))
    assert tallies.evidence() == found, "a proposal that may be refused forgets nothing"
    tallies.adopt(table(3, "e2"), other)
    assert tallies.evidence().experiment == "e2"
    assert set(tallies.evidence().epochs) == {3}


def test_outside_of_an_experiment_only_the_present_table_is_kept() -> None:
    tallies = Tallies()
    for epoch in range(1, 5):
        tallies.adopt(table(epoch, ""), tallies.of(table(epoch, "")))
    assert set(tallies.evidence().epochs) == {4}


def test_the_document_is_the_evidence_at_every_moment() -> None:
    import orjson

    tallies = Tallies()
    marks = [tallies.mark]
    for epoch in (1, 2, 3):
        present = tallies.of(table(epoch))
        tallies.adopt(table(epoch), present)
        for number in range(3):
            present["c"].answered(0.001 * 3**number, 2)
            present["champion"].failed()
            present["c"].mirrored += 1
            assert Evidence.from_json(orjson.loads(tallies.document())) == tallies.evidence()
            assert tallies.mark not in marks
            marks.append(tallies.mark)


def test_a_circuit_opens_after_failures_in_a_row_and_lets_one_through_at_a_time() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed(0.0)
    breaker.succeeded()
    for _ in range(FAILURES - 1):
        breaker.failed(0.0)
    assert breaker.allows(0.0)
    breaker.failed(10.0)
    assert breaker.open
    assert not breaker.allows(10.0 + OPEN_SECONDS - 0.01)
    later = 10.0 + OPEN_SECONDS
    assert [breaker.allows(later), breaker.allows(later), breaker.allows(later + 0.1)] == [True, False, False]
    breaker.failed(later + 0.2)
    assert not breaker.allows(later + OPEN_SECONDS)
    assert breaker.allows(later + 0.2 + OPEN_SECONDS)
    breaker.succeeded()
    assert not breaker.open
    assert breaker.allows(later)


def samples(page: str) -> dict[tuple[str, str], float]:
    """Every sample by its name and the labels that are not everybody's."""
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            own = {key: value for key, value in sample.labels.items() if key not in ("service", "replica")}
            found[sample.name, ",".join(f"{key}={value}" for key, value in sorted(own.items()))] = sample.value
            assert sample.labels["service"] == "lending"
    return found


def test_prometheus_is_told_what_was_counted() -> None:
    telemetry = Telemetry("lending", "r1")
    for seconds in (0.0004, 0.0005, 0.02, 99.0):
        telemetry.answered("infer", 200, seconds)
    telemetry.answered("infer", 503, 0.001)
    telemetry.of("champion", "v1").answer(0.003, 5, 0.002, 1.0)
    telemetry.of("b", "v2").fail(0.1)
    telemetry.of("b", "v2").fallbacks += 1
    telemetry.unseen({"purpose": 2})
    telemetry.refused(401)
    telemetry.overloaded()
    telemetry.swapped(7, (("champion", "v1", "champion"), ("b", "v2", "challenger")))
    telemetry.tap = lambda: {"dropped": 3.0, "queued": 4.0}
    found = samples(telemetry.page(2).decode())
    assert found["mlkit_requests_total", "code=200,door=infer"] == 4
    assert found["mlkit_request_seconds_bucket", "door=infer,le=0.0005"] == 2
    assert found["mlkit_request_seconds_bucket", "door=infer,le=+Inf"] == 5
    assert math.isclose(found["mlkit_request_seconds_sum", "door=infer"], 99.0219)
    assert found["mlkit_variant_requests_total", "outcome=answered,variant=champion,version=v1"] == 1
    assert found["mlkit_variant_requests_total", "outcome=failed,variant=b,version=v2"] == 1
    assert found["mlkit_variant_seconds_count", "variant=champion,version=v1"] == 1
    assert found["mlkit_rows_total", "version=v1"] == 5
    assert found["mlkit_fallbacks_total", "variant=b,version=v2"] == 1
    assert found["mlkit_unseen_categories_total", "column=purpose"] == 2
    assert found["mlkit_auth_refusals_total", "code=401"] == 1
    assert found["mlkit_overload_refusals_total", ""] == 1
    assert found["mlkit_routing_epoch", ""] == 7
    assert found["mlkit_model_version", "role=challenger,variant=b,version=v2"] == 1
    assert found["mlkit_requests_in_flight", ""] == 2
    assert (found["mlkit_tap_dropped_total", ""], found["mlkit_tap_queued", ""]) == (3, 4)
    telemetry.swapped(8, (("champion", "v2", "champion"),))
    assert ("mlkit_model_version", "role=challenger,variant=b,version=v2") not in samples(telemetry.page(0).decode())


def test_pages_of_replicas_are_one_page_that_parses() -> None:
    pages = []
    for number in (1, 2):
        telemetry = Telemetry("lending", f"r{number}")
        telemetry.answered("predict", 200, 0.001)
        pages.append(telemetry.page(0).decode())
    text = merge(pages).decode()
    requests = next(f for f in text_string_to_metric_families(text) if f.name == "mlkit_requests")
    assert {sample.labels["replica"]: sample.value for sample in requests.samples} == {"r1": 1.0, "r2": 1.0}
    assert text.count("# TYPE mlkit_requests_total counter") == 1
