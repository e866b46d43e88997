"""`make demo` on a busy machine: the same command from a fresh state folder, beside busy loops.

Bar: every round exits with 0. `again` is a run of another seed in the same state, so that its gate on time compares two
models in turns on the busy machine; it may not be FAILED by it (exit 1), nor remembered.

    python -m benchmarks.busy --rounds 10
    python -m benchmarks.busy --rounds 3 --loops 8 --until package    # without a service
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.process import arguments, report

ROOT = Path(__file__).parent.parent
MLKIT = (sys.executable, "-c", "from mlflowkit.cli import main; main()")
BUSY = "while True: pass"


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Processes that want a core all the time; they end with the context."""
    loops = [subprocess.Popen([sys.executable, "-S", "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run(recipe: Path, state: Path, *words: str) -> dict[str, Any]:
    """One `mlkit run`: exit code, wall seconds, load, outcomes of its gates, and its error where it failed."""
    begin = time.perf_counter()
    command = [*MLKIT, "run", str(recipe), "--state", str(state), "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    try:
        summary = json.loads(done.stdout)
    except ValueError:
        summary = {"error": {"message": done.stderr[-2000:]}}
    verdicts = [(verdict["verdict"], verdict["gate"]) for verdict in summary.get("verdicts", ())]
    return {
        "exit": done.returncode,
        "seconds": round(seconds, 1),
        "load": round(os.getloadavg()[0], 1),
        "inconclusive": [gate for verdict, gate in verdicts if verdict == "INCONCLUSIVE"],
        "failed": [gate for verdict, gate in verdicts if verdict == "FAILED"],
        "error": (summary.get("error") or {}).get("message", "")[:300],
    }


def main() -> int:
    parser = arguments(__doc__ or "", rounds=10)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "lending.yaml")
    parser.add_argument("--loops", type=int, default=8, help="busy loops beside the run")
    parser.add_argument("--until", help="the last stage; without it the service is deployed on a free port")
    options = parser.parse_args()
    last = ["--until", options.until] if options.until else ["serve.port=0"]
    rows = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="mlkit-busy-", ignore_cleanup_errors=True) as place:
            state = Path(place)
            try:
                with busy_loops(options.loops):
                    demo = run(options.recipe, state, *last)
                    again = run(options.recipe, state, *last, f"seed={number + 1}") if demo["exit"] == 0 else {}
            finally:
                down = subprocess.run(
                    [*MLKIT, "down", "--state", str(state)], capture_output=True, text=True, check=False
                )
                if down.returncode:
                    print(f"mlkit down exited with {down.returncode}: {down.stderr[-500:]}", file=sys.stderr)
            named = {"": demo, "again: ": again}
            rows.append(
                {"round": number + 1}
                | {f"{name}{key}": value for name, one in named.items() for key, value in one.items()}
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            report(f"mlkit run {options.recipe.name} beside {options.loops} busy loops", rows, options.out)
    good = sum(row["exit"] == 0 for row in rows)
    print(f"{good} of {len(rows)} exit 0 (bar: all)")
    return 0 if good == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
