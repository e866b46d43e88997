"""A cold `mlkit run recipes/lending.yaml --until package` (workers: 0) against a bare script in one process.

Bar: at most 1.5 times the script. Every counted run starts from an empty state folder. The script writes one graph and
looks for no other, so the run tries two of the recipe's candidates; what trying all of them takes, the recipe's own
run says.

    python -m benchmarks.cold --rounds 5
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.process import Finished, arguments, interleaved, ratios, report, spread, timed

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "lending.yaml"
OVERRIDES = ("optimize.candidates=[onnx,onnx-int8]",)


def cold_run() -> Finished:
    state = Path(tempfile.mkdtemp(prefix="mlkit-cold-"))
    try:
        command = ["-c", "from mlflowkit.cli import main; main()", "run", str(RECIPE), *OVERRIDES, "--until", "package"]
        return timed([sys.executable, *command, "--state", str(state)], cwd=ROOT)
    finally:
        shutil.rmtree(state, ignore_errors=True)


def bare_script() -> Finished:
    return timed([sys.executable, "-m", "benchmarks.bare_lending", str(RECIPE)], cwd=ROOT)


def main() -> None:
    options = arguments(__doc__ or "", rounds=5).parse_args()
    results = interleaved({"mlkit run --until package": cold_run, "bare script": bare_script}, options.rounds)
    rows = [
        {
            "what": name,
            "wall": spread([f.seconds for f in finished]),
            "peak memory": spread([f.peak_mb for f in finished], "MB"),
        }
        for name, finished in results.items()
    ]
    ratio = ratios(results, "mlkit run --until package", "bare script")
    rows[0]["ratio"] = ratio
    rows[0]["bar"] = "<= 1.5x"
    report("cold run", rows, options.out)


if __name__ == "__main__":
    main()
