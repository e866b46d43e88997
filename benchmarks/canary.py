"""A real canary with a planted regression: 1 % of the champion's requests fail and 3 % of the challenger's, at 5 % of
the traffic. How many requests until it is rolled back, held against what `mlkit simulate` states for the same plan
(bar: the median is no more than its 90th percentile), and how long from the verdict until the last client is given to
it (bar: 1 s).

Errors are rows for which the graph has no finite answer. 400 requests a second, two gateway replicas.

    python -m benchmarks.canary --rollouts 3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import planted
from benchmarks.infer import RECIPE, ROOT
from benchmarks.process import arguments, report, spread
from benchmarks.service import Line, Service, service
from mlflowkit.bundle import Bundle
from mlflowkit.rollout import state as states
from mlflowkit.rollout.settings import Rollout
from mlflowkit.rollout.state import Request, RolloutState
from mlflowkit.system.files import replace_file
from mlflowkit.values import Outcome

RATE, SECONDS, DEADLINE = 400.0, 75.0, 150.0
BASE, MORE = 0.01, 0.02
COLUMN, WORSE, BOTH = "annual_inc", 1e7, 1e8
PLAN: dict[str, Any] = {
    "strategy": "canary",
    "steps": [5],
    "metrics": [{"metric": "error_rate", "margin": 0.0}],
    "min_samples": 5000,
    "bake_seconds": 0,
    "max_seconds": DEADLINE,
    "cooldown_seconds": 0,
}
SECONDS_BAR = 1.0


def stated() -> dict[str, float]:
    """What `mlkit simulate` says of the same plan and regression: the challenger's requests until it is found out."""
    folder = Path(sys.executable).parent
    plan = "+serve.rollout=" + json.dumps(PLAN).replace(" ", "").replace('"', "")
    options = ["--rollouts", "200", "--rate", str(RATE), "--error-rate", str(BASE), "--error-increase", str(MORE)]
    done = subprocess.run(
        [folder / "mlkit", "simulate", str(RECIPE), plan, *options, "--json"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)["scenarios"][0]
    return dict(found["found_tried"])


def bodies(lending: Service) -> list[str]:
    """Options of the steady client: a share of rows that only the challenger fails, and of rows that both fail."""
    row = json.loads(lending.body.read_bytes())
    columns = next(tensor.columns for tensor in lending.champion.signature.inputs if COLUMN in tensor.columns)
    options = []
    for name, value, share in (("worse", WORSE * 2, MORE), ("both", BOTH * 2, BASE)):
        tensor = next(one for one in row["inputs"] if one["name"] == "numeric")
        tensor["data"][columns.index(COLUMN)] = value
        file = lending.folder / f"{name}.json"
        file.write_text(json.dumps(row))
        options += ["--mix", str(file), str(share)]
    return options


def rolled_out(lending: Service, champion: Bundle, worse: Bundle, number: int) -> tuple[RolloutState, list[Line]]:
    """One rollout to its end, under load."""
    lending.publish((lending.variant(champion, "champion"),))
    folder = lending.folder / "state" / "services" / "lending"
    (folder / "failed.json").unlink(missing_ok=True)
    request = Request(
        f"bench-{number}", "lending", lending.variant(worse, "challenger", role="challenger"),
        Rollout.model_validate(PLAN), time.time(),
    )  # fmt: skip
    with lending.steady(RATE, SECONDS, "--users", "100000", *bodies(lending)) as lines:
        replace_file(folder / "request.json", json.dumps(request.to_json()).encode())
        deadline = time.monotonic() + DEADLINE + 30
        while True:
            saved = states.read(lending.files)
            if saved is not None and saved.state.experiment == request.id and saved.state.ended:
                break
            if time.monotonic() > deadline:
                raise SystemExit(f"the rollout did not end: {saved}")
            time.sleep(0.1)
        found = lines()
    return saved.state, found


def main() -> None:
    parser = arguments(__doc__ or "", rounds=3)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    options = parser.parse_args()
    expected = stated()
    rows, took, asked, good = [], [], [], True
    with service(replicas=2) as lending:
        champion = planted.errors(lending.champion, lending.folder / "both", COLUMN, BOTH)
        worse = planted.errors(lending.champion, lending.folder / "worse", COLUMN, WORSE)
        for number in range(options.rounds):
            state, lines = rolled_out(lending, champion, worse, number)
            verdict = next(
                look.time for look in state.history if any(one.outcome == Outcome.FAILED for one in look.readings)
            )
            last = max((line.due for line in lines if line.variant == "challenger"), default=verdict)
            took.append(max(0.0, last - verdict))
            asked.append(float(state.counts.challenger))
            good &= state.phase == "rolled_back" and "FAILED" in state.reason
            rows.append({"rollout": number + 1, "end": state.phase, "reason": state.reason})
    summary = {
        "its requests until the verdict": spread(asked, ""),
        "stated: median": expected["median"],
        "stated: 90 %": expected["p90"],
        "verdict to 0 % of traffic": spread(took),
    }
    report(f"+{MORE:.0%} of errors over {BASE:.0%} at 5 % of {RATE:g} requests a second", [summary], options.out)
    for row in rows:
        print(f"  {row['rollout']}: {row['end']}: {row['reason']}")
    print(f"  bar: median within the stated 90 %; {SECONDS_BAR:g} s")
    raise SystemExit(int(not good or median(asked) > expected["p90"] or max(took) > SECONDS_BAR))


if __name__ == "__main__":
    main()
