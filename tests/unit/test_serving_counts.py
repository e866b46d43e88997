"""What is counted of variants: exactly, by table and experiment, and told to Prometheus as it is."""

from __future__ import annotations

import math

from prometheus_client.parser import text_string_to_metric_families

from mlflowkit.judging.online.evidence import Evidence, bin_seconds
from mlflowkit.serving.inference.circuit_breaker import MAX_FAILURES, OPEN_SECONDS, CircuitBreaker
from mlflowkit.serving.inference.counters import VariantCounters
from mlflowkit.serving.inference.gateway_metrics import Telemetry, merge_pages
from mlflowkit.values import RoutingTable, Variant


def table(epoch: int, experiment: str = "e1") -> RoutingTable:
    variants = (Variant("champion", "1", "d", "b", weight=0.5), Variant("c", "2", "e", "b", "challenger", 0.5))
    return RoutingTable("s", epoch, variants, experiment, experiment)


def test_counts_are_kept_by_table_until_another_experiment_begins() -> None:
    counters = VariantCounters()
    first = counters.for_table(table(1))
    counters.adopt(table(1), first)
    first["c"].record_answer(0.001, 3)
    first["c"].record_failure()
    first["champion"].record_answer(0.5, 1)
    second = counters.for_table(table(2))
    assert second["c"] is not first["c"]
    counters.adopt(table(2), second)
    second["c"].record_answer(0.002, 1)
    first["c"].record_answer(0.001, 1)  # it was in flight when the table changed
    evidence = counters.evidence()
    counts = evidence.of("c", [1])
    assert (counts.requests, counts.errors, counts.rows) == (3, 1, 4)
    assert sum(counts.latency.values()) == 2
    assert all(abs(bin_seconds(index) - 0.001) < 3e-5 for index in counts.latency)
    assert evidence.of("c").requests == 4
    assert counters.for_table(table(2))["c"] is second["c"]

    other = counters.for_table(table(3, "e2"))
    assert counters.evidence() == evidence, "a proposal that may be refused forgets nothing"
    counters.adopt(table(3, "e2"), other)
    assert counters.evidence().experiment == "e2"
    assert set(counters.evidence().epochs) == {3}


def test_outside_of_an_experiment_only_the_present_table_is_kept() -> None:
    counters = VariantCounters()
    for epoch in range(1, 5):
        counters.adopt(table(epoch, ""), counters.for_table(table(epoch, "")))
    assert set(counters.evidence().epochs) == {4}


def test_the_document_is_the_evidence_at_every_moment() -> None:
    import orjson

    counters = VariantCounters()
    marks = [counters.revision]
    for epoch in (1, 2, 3):
        present = counters.for_table(table(epoch))
        counters.adopt(table(epoch), present)
        for number in range(3):
            present["c"].record_answer(0.001 * 3**number, 2)
            present["champion"].record_failure()
            present["c"].mirrored += 1
            assert Evidence.from_json(orjson.loads(counters.to_json())) == counters.evidence()
            assert counters.revision not in marks
            marks.append(counters.revision)


def test_a_circuit_opens_after_failures_in_a_row_and_lets_one_through_at_a_time() -> None:
    breaker = CircuitBreaker()
    for _ in range(MAX_FAILURES - 1):
        breaker.record_failure(0.0)
    breaker.record_success()
    for _ in range(MAX_FAILURES - 1):
        breaker.record_failure(0.0)
    assert breaker.allows(0.0)
    breaker.record_failure(10.0)
    assert breaker.open
    assert not breaker.allows(10.0 + OPEN_SECONDS - 0.01)
    later = 10.0 + OPEN_SECONDS
    assert [breaker.allows(later), breaker.allows(later), breaker.allows(later + 0.1)] == [True, False, False]
    breaker.record_failure(later + 0.2)
    assert not breaker.allows(later + OPEN_SECONDS)
    assert breaker.allows(later + 0.2 + OPEN_SECONDS)
    breaker.record_success()
    assert not breaker.open
    assert breaker.allows(later)


def samples(page: str) -> dict[tuple[str, str], float]:
    """Sample values by name and by the labels other than service and replica."""
    values = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            own = {key: value for key, value in sample.labels.items() if key not in ("service", "replica")}
            values[sample.name, ",".join(f"{key}={value}" for key, value in sorted(own.items()))] = sample.value
            assert sample.labels["service"] == "lending"
    return values


def test_counts_appear_in_the_prometheus_page() -> None:
    telemetry = Telemetry("lending", "r1")
    for seconds in (0.0004, 0.0005, 0.02, 99.0):
        telemetry.record_request("infer", 200, seconds)
    telemetry.record_request("infer", 503, 0.001)
    telemetry.stats("champion", "v1").record_answer(0.003, 5, 0.002, 1.0)
    telemetry.stats("b", "v2").record_failure(0.1)
    telemetry.stats("b", "v2").fallbacks += 1
    telemetry.record_notes({"unseen_categories": {"purpose": 2}})
    telemetry.record_unauthorized(401)
    telemetry.record_overload()
    telemetry.record_swap(7, (("champion", "v1", "champion"), ("b", "v2", "challenger")))
    telemetry.sink_counters = lambda: {"dropped": 3.0, "queued": 4.0}
    page_samples = samples(telemetry.render(2).decode())
    assert page_samples["mlkit_requests_total", "code=200,door=infer"] == 4
    assert page_samples["mlkit_request_seconds_bucket", "door=infer,le=0.0005"] == 2
    assert page_samples["mlkit_request_seconds_bucket", "door=infer,le=+Inf"] == 5
    assert math.isclose(page_samples["mlkit_request_seconds_sum", "door=infer"], 99.0219)
    assert page_samples["mlkit_variant_requests_total", "outcome=answered,variant=champion,version=v1"] == 1
    assert page_samples["mlkit_variant_requests_total", "outcome=failed,variant=b,version=v2"] == 1
    assert page_samples["mlkit_variant_seconds_count", "variant=champion,version=v1"] == 1
    assert page_samples["mlkit_rows_total", "version=v1"] == 5
    assert page_samples["mlkit_fallbacks_total", "variant=b,version=v2"] == 1
    assert page_samples["mlkit_unseen_categories_total", "column=purpose"] == 2
    assert page_samples["mlkit_auth_refusals_total", "code=401"] == 1
    assert page_samples["mlkit_overload_refusals_total", ""] == 1
    assert page_samples["mlkit_routing_epoch", ""] == 7
    assert page_samples["mlkit_model_version", "role=challenger,variant=b,version=v2"] == 1
    assert page_samples["mlkit_requests_in_flight", ""] == 2
    assert (page_samples["mlkit_tap_dropped_total", ""], page_samples["mlkit_tap_queued", ""]) == (3, 4)
    telemetry.record_swap(8, (("champion", "v2", "champion"),))
    assert ("mlkit_model_version", "role=challenger,variant=b,version=v2") not in samples(telemetry.render(0).decode())


def test_pages_of_replicas_are_one_page_that_parses() -> None:
    pages = []
    for number in (1, 2):
        telemetry = Telemetry("lending", f"r{number}")
        telemetry.record_request("predict", 200, 0.001)
        pages.append(telemetry.render(0).decode())
    text = merge_pages(pages).decode()
    requests = next(f for f in text_string_to_metric_families(text) if f.name == "mlkit_requests")
    assert {sample.labels["replica"]: sample.value for sample in requests.samples} == {"r1": 1.0, "r2": 1.0}
    assert text.count("# TYPE mlkit_requests_total counter") == 1
