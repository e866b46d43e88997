"""From `mlkit run` to the first answered request: the first time, and with the local Ray already up.

Each round starts from an empty state folder: `first` starts the local Ray while the stages run (its seconds are hidden
where training takes as long); `warm` is the same recipe, another seed, with Ray and the gateway up. No bar: the table
says where the seconds go, stage by stage, as the journal has them.

    python -m benchmarks.first_answer --rounds 3 [--recipe recipes/lending.yaml] [train.epochs=3 ...]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.process import arguments, report, spread

ROOT = Path(__file__).parent.parent
MLKIT = (sys.executable, "-c", "from mlflowkit.cli import main; main()")


def mlkit(*words: str) -> Any:
    """The JSON that a command prints. Raises RuntimeError with what it said when it fails."""
    done = subprocess.run([*MLKIT, *words, "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"mlkit {' '.join(words)} exited with {done.returncode}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def first_answer(recipe: Path, state: Path, overrides: list[str]) -> dict[str, float]:
    """Run a recipe and ask its endpoint; seconds of the whole, of each stage and of the request."""
    begin = time.perf_counter()
    run = mlkit("run", str(recipe), *overrides, "serve.port=0", "--state", str(state))
    ran = time.perf_counter()
    bundle = next((state / "objects").glob("*/bundle/evidence/sample.json"))
    body = json.dumps({"rows": json.loads(bundle.read_bytes())["rows"][:1]}).encode()
    asked = urllib.request.Request(f"{run['endpoint']}/predict", body, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as reply:
        json.loads(reply.read())
    end = time.perf_counter()
    stages = {step["stage"]: float(step["seconds"]) for step in run["steps"]}
    rest = ran - begin - sum(stages.values())
    return {"total": end - begin, **stages, "start, plan, report": rest, "request": end - ran}


def main() -> None:
    parser = arguments(__doc__ or "", rounds=3)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "lending.yaml")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of the recipe")
    options = parser.parse_args()
    first: list[dict[str, float]] = []
    warm: list[dict[str, float]] = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="mlkit-first-") as place:
            folder = Path(place) / "recipes"
            shutil.copytree(options.recipe.parent, folder, ignore=shutil.ignore_patterns(".mlkit", "__pycache__"))
            recipe, state = folder / options.recipe.name, Path(place) / "state"
            try:
                first.append(first_answer(recipe, state, [*options.overrides, f"seed={100 + number}"]))
                warm.append(first_answer(recipe, state, [*options.overrides, f"seed={200 + number}"]))
            finally:
                mlkit("down", "--state", str(state))
    rows = [
        {"part": part, "first": spread([one[part] for one in first]), "warm": spread([one[part] for one in warm])}
        for part in first[0]
    ]
    report(f"from mlkit run {options.recipe.name} to the first answer", rows, options.out)


if __name__ == "__main__":
    main()
