"""The fraud recipe from a pull request to production: judged, merged, promoted, rolled back, and trained again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import planted
from mlflowkit.bundle import open_bundle
from mlflowkit.ci.comments.commenting import comment
from mlflowkit.ci.judge_report import read_report
from mlflowkit.delivery.gitops.desired_delivery import DesiredDelivery, parse_delivery
from tests.support.fake_forge import TOKEN, FakeForge, fake_forge
from tests.support.gitops_world import FollowingGateway, MountedFile, SteadyTraffic
from tests.support.ports import free_port
from tests.support.registries import FakeRegistry, served_registry
from tests.support.waiting import wait_for
from tests.support.warm_commands import warm_command

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1500)]

RECIPES = Path(__file__).parents[2] / "recipes"
ENVIRONMENTS = ("staging", "production")
ROLLOUT = {
    "strategy": "canary", "steps": [10, 50], "min_samples": 60, "bake_seconds": 0, "cooldown_seconds": 0,
    "max_seconds": 600,
    "metrics": [{"metric": "prediction_drift", "max": 0.1}, {"metric": "error_rate", "margin": 0.05}],
}  # fmt: skip


class DeliveredRecipe:
    """A project with a bare remote, its environments in another repository, a forge, a registry and two gateways."""

    def __init__(self, folder: Path, registry: str, forge: FakeForge) -> None:
        self.folder, self.registry, self.forge = folder, registry, forge
        self.environments = folder / "environments.git"
        self.checkout = folder / "project"
        self.recipe = self.checkout / "recipes" / "fraud.yaml"
        self.state = folder / "runner"
        for remote in (self.environments, folder / "origin.git"):
            run(["git", "init", "-q", "--bare", "-b", "main", str(remote)])
        run(["git", "init", "-q", "-b", "main", str(self.checkout)])
        self.recipe.parent.mkdir()
        for name in ("fraud.py", "requirements.txt"):
            (self.recipe.parent / name).write_bytes((RECIPES / name).read_bytes())
        (self.checkout / ".gitignore").write_text("__pycache__\n")
        self._write_recipe()
        self.git("remote", "add", "origin", str(folder / "origin.git"))
        self.commit("The fraud model")
        self.git("push", "-q", "origin", "main")
        self.mounted = {name: MountedFile(folder / f"mounted-{name}") for name in ENVIRONMENTS}
        self.gateways: dict[str, FollowingGateway] = {}

    def _write_recipe(self) -> None:
        recipe = yaml.safe_load((RECIPES / "fraud.yaml").read_text())
        recipe["serve"]["rollout"] = ROLLOUT
        recipe["retrain"] = {"on": ["performance"], "budget": {"runs": 2, "per": "60d"}}
        places = {name: {"repo": str(self.environments), "promote": "automatic"} for name in ENVIRONMENTS}
        places["production"] |= {"after": "staging", "baking": "1s"}
        recipe["delivery"] |= {
            "registry": {"image": f"{self.registry}/acme/fraud"}, "environments": places,
            "triggers": [{"on": "pull_request"}, {"on": "merge"}, {"on": "drift"}],
        }  # fmt: skip
        self.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))

    def change(self, old: str, new: str) -> None:
        text = self.recipe.read_text()
        assert old in text
        self.recipe.write_text(text.replace(old, new))

    def git(self, *arguments: str) -> str:
        who = ("-c", "user.name=Test", "-c", "user.email=test@example.com")
        return run(["git", *who, *arguments], cwd=self.checkout)

    def commit(self, message: str) -> str:
        self.git("add", "-A")
        self.git("commit", "-qm", message)
        return self.git("rev-parse", "HEAD").strip()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command as a pipeline runs it."""
        return subprocess.run(
            [*warm_command("mlflowkit.cli"), *arguments, "--json"],
            cwd=self.checkout, capture_output=True, text=True, timeout=500, check=False,
            env={**os.environ, "MLKIT_STATE": str(self.state)},
        )  # fmt: skip

    def mlkit(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """The JSON of a command that a pipeline runs."""
        done = self.run(*arguments)
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-6000:]
        value: dict[str, Any] = json.loads(done.stdout)
        return value

    def judge(self, name: str, *more: str) -> dict[str, Any]:
        """Judge the checkout as a job does, with its outputs beside the checkout."""
        out = str(self.out(name))
        return self.mlkit("ci", "judge", "recipes/fraud.yaml", "--environment", "production", "--out", out, *more)

    def out(self, name: str) -> Path:
        return self.folder / "out" / name

    def comment_on(self, head: str, name: str) -> None:
        """What the comment's job does on a pull request."""
        self.forge.head = head
        event = self.folder / "event.json"
        event.write_text(json.dumps({"pull_request": {"number": 7, "head": {"sha": head}}}))
        variables = {
            "GITHUB_ACTIONS": "true", "GITHUB_TOKEN": TOKEN, "GITHUB_REPOSITORY": "acme/lending",
            "GITHUB_API_URL": self.forge.url, "GITHUB_EVENT_PATH": str(event),
        }  # fmt: skip
        assert comment(read_report(self.out(name) / "report.json"), "github", variables).warning == ""

    def squash(self, branch: str) -> None:
        """Merge a pull request as a forge does: one new commit on main."""
        self.git("checkout", "-q", "main")
        self.git("merge", "-q", "--squash", branch)
        self.git("commit", "-qm", f"{branch} (#7)")
        self.git("push", "-q", "origin", "main")

    def push_bundle(self, name: str) -> None:
        bundle = self.out(name) / "bundle"
        self.mlkit("image", "push", str(bundle), f"{self.registry}/acme/fraud-bundle")

    def promote(self, environment: str, name: str) -> dict[str, Any]:
        """Promote a version, as soon as it has baked in the environment before."""
        report = str(self.out(name) / "report.json")
        command = ("gitops", "promote", "recipes/fraud.yaml", "--environment", environment, "--from", report)
        wait_for(lambda: "has been champion of" not in self.refusal(*command), what="baking", poll=0.2)
        answer = self.mlkit(*command)
        self.sync(environment)
        return answer

    def refusal(self, *command: str) -> str:
        """Why a command would be refused; "" where it would not."""
        done = self.run(*command, "--dry-run")
        return "" if done.returncode == 0 else str(json.loads(done.stdout)["error"]["message"])

    def settle(self, environment: str) -> dict[str, Any]:
        where = ("--environment", environment, "--gateway", self.gateways[environment].url, "--wait", "600s")
        answer = self.mlkit("gitops", "settle", "recipes/fraud.yaml", *where)
        self.sync(environment)
        return answer

    def desired(self, environment: str) -> DesiredDelivery:
        path = f"deploy/overlays/{environment}/delivery.yaml"
        return parse_delivery(run(["git", "-C", str(self.environments), "show", f"main:{path}"]))

    def sync(self, environment: str) -> None:
        path = f"deploy/overlays/{environment}/delivery.yaml"
        self.mounted[environment].replace(run(["git", "-C", str(self.environments), "show", f"main:{path}"]))

    def start(self, environment: str) -> None:
        folder = self.folder / environment
        folder.mkdir()
        self.gateways[environment] = FollowingGateway(self.mounted[environment].file, free_port(), folder)
        self.gateways[environment].wait_ready()

    def deliver(self, environment: str, name: str, rows: Sequence[dict[str, Any]], outcome: str) -> dict[str, Any]:
        """Promote a version, roll it out under load without a failed request, and settle it."""
        assert self.promote(environment, name)["action"] == "promoted"
        with SteadyTraffic(self.gateways[environment].url, rows) as traffic:
            answer = self.settle(environment)
            self.gateways[environment].wait_record("the settlement", fault="", action="none")
        assert traffic.failed == []
        assert answer["action"] == "settled"
        assert outcome in answer["reason"]
        return answer


def run(command: Sequence[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeliveredRecipe]:
    registry = FakeRegistry()
    with served_registry(registry) as host, fake_forge() as forge:
        made = DeliveredRecipe(tmp_path_factory.mktemp("delivery"), host, forge)
        try:
            yield made
        finally:
            for gateway in made.gateways.values():
                gateway.stop()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Transactions as clients send them."""
    sys.path.insert(0, str(RECIPES))
    try:
        import fraud

        table = fraud.draw(1, fraud.World(7, "none", 0, None, 2000, 10.0)).table
    finally:
        sys.path.remove(str(RECIPES))
    records: list[dict[str, Any]] = json.loads(table[list(fraud.FEATURES)].to_json(orient="records"))
    return records


def test_from_a_pull_request_to_production_and_back(world: DeliveredRecipe, rows: list[dict[str, Any]]) -> None:
    first_version(world)
    second = next_version(world)
    staging = [row for row in rows if row["channel"] != "online"]
    for environment, clients in (("staging", staging), ("production", rows)):
        world.deliver(environment, "second", clients, "is promoted")
        champion = world.desired(environment).champion
        assert champion is not None
        assert champion.identity == second["identity"]

    bad = bad_version(world)
    world.deliver("staging", "bad", staging, "is promoted")  # what it answers otherwise is not asked there
    world.deliver("production", "bad", rows, "is rejected")
    desired = world.desired("production")
    assert desired.candidate is None
    assert desired.champion is not None
    assert desired.champion.identity == second["identity"]
    assert desired.rejection(bad) is not None
    assert "prediction_drift" in desired.rejected[-1].incident
    refused = world.mlkit("gitops", "promote", "recipes/fraud.yaml", "--environment", "production", "--from",
                          str(world.out("bad") / "report.json"), code=2)  # fmt: skip
    assert "was rejected" in refused["error"]["message"]

    third = trained_again(world)
    for environment, clients in (("staging", staging), ("production", rows)):
        world.deliver(environment, "third", clients, "is promoted")
    champion = world.desired("production").champion
    assert champion is not None
    assert champion.identity == third["identity"]
    subjects = run(["git", "-C", str(world.environments), "log", "--reverse", "--format=%s", "main"]).splitlines()
    assert [subject.split()[1] for subject in subjects] == ["promote", "settle"] * 8


def first_version(world: DeliveredRecipe) -> None:
    """A service that nobody has yet: without a champion a change is not judged, unless git says that there is none."""
    out = str(world.out("none"))
    judged = world.mlkit("ci", "judge", "recipes/fraud.yaml", "--out", out, code=4)
    assert judged["status"] == "inconclusive"
    first = world.judge("first")  # of an environment whose file in git names no version
    assert "judged as the first version" in first["warnings"][0]
    world.push_bundle("first")
    for environment in ENVIRONMENTS:
        assert world.promote(environment, "first")["action"] == "promoted"
        world.start(environment)
        world.gateways[environment].wait_record("the first look", action="none")
        assert world.settle(environment)["action"] == "settled"


def next_version(world: DeliveredRecipe) -> dict[str, Any]:
    """A pull request that changes the model, judged against what serves in production, and squashed into main."""
    world.git("checkout", "-q", "-b", "slower")
    world.change("learning_rate: 0.12", "learning_rate: 0.1")
    head = world.commit("Learn slower")
    judged = world.judge("pull-request")
    assert judged["champion"]["identity"]
    against = [item for item in judged["verdicts"] if "champion" in item["gate"]]
    assert len(against) == 2
    assert all(item["verdict"] in ("PASSED", "INCONCLUSIVE") for item in against)
    for _ in range(2):
        world.comment_on(head, "pull-request")
    (text,) = world.forge.texts()
    assert "roc_auc" in text
    assert "learning_rate" in text
    world.squash("slower")
    merged = world.judge("second")
    assert merged["identity"] == judged["identity"]
    assert {step["action"] for step in merged["steps"] if step["stage"] in ("data", "train", "export")} == {"reuse"}
    world.push_bundle("second")
    return merged


def bad_version(world: DeliveredRecipe) -> str:
    """A version that its judgement did not see through: online transactions get the other answer."""
    bundle = planted.flip(open_bundle(world.out("second") / "bundle", blessed=True), world.out("bad") / "bundle",
                          "channel", "online")  # fmt: skip
    report = json.loads((world.out("second") / "report.json").read_text()) | {"identity": bundle.manifest.identity}
    (world.out("bad") / "report.json").write_text(json.dumps(report))
    world.push_bundle("bad")
    return bundle.manifest.identity


def trained_again(world: DeliveredRecipe) -> dict[str, Any]:
    """New transactions, and a monitor that found drift: of all that ask, one trains."""
    world.change("until: 0", "until: 7")
    world.commit("Transactions of a week more")
    world.git("push", "-q", "origin", "main")
    answers = [world.mlkit("trigger", "recipes/fraud.yaml", "--because", "drift") for _ in range(2)]
    assert [answer["action"] for answer in answers] == ["started", "running"]
    judged = world.judge("third")
    world.push_bundle("third")
    assert judged["trigger"] == answers[0]["key"]
    report = str(world.out("third") / "report.json")
    assert world.mlkit("trigger", "recipes/fraud.yaml", "--finished", report)["action"] == "done"
    late = world.mlkit("trigger", "recipes/fraud.yaml", "--because", "drift", "--state", str(world.folder / "fresh"))
    assert late["action"] == "done"
    return judged
