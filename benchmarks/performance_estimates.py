"""Estimates of performance without labels: do their bands cover, and does the back-test see when they cannot?

On real tables (Lending Club, openintro's loans, nycflights13) and on river's streams with a known change:

- *covariate shift*: a new split, model and calibrator in each draw; a window in which one column is distributed
  otherwise. The band at 95 % must cover the realised metric of the window in at least 90 % of the draws (the band knows
  nothing of the column, and calibration on some hundred positives is rough).
- *flipped labels*: 20 % of the window's labels. The estimate cannot move; what is realised does; the back-test must say
  BIASED.
- *flights by month*: a model of schedule columns, whose estimates stay while it gets worse.
- *streams*: the concept changes, the inputs do not. No alarm of a feature; labels to the alarm of the realised metric.
- *a loss of 3 points beyond the 3 that are allowed*, and the false alarms of a model that lies on its bound.

    python -m benchmarks.performance_estimates            (--quick for some of the draws, --only cbpe dle to choose)
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import beta

from mlflowkit.features.cell_counts import CellCounter, count_cells
from mlflowkit.features.reference_cells import cells_of, column_reference
from mlflowkit.judging.online.evidence import Moments
from mlflowkit.judging.online.sequential import Share
from mlflowkit.judging.performance.assess import back_test
from mlflowkit.judging.performance.backtest import BackTest
from mlflowkit.judging.performance.calibrator import Calibrator, expected_counts, fit_calibrator
from mlflowkit.judging.performance.error_table import ErrorTable, estimate_error, fit_error_table
from mlflowkit.judging.performance.estimated import estimate_score_metric
from mlflowkit.judging.performance.harm import PerformanceBlock, judge_blocks
from mlflowkit.judging.performance.performance_findings import PerformanceSettings
from mlflowkit.judging.performance.realised import LabelledCohort, cohort_block
from mlflowkit.judging.performance.score_table import metric_value, metric_values, score_cells, table_of_rows
from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.judging.shift.reference import Reference
from mlflowkit.judging.shift.shift_settings import ShiftSettings
from mlflowkit.judging.shift.shift_test import advance
from mlflowkit.judging.shift.shift_trace import ShiftTrace
from mlflowkit.values import Outcome

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

OUT = Path(__file__).parent / "results" / "performance_estimates.json"
METRICS = ("roc_auc", "recall", "accuracy", "brier")
SETTINGS = PerformanceSettings(max_drop=0.03, min_labels=300)
BLOCK = 100
"""Labels of a cohort of a stream."""


def clopper_pearson(hits: int, runs: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    low = float(beta.ppf(0.025, hits, runs - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, runs - hits)) if hits < runs else 1.0
    return low, high


def share(hits: int, runs: int) -> str:
    low, high = clopper_pearson(hits, runs)
    return f"{hits} of {runs} = {hits / runs:.3f} [{low:.3f}, {high:.3f}]"


def table_of(name: str, *arguments: int) -> pd.DataFrame:
    """A table of the recipes' ``datasets``."""
    loaded: pd.DataFrame = getattr(importlib.import_module("datasets"), name)(*arguments)
    return loaded


# ------------------------------------------------------------------------------------------------------ classification


@dataclass(frozen=True)
class Scored:
    """Rows that a model was not fitted to, as it answered them."""

    scores: np.ndarray
    predicted: np.ndarray
    actual: np.ndarray

    def take(self, rows: np.ndarray) -> Scored:
        return Scored(self.scores[rows], self.predicted[rows], self.actual[rows])

    def flipped(self, part: float, random: np.random.Generator) -> Scored:
        actual = np.where(random.random(len(self.actual)) < part, 1 - self.actual, self.actual)
        return Scored(self.scores, self.predicted, actual)

    def calibrator(self) -> Calibrator:
        cells = cells_of(self.scores.astype(np.float32))
        codes = CellCounter(cells).codes(self.scores.astype(np.float32))
        fitted = fit_calibrator(self.scores, self.predicted, self.actual, cells, codes)
        assert fitted is not None
        return fitted

    def cohort(self, start: float, seconds: float) -> LabelledCohort:
        cells = score_cells(self.scores)
        answered: dict[tuple[int, int], int] = {}
        labelled: dict[tuple[int, int, int], int] = {}
        for cell, predicted, actual in zip(cells.tolist(), self.predicted.tolist(), self.actual.tolist(), strict=True):
            answered[cell, predicted] = answered.get((cell, predicted), 0) + 1
            labelled[cell, predicted, actual] = labelled.get((cell, predicted, actual), 0) + 1
        return LabelledCohort(start, seconds, len(cells), answered, labelled)


def lending_draw(seed: int) -> tuple[Calibrator, Scored, np.ndarray, np.random.Generator]:
    """A calibrator, scored rows apart from those that it was fitted to, and whether each loan runs for 60 months."""
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    random = np.random.default_rng(seed)
    table = table_of("lending_club")
    actual = (table.pop("Class") == "bad").to_numpy().astype(np.int64)
    order = random.permutation(len(table))
    train, held, pool = np.split(order, [round(0.5 * len(order)), round(0.75 * len(order))])
    text = [name for name in table if table[name].dtype.kind not in "fiu"]
    numbers = [name for name in table if name not in text]
    encode = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), text), (StandardScaler(), numbers))
    model = make_pipeline(encode, LogisticRegression(C=0.1, max_iter=300))
    model.fit(table.iloc[train], actual[train])
    scores = model.predict_proba(table)[:, 1].astype(np.float32).astype(np.float64)
    everything = Scored(scores, (scores >= 0.1).astype(np.int64), actual)
    long_term = table["term"].astype(str).str.contains("60").to_numpy()
    return everything.take(held).calibrator(), everything.take(pool), long_term[pool], random


def cbpe(draws: int) -> dict[str, Any]:
    """Lending, resampled by term; and the same windows with 20 % of the labels flipped."""
    covered = dict.fromkeys(METRICS, 0)
    below = dict.fromkeys(METRICS, 0)
    widths: dict[str, list[float]] = {name: [] for name in METRICS}
    moved, trusts = 0, {"TRUSTED": 0, "BIASED": 0, "UNKNOWN": 0}
    for seed in range(draws):
        calibrator, pool, long_term, random = lending_draw(seed)
        weights = np.where(long_term, random.uniform(0.2, 5.0), 1.0)
        rows = random.choice(len(weights), 1200, replace=False, p=weights / weights.sum())
        window = pool.take(rows)
        table = table_of_rows(window.scores, window.predicted, window.actual)
        for name in METRICS:
            estimate = estimate_score_metric(name, table, calibrator, table.rows)
            assert estimate is not None
            value = metric_value(name, table)
            covered[name] += estimate.low <= value <= estimate.high
            below[name] += value < estimate.low
            widths[name].append(estimate.high - estimate.low)
        flipped = window.flipped(0.2, random)
        other = table_of_rows(flipped.scores, flipped.predicted, flipped.actual)
        first, second = (estimate_score_metric("roc_auc", rows, calibrator, 1200.0) for rows in (table, other))
        assert first is not None
        assert second is not None
        moved += first.value != second.value
        trusts[_trust(calibrator, flipped, 4).trust] += 1
    return {
        "draws": draws,
        "covered": {name: share(hits, draws) for name, hits in covered.items()},
        "realised below the band": {name: share(hits, draws) for name, hits in below.items()},
        "mean width of the band": {name: round(float(np.mean(width)), 4) for name, width in widths.items()},
        "20 % of the labels flipped: the estimate moved": share(moved, draws),
        "20 % of the labels flipped: back-test": trusts,
    }


def _trust(calibrator: Calibrator, rows: Scored, cohorts: int) -> BackTest:
    parts = np.array_split(np.arange(len(rows.scores)), cohorts)
    days = [rows.take(part).cohort(86_400.0 * day, 86_400.0) for day, part in enumerate(parts)]
    settings = PerformanceSettings(max_drop=0.03, min_labels=100)
    return back_test("roc_auc", calibrator, days, (), settings)


def flights(_: int) -> dict[str, Any]:
    """Schedule columns only, fitted on 65 % of January and February, calibrated on the rest: each month of 2013."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    table = table_of("flights", 1, 12)
    features = ["carrier", "origin", "dest", "distance", "hour"]
    actual = (table["late"] == "late").to_numpy().astype(np.int64)
    month = pd.to_datetime(table["time"], unit="s").dt.month.to_numpy()
    day = (table["time"] // 86_400).to_numpy()
    inputs = table[features].copy()
    for name in ("carrier", "origin", "dest"):
        inputs[name] = inputs[name].astype("category").cat.codes
    early = np.flatnonzero(month <= 2)
    train, held = early[: round(0.65 * len(early))], early[round(0.65 * len(early)) :]
    model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=15, min_samples_leaf=100, random_state=0)
    model.fit(inputs.iloc[train], actual[train])
    scores = model.predict_proba(inputs)[:, 1]
    scored = Scored(scores, (scores >= 0.2).astype(np.int64), actual)
    rows = scored.take(held)
    random_parts = fit_calibrator(rows.scores, rows.predicted, rows.actual)
    calibrator = fit_calibrator(rows.scores, rows.predicted, rows.actual, times=np.arange(len(held)))
    assert calibrator is not None
    assert random_parts is not None
    months: dict[str, dict[str, list[float]]] = {"roc_auc": {}, "brier": {}}
    cohorts: list[LabelledCohort] = []
    for number in range(2, 13):
        inside = np.flatnonzero(month == number) if number > 2 else held[month[held] == number]
        counted = table_of_rows(*_fields(scored.take(inside)))
        for metric, rows_of in months.items():
            estimate = estimate_score_metric(metric, counted, calibrator, len(inside))
            assert estimate is not None
            figures = (estimate.value, estimate.low, estimate.high, metric_value(metric, counted))
            rows_of[str(number)] = [round(x, 4) for x in figures]
        for date in np.unique(day[inside]) if number > 2 else ():
            cohorts.append(scored.take(inside[day[inside] == date]).cohort(86_400.0 * float(date), 86_400.0))
    backtests = {
        f"{metric}, {name}": _flights_trust(metric, calibrator, cohorts, number)
        for metric in months
        for number, name in ((3, "end of March"), (6, "end of June"), (9, "end of September"), (12, "end of December"))
    }
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1).fit(rows.scores, rows.actual).predict(rows.scores)
    order = np.argsort(rows.scores, kind="stable")
    expected = expected_counts(np.eye(2)[rows.predicted[order]], fitted[order])
    naive = metric_values("roc_auc", rows.scores[order], expected)
    biases = {
        "random parts": random_parts.held_out["roc_auc"].bias,
        "parts in time": calibrator.held_out["roc_auc"].bias,
    }
    return {
        "held-out bias that packaging measures": {name: round(bias, 4) for name, bias in biases.items()},
        "by month [estimate, low, high, realised]": months,
        "isotonic regression on the same rows, estimated minus realised": round(
            float(naive) - metric_value("roc_auc", table_of_rows(*_fields(rows))), 4
        ),
        "back-test by day, over the last 120 days at most": backtests,
    }


def _flights_trust(metric: str, calibrator: Calibrator, cohorts: Sequence[LabelledCohort], month: int) -> list[str]:
    """What the back-test says at the end of a month."""
    until = (pd.Timestamp(2013, month, 1) + pd.offsets.MonthEnd(1)).timestamp()
    days = [cohort for cohort in cohorts if cohort.start <= until][-120:]
    result = back_test(metric, calibrator, days, (), SETTINGS)
    return [result.trust, result.message]


def _fields(rows: Scored) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return rows.scores, rows.predicted, rows.actual


# ----------------------------------------------------------------------------------------------------------- regression


@dataclass(frozen=True)
class Errors:
    """The error table of a model, and rows apart from those that it was fitted to."""

    table: ErrorTable
    reference: Reference
    values: dict[str, np.ndarray]
    errors: np.ndarray

    def counts(self, rows: np.ndarray) -> dict[str, tuple[int, ...]]:
        return {
            name: count_cells(self.reference.columns[name].cells, self.values[name][rows])
            for name in self.table.effects
        }


def fit_errors(values: dict[str, np.ndarray], errors: np.ndarray, held: np.ndarray, pool: np.ndarray) -> Errors:
    reference = Reference({name: column_reference(column) for name, column in values.items()})
    codes, sizes = {}, {}
    for name, column in values.items():
        cells = reference.columns[name].cells
        codes[name], sizes[name] = CellCounter(cells).codes(column[held]), len(cells.names)
    table = fit_error_table(codes, sizes, errors[held])
    assert table is not None
    return Errors(table, reference, {name: column[pool] for name, column in values.items()}, errors[pool])


def loans_draw(seed: int) -> tuple[Errors, np.random.Generator]:
    from sklearn.ensemble import HistGradientBoostingRegressor

    random = np.random.default_rng(seed)
    table = table_of("loans_full_schema")
    target = table["interest_rate"].to_numpy(np.float64)
    known_later = ("interest_rate", "installment", "balance", "grade", "sub_grade", "rownames")
    columns = [str(name) for name in table if table[name].dtype.kind in "fi"]
    numbers = [name for name in columns if not name.startswith(known_later) and "paid" not in name]
    inputs = table[numbers].to_numpy(np.float32)
    order = random.permutation(len(table))
    train, held, pool = np.split(order, [5000, 7500])
    model = HistGradientBoostingRegressor(max_iter=60, max_leaf_nodes=15, random_state=0).fit(
        inputs[train], target[train]
    )
    prediction = model.predict(inputs).astype(np.float32)
    values = {name: inputs[:, index] for index, name in enumerate(numbers)} | {"output.prediction": prediction}
    return fit_errors(values, np.abs(target - prediction), held, pool), random


def dle(draws: int) -> dict[str, Any]:
    """Loans: each draw tilts the window by a random column of the table, by up to two standard deviations."""
    covered, widths, shifts = 0, [], []
    for seed in range(draws):
        errors, random = loans_draw(seed)
        names = list(errors.values)
        column = errors.values[names[int(random.integers(len(names)))]]
        filled = np.nan_to_num(column, nan=float(np.nanmedian(column)))
        ranks = np.argsort(np.argsort(filled, kind="stable")) / len(filled)
        weights = np.exp(random.uniform(-2.5, 2.5) * ranks)
        rows = random.choice(len(weights), 800, replace=False, p=weights / weights.sum())
        estimate = estimate_error(errors.table, errors.counts(rows), 800.0)
        assert estimate is not None
        value = float(errors.errors[rows].mean())
        covered += estimate.low <= value <= estimate.high
        widths.append(estimate.high - estimate.low)
        shifts.append(abs(value - errors.table.realised))
    return {
        "draws": draws,
        "covered": share(covered, draws),
        "mean width of the band": round(float(np.mean(widths)), 3),
        "mean shift of the realised error": round(float(np.mean(shifts)), 3),
    }


# -------------------------------------------------------------------------------------------------------------- streams


def sea(seed: int, variant: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    from river.datasets import synth

    stream = synth.SEA(variant=variant, noise=0.1, seed=seed).take(rows)
    pairs = [(list(x.values()), int(y)) for x, y in stream]
    return np.array([x for x, _ in pairs], np.float32), np.array([y for _, y in pairs])


def friedman(seed: int, rows: int, change: int) -> tuple[np.ndarray, np.ndarray]:
    from river.datasets import synth

    stream = synth.FriedmanDrift(drift_type="gra", position=(change, 10**9), transition_window=1, seed=seed).take(rows)
    pairs = [(list(x.values()), float(y)) for x, y in stream]
    return np.array([x for x, _ in pairs], np.float32), np.array([y for _, y in pairs])


def feature_alarms(before: np.ndarray, live: np.ndarray) -> int:
    """Features that are FAILED at any of the windows of 500 rows."""
    names = [f"x{index}" for index in range(before.shape[1])]
    reference = Reference({name: column_reference(before[:, index]) for index, name in enumerate(names)})
    settings, trace, failed = ShiftSettings(baseline="training"), ShiftTrace(), set()
    for number, rows in enumerate(np.array_split(live, max(len(live) // 500, 1))):
        columns = {name: count_cells(reference.columns[name].cells, rows[:, index]) for index, name in enumerate(names)}
        counts = ProfileCounts(len(rows), len(rows), len(rows), columns)
        window = WindowCounts("v1", 86_400.0 * number, 86_400.0, counts, answered=len(rows))
        trace, findings = advance(trace, reference, window, settings)
        failed |= {finding.column for finding in findings if finding.outcome is Outcome.FAILED}
    return len(failed)


def labels_to_alarm(
    metric: str, blocks: Sequence[PerformanceBlock], bound: float, change: int, scale: float
) -> int | None:
    """Labels after the change to the first FAILED; negative for a false alarm, None for no alarm."""
    for number in range(1, len(blocks) + 1):
        if judge_blocks(metric, blocks[:number], bound, scale=scale).outcome is Outcome.FAILED:
            return number * BLOCK - change
    return None


def accuracy_block(index: int, correct: np.ndarray) -> PerformanceBlock:
    cohort = LabelledCohort(float(index), 1.0, len(correct), moments={"accuracy": _moments(correct.astype(float))})
    block = cohort_block("accuracy", cohort)
    assert block is not None
    return block


def _moments(values: np.ndarray) -> Moments:
    return Moments(len(values), float(values.sum()), float((values**2).sum()))


def sea_run(seed: int) -> tuple[int | None, int]:
    from sklearn.linear_model import LogisticRegression

    before, labels = sea(seed, 0, 4000)
    model = LogisticRegression(max_iter=300).fit(before[:3000], labels[:3000])
    calm, calm_labels = sea(10_000 + seed, 0, 5000)
    after, after_labels = sea(20_000 + seed, 3, 3000)
    live, actual = np.concatenate([calm, after]), np.concatenate([calm_labels, after_labels])
    bound = float((model.predict(before[3000:]) == labels[3000:]).mean()) - 0.03
    correct = model.predict(live) == actual
    blocks = [accuracy_block(i, correct[start : start + BLOCK]) for i, start in enumerate(range(0, len(live), BLOCK))]
    return labels_to_alarm("accuracy", blocks, bound, 5000, 0.08), feature_alarms(before, live)


def friedman_run(seed: int) -> tuple[int | None, int]:
    from sklearn.ensemble import HistGradientBoostingRegressor

    inputs, target = friedman(seed, 12_000, 9000)
    model = HistGradientBoostingRegressor(max_iter=60, random_state=0).fit(inputs[:3000], target[:3000])
    errors = np.abs(model.predict(inputs) - target)
    bound = float(errors[3000:4000].mean()) * 1.15
    live = errors[4000:]
    blocks = []
    for index, start in enumerate(range(0, len(live), BLOCK)):
        moments = {"absolute_error": _moments(live[start : start + BLOCK])}
        block = cohort_block("absolute_error", LabelledCohort(float(index), 1.0, BLOCK, moments=moments))
        assert block is not None
        blocks.append(block)
    alarm = labels_to_alarm("absolute_error", blocks, bound, 5000, 0.25 * bound)
    return alarm, feature_alarms(inputs[:3000], inputs[4000:])


def streams(runs: int) -> dict[str, Any]:
    """SEA and FriedmanDrift: the concept changes after 5,000 labels, the inputs do not."""
    result: dict[str, Any] = {"runs of each": runs}
    for name, run in (("SEA, accuracy", sea_run), ("FriedmanDrift, mae", friedman_run)):
        outcomes = [run(seed) for seed in range(runs)]
        delays = [labels for labels, _ in outcomes if labels is not None and labels >= 0]
        result[name] = {
            "realised alarm within 1,500 labels": share(sum(labels <= 1500 for labels in delays), runs),
            "labels, median and largest": [float(np.median(delays)), max(delays)] if delays else None,
            "alarms before the change": share(sum(labels is not None and labels < 0 for labels, _ in outcomes), runs),
            "runs with an alarm of a feature": share(sum(alarms > 0 for _, alarms in outcomes), runs),
        }
    return result


def drop(runs: int) -> dict[str, Any]:
    """12 % errors are allowed: labels until 15 % are found, and how often exactly 12 % are called worse."""
    found, false = [], 0
    for seed in range(runs):
        random = np.random.default_rng(seed)
        blocks = [rate_block(index, 0.15, random) for index in range(80)]
        labels = labels_to_alarm("accuracy", blocks, 0.88, 0, 0.08)
        found.append(8000 if labels is None else labels)
        on_bound = [rate_block(index, 0.12, random) for index in range(60)]
        false += labels_to_alarm("accuracy", on_bound, 0.88, 0, 0.08) is not None
    return {
        "runs": runs,
        "labels until found, median and 90 %": [float(np.median(found)), float(np.quantile(found, 0.9))],
        "found within 1,200 labels": share(int(np.sum(np.array(found) <= 1200)), runs),
        "false alarms on the bound, in 6,000 labels": share(false, runs),
    }


def rate_block(index: int, rate: float, random: np.random.Generator) -> PerformanceBlock:
    bad = float(random.binomial(BLOCK, rate))
    smoothed = (bad + 2) / (BLOCK + 4)
    variance = smoothed * (1 - smoothed) / BLOCK
    return PerformanceBlock(float(index), 1.0, 1 - bad / BLOCK, variance, BLOCK, Share(BLOCK, bad))


PARTS: dict[str, tuple[Callable[[int], dict[str, Any]], int, int]] = {
    "cbpe": (cbpe, 100, 8),
    "dle": (dle, 50, 8),
    "flights": (flights, 1, 1),
    "streams": (streams, 50, 4),
    "drop": (drop, 400, 60),
}
"""What is measured, with its number of runs in full and in --quick."""


def measured(quick: bool, only: Sequence[str], count: int | None) -> Iterator[tuple[str, dict[str, Any], float]]:
    for name, (measure, runs, few) in PARTS.items():
        if not only or name in only:
            start = time.perf_counter()
            yield name, measure(count or (few if quick else runs)), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws; writes no result")
    parser.add_argument("--only", nargs="*", default=[], choices=list(PARTS), help="these parts; the others stay")
    parser.add_argument("--runs", type=int, help="runs of each part, in the place of its own number")
    options = parser.parse_args()
    for name, result, seconds in measured(options.quick, options.only, options.runs):
        print(f"{name} ({seconds:.0f} s)\n{json.dumps(result, indent=1)}", flush=True)
        if not options.quick:
            results = json.loads(OUT.read_text()) if OUT.exists() else {}
            OUT.write_text(json.dumps(results | {name: result}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
