"""The forest plot of the gates, byte for byte."""

from __future__ import annotations

from mlflowkit.report.run import gate_views
from mlflowkit.values import Measurement, Outcome, Verdict
from tests.support.golden import Golden

AUC = Measurement("roc_auc", 0.7276, 0.6596, 0.7865, samples=1479, method="DeLong, logit")
VERDICTS = (
    Verdict("roc_auc >= 0.65", Outcome.PASSED, "lower bound 0.66 >= min 0.65", "roc_auc", AUC, 0.65),
    Verdict("roc_auc >= 0.7", Outcome.INCONCLUSIVE, "0.66 < min 0.7 <= 0.786", "roc_auc", AUC, 0.70),
    Verdict("roc_auc >= 0.8", Outcome.FAILED, "upper bound 0.786 < min 0.8", "roc_auc", AUC, 0.80, blocking=False),
    Verdict(
        "roc_auc >= 0.5 by term",
        Outcome.PASSED,
        "lower bound 0.587 >= min 0.5",
        "roc_auc",
        Measurement("roc_auc", 0.734, 0.587, 0.842, samples=402, confidence=0.975, method="DeLong, logit"),
        0.5,
        slice="term=term_60",
    ),
)


def test_forest_of_the_gates_is_drawn_as_it_was(golden: Golden) -> None:
    family = gate_views.family("roc_auc", VERDICTS)
    drawn = "\n".join([*(row["svg"] for row in family["rows"]), family["axis"], ""])
    golden("report_forest.html", drawn)
