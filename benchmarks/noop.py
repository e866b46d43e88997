"""A run in which everything is reused, against a no-op `dvc repro` of three trivial stages.

Bars: at most 0.35 times dvc, and at most 120 MB. `planned` is the same run when a file was touched but not changed, so
that the receipt of the last run is no longer good and everything is planned anew. dvc lives in an environment of its
own, made on first use under benchmarks/.cache.

    python -m benchmarks.noop --rounds 10
    python -m benchmarks.noop --recipe recipes/lending.yaml --deployed    # with the service up, and asked
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.process import CACHE, Finished, arguments, interleaved, ratios, report, spread, timed

ROOT = Path(__file__).parent.parent
DVC = "dvc==3.67.0"
OURS, PLANNED, PEER = "mlkit run, nothing to do", "mlkit run, planned", "dvc repro, nothing to do"
MLKIT = (sys.executable, "-c", "from mlflowkit.cli import main; main()")


def dvc() -> Path:
    """The dvc command, installed once into an environment of its own."""
    home = CACHE / "dvc"
    command = home / "bin" / "dvc"
    if not command.exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([home / "bin" / "python", "-m", "pip", "install", "--quiet", DVC], check=True)
    return command


def dvc_project(folder: Path, command: Path) -> None:
    """Three stages, each a copy of a small file, run once."""
    subprocess.run([command, "init", "--quiet", "--no-scm"], cwd=folder, check=True)
    (folder / "in.txt").write_text("one row\n")
    for name, before, after in (("a", "in", "a"), ("b", "a", "b"), ("c", "b", "c")):
        stage = ["stage", "add", "--quiet", "-n", name, "-d", f"{before}.txt", "-o", f"{after}.txt"]
        subprocess.run([command, *stage, f"cp {before}.txt {after}.txt"], cwd=folder, check=True)
    subprocess.run([command, "repro", "--quiet"], cwd=folder, check=True)


@contextmanager
def recipe_folder(recipe: Path) -> Iterator[Path]:
    """A copy of the recipe's folder, so that its own state is left alone."""
    with tempfile.TemporaryDirectory(prefix="mlkit-noop-") as place:
        folder = Path(place) / "recipes"
        shutil.copytree(recipe.parent, folder, ignore=shutil.ignore_patterns(".mlkit", "__pycache__"))
        yield folder / recipe.name


def main() -> None:
    parser = arguments(__doc__ or "", rounds=10)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "lending.yaml")
    parser.add_argument("--deployed", action="store_true", help="deploy too, on a free port")
    options = parser.parse_args()
    command = dvc()
    with recipe_folder(options.recipe) as recipe, tempfile.TemporaryDirectory(prefix="dvc-noop-") as place:
        work = Path(place)
        dvc_project(work, command)
        asked = ["serve.port=0"] if options.deployed else ["--until", "package"]
        run = [*MLKIT, "run", str(recipe), *asked]
        try:
            for _ in range(3):  # the last of them leaves a receipt
                subprocess.run(run, check=True, stdout=subprocess.DEVNULL)

            def planned() -> Finished:
                os.utime(recipe)
                return timed(run)

            def again() -> Finished:
                return timed(run)

            def peer() -> Finished:
                return timed([str(command), "repro"], cwd=work, env={"DVC_NO_ANALYTICS": "1"})

            results = interleaved({OURS: again, PEER: peer}, options.rounds)
            slow = interleaved({PLANNED: planned, PEER: peer}, options.rounds)
        finally:
            if options.deployed:
                subprocess.run([*MLKIT, "down", "--state", str(recipe.parent / ".mlkit")], check=False)
    for finished in results[OURS]:
        if "nothing to do" not in finished.output:
            raise RuntimeError(f"something was done:\n{finished.output}")
    show(results, slow, options.out)


def show(results: dict[str, list[Finished]], slow: dict[str, list[Finished]], out: Path | None) -> None:
    found = {OURS: results[OURS], PLANNED: slow[PLANNED], PEER: results[PEER]}
    rows = [
        {
            "what": name,
            "wall": spread([one.seconds for one in finished]),
            "peak memory": spread([one.peak_mb for one in finished], "MB"),
        }
        for name, finished in found.items()
    ]
    rows[0] |= {"ratio": ratios(results, OURS, PEER), "bar": "<= 0.35x, <= 120 MB"}
    rows[1] |= {"ratio": ratios(slow, PLANNED, PEER), "bar": ""}
    report("nothing to do", rows, out)


if __name__ == "__main__":
    main()
