"""The forest plot of the gates, byte for byte.

A change of its looks is meant to be seen: delete ``report_forest.html``, run this test twice, and look at the file.
"""

from __future__ import annotations

from pathlib import Path

from mlflowkit.report.run import gate_views
from mlflowkit.values import Measurement, Outcome, Verdict

GOLDEN = Path(__file__).with_name("report_forest.html")

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


def test_forest_of_the_gates_is_drawn_as_it_was() -> None:
    family = gate_views.family("roc_auc", VERDICTS)
    drawn = "\n".join([*(row["svg"] for row in family["rows"]), family["axis"], ""])
    if not GOLDEN.exists():
        GOLDEN.write_text(drawn, encoding="utf-8")
        raise AssertionError(f"{GOLDEN} was missing and is written; look at it and run the test again")
    assert drawn == GOLDEN.read_text(encoding="utf-8")
