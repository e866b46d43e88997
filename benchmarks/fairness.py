"""How often gates on fairness are wrong, what they find, and what a limit on the point value would say.

Each case draws the answers of a model on the test rows of several groups, and judges them as `mlkit run` does. Where
there is no disparity, FAILED may be said in 5 % of the runs; "point" is the share of runs in which the largest
difference of two groups alone (fairlearn's value) is beyond the limit.

    python -m benchmarks.fairness --runs 1000 --out benchmarks/results/fairness.json
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mlflowkit.judging.gates import GateSpec, worst_blocking
from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.stages.evaluation import fairness_gates
from mlflowkit.stages.evaluation.fairness_gates import Fair, GroupEvidence
from mlflowkit.values import Outcome, Verdict

UNEVEN = (718, 446, 306, 9)


@dataclass(frozen=True)
class Case:
    """Groups of these sizes, whose rates have this truth."""

    metric: str
    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    """The chance of a positive answer in each group, whatever the outcome."""
    limit: Mapping[str, float]
    positive: float = 0.1
    """Share of rows of the positive class."""
    min_rows: int = 2

    @property
    def is_fair(self) -> bool:
        return len(set(self.rates)) == 1

    def judge(self, rng: np.random.Generator) -> Sequence[Verdict]:
        """Draw the answers once, and judge them."""
        predicted = np.concatenate(
            [rng.random(size) < rate for size, rate in zip(self.sizes, self.rates, strict=True)]
        ).astype(np.int64)
        actual = (rng.random(len(predicted)) < self.positive).astype(np.int64)
        scores = np.stack([1 - predicted, predicted], axis=1).astype(float)
        predictions = LabelledPredictions("classification", actual, predicted, scores)
        ends = np.cumsum(self.sizes)
        rows = [(f"g{at}", part) for at, part in enumerate(np.split(np.arange(len(actual)), ends[:-1]))]
        fair = Fair.model_validate({"column": "group", "min_rows": self.min_rows, **self.limit})
        (spec,) = fairness_gates.specs(fair, self.metric, GateSpec(self.metric, self.metric, 0.0, "max"))
        return tuple(fairness_gates.verdicts(fair, self.metric, spec, GroupEvidence(predictions, rows, {})))


def share_of_outcomes(case: Case, runs: int, seed: int) -> Mapping[Outcome | str, float]:
    """The share of runs in which the gate ends in each outcome; "point": in which the value alone is beyond."""
    rng = np.random.default_rng(seed)
    counts: Counter[Outcome | str] = Counter()
    for _ in range(runs):
        verdicts = case.judge(rng)
        counts[worst_blocking(verdicts)] += 1
        counts["point"] += any(map(_is_beyond, verdicts))
    return {outcome: counts[outcome] / runs for outcome in (*Outcome, "point")}


def _is_beyond(verdict: Verdict) -> bool:
    measured, limit = verdict.measurement, verdict.threshold
    if measured is None or limit is None:
        return False
    return measured.value > limit if verdict.direction == "max" else measured.value < limit


def cases() -> list[Case]:
    sizes = (UNEVEN, (1000, 30), (40,) * 6, (5000, 5000))
    limits: tuple[dict[str, float], ...] = ({"max_difference": 0.1}, {"max_difference": 0.01}, {"min_ratio": 0.8})
    equal_groups = [
        Case(metric, groups, (rate,) * len(groups), limit, positive=0.05 if metric == "equalized_odds" else 0.3)
        for metric in ("selection_rate", "recall", "equalized_odds")
        for groups in sizes
        for limit in limits
        for rate in (0.02, 0.1, 0.5)
    ]
    apart = ((0.5, 0.5, 0.3, 0.3), (0.3, 0.1, 0.3, 0.1), (0.9, 0.7, 0.9, 0.9))
    unequal_groups = [
        Case(metric, UNEVEN, rates, {"max_difference": limit}, positive=0.5)
        for metric in ("selection_rate", "recall", "equalized_odds")
        for rates in apart
        for limit in (0.05, 0.1)
    ]
    return equal_groups + unequal_groups


def describe(case: Case) -> str:
    sizes = ",".join(map(str, case.sizes))
    rates = f"{case.rates[0]:g} in all" if case.is_fair else ",".join(f"{rate:g}" for rate in case.rates)
    limit = ", ".join(f"{name} {value:g}" for name, value in case.limit.items())
    return f"{case.metric:15} {sizes:18} {rates:16} {limit:20}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = []
    worst = 0.0
    print(f"{'metric':15} {'rows':18} {'true rates':16} {'limit':20}  FAILED  PASSED INCONCL.  point")
    for case in cases():
        shares = share_of_outcomes(case, options.runs, seed=1)
        columns = (shares[Outcome.FAILED], shares[Outcome.PASSED], shares[Outcome.INCONCLUSIVE], shares["point"])
        print(describe(case), " ".join(f"{share:7.1%}" for share in columns), flush=True)
        results.append({"case": asdict(case), "shares": {str(name): share for name, share in shares.items()}})
        worst = max(worst, shares[Outcome.FAILED] if case.is_fair else 0.0)
    print(f"without any disparity FAILED is said in {worst:.1%} at most, of {options.runs:,} runs a case")
    if options.out is not None:
        report = {"runs": options.runs, "worst_failed_without_disparity": worst, "results": results}
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
