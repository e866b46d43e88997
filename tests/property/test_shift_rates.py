"""The shift test holds what it promises: by generated examples, and by simulated months."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import drift_rates
from mlflowkit.features.cell_counts import count_cells
from mlflowkit.features.reference_cells import column_reference
from mlflowkit.judging.online.sequential import Share, rate_bets
from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import Counts, ProfileCounts, WindowCounts
from mlflowkit.judging.shift.detector import bets, discoveries
from mlflowkit.judging.shift.findings import ColumnFinding
from mlflowkit.judging.shift.reference import ColumnReference, Reference
from mlflowkit.judging.shift.shift_comparison import compare
from mlflowkit.judging.shift.shift_settings import ShiftSettings
from mlflowkit.judging.shift.shift_test import advance
from mlflowkit.judging.shift.shift_trace import ShiftTrace
from mlflowkit.values import Outcome
from tests.support.chance import most

pytestmark = pytest.mark.property

CELLS = Cells("number", edges=tuple(float(edge) for edge in drift_rates.EDGES))


def window_of(start: int, columns: dict[str, Counts], rows: int, squares: int | None = None) -> WindowCounts:
    profile = ProfileCounts(rows, rows, squares or rows, columns)
    return WindowCounts("v1", float(start), 1.0, profile, {}, rows)


@given(st.floats(0, 1), st.floats(0.5, 5000), st.floats(0.001, 0.999))
def test_bets_are_those_of_the_sequential_tests(share: float, rows: float, bound: float) -> None:
    ours = bets(np.array([share * rows]), np.array([rows]), np.array([bound]))[0]
    assert ours.tolist() == pytest.approx(rate_bets(Share(rows, share * rows), bound)[0], rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(-5, 12), min_size=1, max_size=40), st.sampled_from([0.01, 0.05, 0.2]))
def test_discoveries_are_those_of_the_definition(logs: list[float], level: float) -> None:
    """Wang & Ramdas: the largest k for which the k-th e-value is m / (k level) or more."""
    rejected = discoveries(np.array(logs), level)
    ranked = sorted(logs, reverse=True)
    number = max((k for k, log in enumerate(ranked, 1) if log >= math.log(len(logs) / (k * level)) - 1e-12), default=0)
    assert rejected.sum() >= number
    assert all(mark == (log >= ranked[number - 1]) for log, mark in zip(logs, rejected.tolist(), strict=True)) or (
        not number and not rejected.any()
    )


@given(st.integers(0, 2**32 - 1))
def test_findings_do_not_change_with_units_and_increasing_maps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.normal(size=400), rng.normal(0.4, 1.2, size=300)
    results = []
    for change in (lambda x: x, lambda x: 1000 * x + 7, np.exp, np.cbrt):
        column = column_reference(change(before))
        counts = count_cells(column.cells, change(after))
        findings = compare(Reference({"x": column}), window_of(0, {"x": counts}, 300), ShiftSettings())
        results.append([(finding.aspect, finding.outcome, finding.value, finding.low) for finding in findings])
    assert all(result == results[0] for result in results)


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 3000), min_size=5, max_size=5), min_size=12, max_size=16), st.booleans())
def test_any_counts_give_findings_without_nan_that_survive_json(rows: list[list[int]], ordered: bool) -> None:
    cells = Cells("number", edges=(0.0, 1.0, 2.0)) if ordered else Cells("text", values=("a", "b"))
    reference = Reference({"x": ColumnReference(cells, (1,) * 5)})
    trace = ShiftTrace()
    for start, counts in enumerate(rows):
        window = window_of(start, {"x": tuple(counts)}, sum(counts))
        trace, findings = advance(trace, reference, window, ShiftSettings(sustained=2))
        trace = ShiftTrace.from_json(json.loads(json.dumps(trace.to_json(), allow_nan=False)))
        for finding in findings:
            json.dumps(finding.to_json(), allow_nan=False)
            if finding.value is not None and finding.low is not None and finding.high is not None:
                assert 0 <= finding.low <= finding.value + 1e-9
                assert finding.value <= finding.high + 1e-9


def _product(counts: list[np.ndarray], columns: int, rules: ShiftSettings) -> list[list[ColumnFinding]]:
    """The findings of `advance` for windows of counts (columns, cells)."""
    reference = Reference({f"x{index}": ColumnReference(CELLS, (1,) * 13) for index in range(columns)})
    trace, results = ShiftTrace(), []
    for start, window in enumerate(counts):
        named = {f"x{index}": (*map(int, window[index]), 0) for index in range(columns)}
        rows = int(window[0].sum())
        trace, findings = advance(trace, reference, window_of(start, named, rows), rules)
        results.append(sorted(findings, key=lambda finding: (finding.aspect, int(finding.column[1:]))))
    return results


@pytest.mark.parametrize("effect", [1.0, 30.0])
def test_the_simulation_is_the_product(effect: float) -> None:
    """The same counts through `advance` and through the arrays of benchmarks/drift_rates.py."""
    columns, windows, shifts = 6, 36, np.array([0.0, 0.9, 0.0, 0.35, 0.0, -1.2])
    rng = np.random.default_rng(41)
    draw = drift_rates.stepped(rng, (1, columns), shifts, 12, effect)
    counts = [draw(window) for window in range(windows)]
    rules = ShiftSettings()
    simulated = drift_rates.simulate(lambda window: counts[window], 1, columns, windows, rules)
    findings = _product(counts, columns, rules)
    for window in range(windows):
        whole = [finding for finding in findings[window] if finding.aspect == "distribution"]
        either = {f.column for f in findings[window] if f.outcome is Outcome.FAILED}
        assert [finding.column in either for finding in whole] == simulated.failed[window, 0].tolist(), window
        passed = [finding.outcome is Outcome.PASSED for finding in whole]
        assert (
            passed == (simulated.passed[window, 0] & ~np.array([f.outcome is Outcome.FAILED for f in whole])).tolist()
        )
    assert simulated.failed.any()


@pytest.mark.simulation
@pytest.mark.parametrize("name", [name for name in drift_rates.CLEAN if "rho" not in name])
def test_clean_months_alarm_in_at_most_one_of_twenty(name: str) -> None:
    """30 windows of 100 columns; benchmarks/drift_rates.py counts 1,000 runs of each."""
    result = drift_rates.rate_of_clean(name, 30)
    assert result["alarmed"] <= most(30, 0.05)


@pytest.mark.simulation
def test_rows_that_depend_on_the_last_one_raise_no_alarm() -> None:
    result = drift_rates.rate_of_clean("autoregression, rho 0.9", 20, columns=20)
    assert result["alarmed"] <= most(20, 0.05)


@pytest.mark.simulation
def test_a_lasting_shift_is_alarmed_once_and_soon() -> None:
    result = drift_rates.lasting_shift(runs=40, distance=0.2, day=10)
    assert result["within 6 windows, one alarm"] >= 30
    assert result["other columns alarmed"] <= most(40, 0.05)


def test_one_large_request_in_a_window_raises_no_alarm() -> None:
    """A request of 65,536 equal rows in windows of 500 others."""
    rng = np.random.default_rng(37)
    reference = Reference({"x": ColumnReference(CELLS, (1,) * 13)})
    trace = ShiftTrace()
    for start in range(40):
        counts = np.append(rng.multinomial(500, drift_rates.cell_shares_of(np.zeros(1))[0]), 0)
        large = start in (20, 21, 22, 30)
        counts[11] += 65_536 * large
        rows = int(counts.sum())
        squares = 500 + 65_536**2 * large
        trace, findings = advance(
            trace, reference, window_of(start, {"x": tuple(counts.tolist())}, rows, squares), ShiftSettings()
        )
        assert all(finding.outcome is not Outcome.FAILED for finding in findings)


@pytest.mark.simulation
@pytest.mark.parametrize("batch", [100, 10_000])
def test_batches_of_equal_rows_raise_no_alarm(batch: int) -> None:
    """One request in 200 has a batch of rows that are all alike; 40 months."""
    alarmed = 0
    for seed in range(40):
        rng = np.random.default_rng((seed, batch))
        reference = Reference({"x": ColumnReference(CELLS, (1,) * 13)})
        trace, failed = ShiftTrace(), False
        shares = drift_rates.cell_shares_of(np.zeros(1))[0]
        for start in range(30):
            singles = rng.multinomial(1990, shares)
            counts = np.append(singles + batch * rng.multinomial(10, shares), 0)
            squares = 1990 + 10 * batch**2
            window = window_of(start, {"x": tuple(counts.tolist())}, int(counts.sum()), squares)
            trace, findings = advance(trace, reference, window, ShiftSettings(min_rows=5))
            failed = failed or any(finding.outcome is Outcome.FAILED for finding in findings)
        alarmed += failed
    assert alarmed <= most(40, 0.05)
