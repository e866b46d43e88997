"""What is asked of a version's performance, and what is known of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from mlflowkit.judging.performance.backtest import Trust
from mlflowkit.values import Json, Outcome

FindingKind = Literal["estimated", "realised", "labels", "latency", "errors"]


@dataclass(frozen=True, slots=True)
class PerformanceSettings:
    """The recipe's limits; None for what it does not ask.

    estimated   metric without labels, which may be worse than on the test rows by at most ``max_drop``
    realised    metric by labels, at least ``minimum`` or at most ``maximum``, of cohorts with ``min_labels``
                labels at an age of ``mature`` seconds
    p99_seconds, error_rate    what 99 % of the requests keep, and the share that may fail, over ``budget_seconds``
    """

    estimated: str | None = None
    max_drop: float = 0.0
    realised: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    mature: float = 86_400.0
    min_labels: int = 300
    p99_seconds: float | None = None
    error_rate: float | None = None
    budget_seconds: float = 30 * 86_400.0
    level: float = 0.05


@dataclass(frozen=True, slots=True)
class MetricFinding:
    """One metric of one version.

    kind        estimated without labels; realised by labels; labels that are late; latency and errors, as burn rates
    outcome     FAILED: surely worse than the bound; PASSED: surely not; else INCONCLUSIVE
    value       with its interval ``low`` to ``high`` at 95 %; None where it is not determined
    bound       the worst acceptable value; ``reference`` is that on the rows that the model was judged on
    evidence    the e-process as a share of its threshold in logarithms: 1 and more is FAILED
    trust       of an estimate: what the back-test says of estimates; "" for any other
    labelled_share   share of the answers that are old enough whose label came
    since       start of the first window of the evidence
    message     one sentence with the numbers
    """

    metric: str
    kind: FindingKind
    outcome: Outcome
    value: float | None = None
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    reference: float | None = None
    evidence: float = 0.0
    rows: int = 0
    trust: Trust | Literal[""] = ""
    labelled_share: float | None = None
    since: float | None = None
    start: float | None = None
    message: str = ""

    @property
    def may_act(self) -> bool:
        """Whether it may start a retraining or a rollback: labels may, an estimate only where it is TRUSTED."""
        if self.outcome is not Outcome.FAILED:
            return False
        return self.kind == "realised" or (self.kind == "estimated" and self.trust == "TRUSTED")

    def to_json(self) -> Json:
        """The finding as JSON."""
        return asdict(self) | {"may_act": self.may_act}
