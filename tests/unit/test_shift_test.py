"""The test of live windows against a baseline, through `advance`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import Counts, ProfileCounts, WindowCounts
from mlflowkit.judging.shift.findings import ColumnFinding
from mlflowkit.judging.shift.reference import ColumnReference, Reference
from mlflowkit.judging.shift.shift_settings import ColumnLimits, ShiftSettings
from mlflowkit.judging.shift.shift_test import advance
from mlflowkit.judging.shift.shift_trace import ShiftTrace
from mlflowkit.values import Outcome

pytestmark = pytest.mark.unit

CLEAN = (0, *(200,) * 10, 0, 0)
"""2,000 rows, a tenth of them in each inner cell of a number."""
MOVED = (0, *(100,) * 5, *(300,) * 5, 0, 0)
"""The same, at a Kolmogorov-Smirnov distance of 0.25."""
NUMBER = Cells("number", edges=tuple(float(edge) for edge in range(11)))
DEFAULT = ShiftSettings()
REFERENCE = Reference({"age": ColumnReference(NUMBER, CLEAN)})


def window(start: int, counts: Counts, squares: int | None = None, refused: int = 0) -> WindowCounts:
    rows = sum(counts)
    profile = ProfileCounts(rows, rows, squares or rows, {"age": counts})
    reasons = {"missing column age": refused} if refused else {}
    return WindowCounts("v1", float(start), 1.0, profile, {}, rows, reasons)


def judge(
    windows: Sequence[WindowCounts], settings: ShiftSettings = DEFAULT, reference: Reference = REFERENCE
) -> list[dict[str, ColumnFinding]]:
    """The findings after each window, by aspect."""
    trace, results = ShiftTrace(), []
    for each in windows:
        trace, findings = advance(
            ShiftTrace.from_json(json.loads(json.dumps(trace.to_json()))), reference, each, settings
        )
        results.append({finding.aspect: finding for finding in findings})
    return results


def of(clean: int, *then: Counts) -> list[WindowCounts]:
    return [window(start, counts) for start, counts in enumerate([*[CLEAN] * clean, *then])]


def test_a_lasting_shift_is_one_alarm_after_the_sustained_windows() -> None:
    outcomes = [findings["distribution"].outcome for findings in judge(of(10, *[MOVED] * 6))]
    assert outcomes[:7] == [Outcome.INCONCLUSIVE] * 7, "learning"
    assert outcomes[7:10] == [Outcome.PASSED] * 3
    assert Outcome.FAILED not in outcomes[10:13], "no alarm before three windows of evidence"
    assert outcomes[14:] == [Outcome.FAILED] * 2


def test_a_shock_of_one_window_is_no_alarm_however_large() -> None:
    all_above = (*(0,) * 11, 2000, 0)
    findings = judge(of(10, all_above, CLEAN, all_above, CLEAN, CLEAN))
    assert all(finding["distribution"].outcome is not Outcome.FAILED for finding in findings)
    assert findings[-1]["distribution"].outcome is Outcome.PASSED


def test_an_alarm_ends_after_the_windows_of_rearm() -> None:
    outcomes = [findings["distribution"].outcome for findings in judge(of(10, *[MOVED] * 6, *[CLEAN] * 3))]
    assert outcomes[16:] == [Outcome.FAILED, Outcome.PASSED, Outcome.PASSED]


def test_missing_values_and_values_out_of_range_are_judged_apart() -> None:
    holed = (0, *(160,) * 10, 0, 400)
    final = judge(of(10, *[holed] * 6))[-1]
    assert final["missing"].outcome is Outcome.FAILED
    assert final["missing"].value == pytest.approx(0.2)
    assert final["distribution"].outcome is final["range"].outcome is Outcome.PASSED


def test_a_column_has_its_own_margin() -> None:
    settings = ShiftSettings(limits={"age": ColumnLimits(margin=0.4)})
    assert judge(of(14, *[MOVED] * 6), settings)[-1]["distribution"].outcome is Outcome.PASSED


def test_an_own_limit_of_a_share_holds_whatever_the_baseline_is() -> None:
    holed = [window(start, (0, *(160,) * 10, 0, 400)) for start in range(16)]
    assert judge(holed)[-1]["missing"].outcome is Outcome.PASSED, "20 % are missing from the beginning"
    own = ShiftSettings(limits={"age": ColumnLimits(missing=0.1)})
    final = judge(holed, own)[-1]["missing"]
    assert (final.outcome, final.margin) == (Outcome.FAILED, 0.1)


def test_a_short_baseline_takes_longer_to_show_a_shift() -> None:
    short = ShiftSettings(baseline_windows=3)
    outcomes = [findings["distribution"].outcome for findings in judge(of(10, *[MOVED] * 30), short)]
    assert outcomes[2] is Outcome.INCONCLUSIVE
    assert outcomes[-1] is Outcome.FAILED
    assert Outcome.FAILED not in outcomes[:13]


def test_few_effective_rows_are_inconclusive() -> None:
    batch = [window(start, MOVED, squares=2000**2) for start in range(10, 20)]
    for findings in judge([*of(10), *batch])[10:]:
        assert findings["distribution"].outcome is Outcome.INCONCLUSIVE
        assert "too few" in findings["distribution"].message


def test_refused_requests_are_an_alarm_after_two_windows() -> None:
    windows = [*of(2), *(window(start, CLEAN, refused=500) for start in (2, 3)), window(4, CLEAN)]
    findings = judge(windows)
    assert "type" not in findings[1]
    assert [finding["type"].outcome for finding in findings[2:]][:2] == [Outcome.INCONCLUSIVE, Outcome.FAILED]
    assert findings[3]["type"].column == "missing column age"


def test_columns_that_do_not_fit_are_named() -> None:
    other = Reference({**REFERENCE.columns, "sex": ColumnReference(Cells("text", values=("f",)), (1, 0, 0, 0))})
    _, findings = advance(ShiftTrace(), other, window(0, CLEAN), ShiftSettings())
    assert [finding.message for finding in findings if finding.column == "sex"] == [
        "sex was not counted in 2000 rows: it is not judged"
    ]


def test_the_baseline_may_be_the_reference() -> None:
    settings = ShiftSettings(baseline="training")
    findings = judge([window(start, MOVED) for start in range(12)], settings)
    assert findings[-1]["distribution"].outcome is Outcome.FAILED


def test_the_baseline_may_be_the_season() -> None:
    """Each second window is different by itself."""
    settings = ShiftSettings(baseline="season", season_seconds=2.0, season_count=6)
    noisy = np.random.default_rng(3)
    shares = [np.array(counts) / sum(counts) for counts in (CLEAN, MOVED)]
    windows = [window(start, tuple(noisy.multinomial(2000, shares[start % 2]).tolist())) for start in range(20)]
    outcomes = [findings["distribution"].outcome for findings in judge(windows, settings)]
    assert outcomes[-6:] == [Outcome.PASSED] * 6
