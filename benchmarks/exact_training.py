"""Whether kills and other numbers of workers change a training's weights: ``python -m benchmarks.exact_training``.

The models of `benchmarks.training_workers` are trained by one process without interruption, and then again and again by
1, 2 or 4 processes of which all are killed at a random moment and another number goes on from the checkpoint, until the
training is done. A line for each model: how many interrupted trainings, how many kills, and how many of them ended with
the same SHA-256 of the weights.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.training_workers import JOBS, prepare_folder, start_workers

SIZES = (1, 2, 4)
EPOCHS = 60
MOST_KILLS = 3
"""Kills of one training; it then goes on undisturbed."""


def weights_digests(folder: Path, size: int) -> dict[str, str]:
    """SHA-256 of each job's weights."""
    files = {name: folder / f"{name}-{size}.safetensors" for name in JOBS}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def finish(processes: list[subprocess.Popen[bytes]], seconds: float | None) -> bool:
    """Wait for the workers, or kill them all after some seconds; returns whether they had finished."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while any(process.poll() is None for process in processes):
        if deadline is not None and time.monotonic() >= deadline:
            for process in processes:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return False
        time.sleep(0.02)
    for process in processes:
        if process.returncode != 0:
            raise SystemExit((process.stderr.read() if process.stderr else b"").decode())
    return True


def interrupted(draw: random.Random, seconds: float) -> tuple[dict[str, str], int]:
    """Train with kills; returns the digests and the number of kills."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_folder(folder, epochs=EPOCHS, early_stopping=None)
        size = draw.choice(SIZES)
        for kills in range(MOST_KILLS + 1):
            limit = None if kills == MOST_KILLS else draw.uniform(0.2, 1.2) * seconds
            if finish(start_workers(folder, folder / f"store-{kills}", [size]), limit):
                break
            size = draw.choice([other for other in SIZES if other != size])
        return weights_digests(folder, size), kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainings", type=int, default=17, help="interrupted trainings (default 17, of 3 models)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_folder(folder, epochs=EPOCHS, early_stopping=None)
        begun = time.monotonic()
        finish(start_workers(folder, folder / "store", [1]), None)
        seconds, expected = time.monotonic() - begun, weights_digests(folder, 1)
    same, kills = dict.fromkeys(JOBS, 0), 0
    for number in range(options.trainings):
        digests, times = interrupted(draw, seconds)
        kills += times
        same = {job: count + (digests[job] == expected[job]) for job, count in same.items()}
        print(f"training {number + 1}: {times} kills", flush=True)
    for job, count in same.items():
        print(f"{job}: {count} of {options.trainings} trainings, killed {kills} times in all, have the same weights")


if __name__ == "__main__":
    main()
