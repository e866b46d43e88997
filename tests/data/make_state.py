"""Writes the fixture of a version's state folder: ``python tests/data/make_state.py PORT OUT.tar.gz``.

A recipe of 120 rows is run, serves, answers and takes feedback; a second version begins a canary; a third run is killed
in training. `tests/integration/test_old_state.py` opens the archive with the code of the day. Run this before a change
of a format on disk, with the code that writes the old one, and never replace an archive.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path
from typing import Any

FOLDER = Path("/tmp/mlkit-old-state")
MLKIT = (sys.executable, "-c", "from mlflowkit.cli import main; main()")
LEFT_OUT = ("mlflow.db", "mlflow.lock", "mlartifacts", "ray", "logs", "trials", "receipts")
"""Of vendors, of this machine, or rebuilt when missing."""
RECIPE = """\
name: tiny
task: classification
seed: 7
data:
  source: {kind: csv, path: rows.csv}
  target: y
  drop: [id]
  columns: {colour: categorical}
  split: {kind: random, validation: 0.15, test: 0.3}
model:
  kind: sklearn
  module: sklearn.linear_model:LogisticRegression
optimize: {candidates: [onnx]}
gates:
  - {metric: accuracy, min: 0.5, on_inconclusive: allow}
serve:
  service: tiny
  port: PORT
  rollout:
    strategy: canary
    steps: [0, 50]
    metrics: [{metric: error_rate, margin: 0.05}]
"""


def main() -> None:
    port, out = int(sys.argv[1]), Path(sys.argv[2]).resolve()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    rows = [f"{i},{('red', 'blue')[i % 3 == 0]},{i * 7 % 50},{int(i * 7 % 50 > 24)}" for i in range(120)]
    (FOLDER / "rows.csv").write_text("id,colour,size,y\n" + "\n".join(rows) + "\n")
    (FOLDER / "recipe.yaml").write_text(RECIPE.replace("PORT", str(port)))
    try:
        mlkit("run", "recipe.yaml")
        ask(port)
        mlkit("run", "recipe.yaml", "seed=8")
        ask(port)
        mlkit("rollout", "status", "tiny")
    finally:
        mlkit("down")
    mlkit("run", "recipe.yaml", "seed=9", "--until", "package", failpoint="stage.returned@train")
    forget_this_machine(FOLDER / ".mlkit" / "journal.db")
    with tarfile.open(out, "w:gz") as archive:
        archive.add(FOLDER, ".", filter=kept)
    sys.stderr.write(f"{out}: {out.stat().st_size:,} bytes\n")


def forget_this_machine(journal: Path) -> None:
    """Drop the digests of installed files, which name the paths of this machine."""
    with contextlib.closing(sqlite3.connect(journal)) as connection:
        connection.execute("DELETE FROM file_digests")
        connection.commit()
        connection.execute("VACUUM")


def mlkit(*arguments: str, failpoint: str = "") -> None:
    environment = {**os.environ, "MLKIT_FAILPOINT": failpoint, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([*MLKIT, *arguments], cwd=FOLDER, env=environment, check=not failpoint)


def ask(port: int) -> None:
    """Send rows and the truth about them, and leave the observer time to write both."""
    for size in range(20):
        answer = post(port, "/predict", {"rows": [{"colour": "red", "size": size}]})
        post(port, "/v2/feedback", {"id": answer["id"], "label": 0})
    time.sleep(3)


def post(port: int, path: str, body: Any) -> Any:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def kept(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """What goes into the archive, without names of this machine's users."""
    parts = Path(info.name).parts
    if len(parts) > 1 and parts[0] == ".mlkit" and parts[1].startswith(LEFT_OUT):
        return None
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


if __name__ == "__main__":
    main()
