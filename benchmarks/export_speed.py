"""`mlkit export` of every built-in target, against starting the interpreter.

Bar: at most 0.5 s longer than `python -c pass`, in processor seconds, which other work on the machine moves less than
the wall; no vendor's library is loaded. No recipe fits all targets (a SageMaker endpoint pulls from ECR, a step of
Kubeflow reads Secrets), so there are three. Bytecode is written before the rounds, as an installer does.

    python -m benchmarks.export_speed --rounds 10
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.process import Finished, arguments, interleaved, report, spread, timed

BAR = 0.5
START = "python -c pass"
RECIPE = """\
name: lending
task: classification
data: {{source: {{kind: csv, path: rows.csv}}, target: bad, split: {{kind: random}}}}
model: {{kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}}
serve: {{service: lending, port: 8080, rollout: {rollout}}}
monitor: {{window: 1d}}
delivery:
  registry: {registry}
  requirements: requirements.txt
  policy: {{inconclusive: neutral}}
{rest}
  targets: [{targets}]
"""
CANARY = "{strategy: canary, steps: [5, 25, 50], metrics: [{metric: error_rate, margin: 0.01}]}"
GUARDED = (
    "{strategy: canary, steps: [10], bake_seconds: 600, metrics: [{metric: error_rate, max: 0.01, role: guardrail}, "
    "{metric: latency_p99_ms, max: 80, role: guardrail}]}"
)
_ENVIRONMENTS = "  environments:\n    staging: {promote: automatic}\n    production: {after: staging"
_REPO = "repo: https://github.com/acme/env.git"
_ECR = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
RECIPES = {
    "forges and clusters": RECIPE.format(
        rollout=CANARY,
        registry="{image: ghcr.io/acme/lending, credentials: {env: REGISTRY_TOKEN}}",
        targets="argocd, docker, flux, github, gitlab, jenkins, kubernetes, mlproject",
        rest=f"""\
  triggers: [{{on: pull_request}}, {{on: merge}}, {{on: data}}, {{on: drift}}]
{_ENVIRONMENTS.replace("automatic", f"automatic, {_REPO}")}, {_REPO}}}""",
    ),
    "orchestrators": RECIPE.format(
        rollout=CANARY,
        registry="{image: ghcr.io/acme/lending, credentials: {kubernetes: {name: registry, key: token}}}",
        targets="airflow, kubeflow",
        rest=f"{_ENVIRONMENTS}, promote: automatic}}\n"
        "  kubeflow: {state: lending-state, git: {name: mlkit-git, key: token}}\n"
        "  airflow: {state: lending-state, git: {name: mlkit-git, key: token}, "
        f"repository: 'https://github.com/acme/lending.git', image: 'ghcr.io/acme/steps@sha256:{'5' * 64}'}}",
    ),
    "sagemaker": RECIPE.format(
        rollout=GUARDED,
        registry=f"{{image: {_ECR}/lending, credentials: {{oidc: aws}}}}",
        targets="sagemaker",
        rest=f"{_ENVIRONMENTS}}}\n  sagemaker: {{region: eu-central-1, bucket: acme-models, count: 10, "
        f"role: 'arn:aws:iam::123456789012:role/mlkit', image: '{_ECR}/steps@sha256:{'5' * 64}'}}",
    ),
}
"""Recipes by what they deliver to; their targets together are all that are built in, but for plugins."""


def write_recipe(folder: Path, text: str) -> Path:
    """A git repository with a recipe; returns the recipe."""
    folder.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / "rows.csv").write_text("a,bad\n1,0\n")
    (folder / "requirements.txt").write_text("")
    recipe = folder / "recipe.yaml"
    recipe.write_text(text)
    return recipe


def export_command(recipe: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "mlflowkit.cli", "export", str(recipe), "--out", str(out)]


def main() -> int:
    options = arguments(__doc__ or "", rounds=10).parse_args()
    with tempfile.TemporaryDirectory(prefix="mlkit-export-") as place:
        folder = Path(place)
        bytecode = {"PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
        recipes = {name: write_recipe(folder / name.split()[0], text) for name, text in RECIPES.items()}
        count = iter(range(1 << 20))

        def export(recipe: Path) -> Finished:
            return timed(export_command(recipe, folder / f"out-{next(count)}"), env=bytecode)

        results = interleaved(
            {
                START: lambda: timed([sys.executable, "-c", "pass"], env=bytecode),
                **{name: (lambda recipe=recipe: export(recipe)) for name, recipe in recipes.items()},
            },
            options.rounds,
        )
    rows = [_row(name, finished, results[START]) for name, finished in results.items()]
    report("export_speed", rows, options.out)
    return int(any(row["beyond"].median > BAR for row in rows if "beyond" in row))


def _row(name: str, finished: Sequence[Finished], starts: Sequence[Finished]) -> dict[str, Any]:
    row: dict[str, Any] = {"what": name, "wall": spread([one.seconds for one in finished])}
    if name == START:
        return row
    beyond = [one.cpu_seconds - start.cpu_seconds for one, start in zip(finished, starts, strict=True)]
    files = sum(line.startswith("new ") for line in finished[0].output.splitlines())
    return row | {"files": files, "beyond": spread(beyond), "bar": f"<= {BAR} s"}


if __name__ == "__main__":
    sys.exit(main())
