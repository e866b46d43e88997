"""All benchmarks, one after the other, with their JSON in benchmarks/results/: the figures of docs/figures.md.

python -m benchmarks.run [NAME ...]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = (
    "help",
    "export_speed",
    "noop",
    "cold",
    "first_answer",
    "busy",
    "rows",
    "latency",
    "overhead",
    "comparisons",
    "reproducible",
    "search",
    "int8",
    "gpu_latency",
    "infer",
    "tensors",
    "mirror",
    "swap",
    "kill",
    "kill_profiles",
    "profile_cost",
    "monitored",
    "overload",
    "abuse",
    "canary",
    "rollouts",
    "sequential",
    "drift_rates",
    "fairness",
    "data_checks",
)
RESULTS = Path(__file__).parent / "results"


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or NAMES:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(RESULTS / f"{name}.json")]
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(name)
        print(flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
