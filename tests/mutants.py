"""Mutation testing of what decides: mlflowkit/judging and mlflowkit/rollout/policy.py, by mutmut.

``python -m tests.mutants`` tests every mutant, ``--sample 200 --seed 1`` a random sample. Printed are the survivors
with their differences, and the score with its 95 % Wilson interval. A mutant that no test reaches has survived; one
that runs out of time is killed. What is mutated and which tests run is in pyproject.toml, ``[tool.mutmut]``.

mutmut works in a copy of the tree (``--folder``, by default a temporary folder): the checkout is not touched.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from scipy.stats import binomtest

from tests.support import ROOT

COPIED = ("mlflowkit", "tests", "benchmarks", "recipes", "pyproject.toml")
SURVIVED = ("survived", "no tests", "suspicious")


def copy_tree(folder: Path) -> None:
    """Copy what mutmut needs of the checkout."""
    ignore = shutil.ignore_patterns("__pycache__", ".cache", ".mlkit")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, folder / name)


def generate(jobs: int) -> list[str]:
    """Write the mutants in the current folder; their names."""
    from mutmut import __main__ as mutmut  # reads the configuration in the current folder at its import

    mutmut.set_mutant_under_test("mutant_generation")
    Path("mutants").mkdir()
    mutmut.copy_src_dir()
    mutmut.copy_also_copy_files()
    mutmut.setup_source_paths()
    mutmut.create_mutants(jobs)
    mutants, _ = mutmut.collect_source_file_mutation_data(mutant_names=())
    return sorted(name for _, name, _ in mutants)


def run(names: list[str], jobs: int) -> dict[str, str]:
    """Test mutants; the status of each."""
    from mutmut import __main__ as mutmut

    mutmut._run(names, jobs)
    mutants, _ = mutmut.collect_source_file_mutation_data(mutant_names=names)
    return {name: mutmut.status_by_exit_code[code] for _, name, code in mutants}


def differences(names: list[str]) -> dict[str, str]:
    """What each mutant changes, as a diff."""
    from mutmut import __main__ as mutmut

    return {name: mutmut.get_diff_for_mutant(name, path=mutmut.find_mutant(name).path) for name in names}


def summary(statuses: dict[str, str], total: int) -> str:
    """The score of the mutants that were tested."""
    killed = sum(status not in SURVIVED for status in statuses.values())
    low, high = binomtest(killed, len(statuses)).proportion_ci(0.95, method="wilson")
    share = f"{killed / len(statuses):.1%}, 95 % interval {low:.1%} to {high:.1%}"
    return f"{killed} of {len(statuses)} mutants killed ({total} exist): {share}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="number of mutants (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="of the sample (default: 1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--min-score", type=float, default=0.0, help="exit with 1 below this score")
    parser.add_argument("--folder", type=Path, help="an empty or missing folder to work in, kept afterwards")
    arguments = parser.parse_args()
    os.environ.setdefault("HYPOTHESIS_PROFILE", "fast")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary) / "tree").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        copy_tree(folder)
        os.chdir(folder)
        names = generate(arguments.jobs)
        sample = min(arguments.sample or len(names), len(names))
        statuses = run(sorted(random.Random(arguments.seed).sample(names, sample)), arguments.jobs)
        survivors = sorted(name for name, status in statuses.items() if status in SURVIVED)
        for name, difference in differences(survivors).items():
            print(f"# {name}: {statuses[name]}\n{difference}")
        os.chdir(ROOT)
    print(summary(statuses, len(names)) + f", in {time.monotonic() - begin:.0f} s")
    return int(1 - len(survivors) / len(statuses) < arguments.min_score)


if __name__ == "__main__":
    sys.exit(main())
