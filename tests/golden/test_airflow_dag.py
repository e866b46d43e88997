"""The generated DAGs: their text, what they import, what Airflow makes of them, and what it cannot express."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from mlflowkit.ci.recipe_export import export_recipe
from mlflowkit.delivery.delivery_plan import DeliveryPlan
from mlflowkit.delivery.targets import target
from mlflowkit.errors import RecipeError
from mlflowkit.testing import delivery_plans
from tests.support.airflow_dags import AirflowWorld
from tests.support.export_project import make_project
from tests.support.golden import Golden
from tests.support.tools import require_tool

FILE = "dags/mlkit_my_model.py"
STEPS = ["trigger", "check", "judge", "image", "promote-staging", "settle-staging", "approve-production",
         "promote-production", "settle-production"]  # fmt: skip


def dag(plan: str | DeliveryPlan) -> str:
    value = delivery_plans()[plan] if isinstance(plan, str) else plan
    (text,) = target("airflow").render(value).values()
    return text


@pytest.mark.parametrize("plan", ["airflow", "worker"])
def test_the_text(golden: Golden, plan: str) -> None:
    golden(f"airflow_{plan}.txt", dag(plan))


@pytest.mark.parametrize("plan", ["airflow", "worker"])
def test_it_imports_airflow_and_nothing_of_ours(plan: str) -> None:
    nodes = list(ast.walk(ast.parse(dag(plan))))
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert not [node for node in nodes if isinstance(node, ast.Import)]
    assert {name.partition(".")[0] for name in names} <= {"__future__", "datetime", "pathlib", "airflow", "kubernetes"}
    calls = {node.func.attr for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
    assert not calls & {"cwd", "now", "getenv", "read_text", "get"}  # nothing is looked up when Airflow parses the file


@pytest.mark.parametrize("plan", ["airflow", "worker"])
def test_scripts_are_bash_and_stay_what_they_are(plan: str) -> None:
    given = delivery_plans()[plan]
    hostile = 'recipes/{{ var }} {# x #} \\ """ it\'s.yaml'
    steps = tuple(
        replace(step, command=tuple(hostile if word == given.recipe.path else word for word in step.command))
        for step in given.steps
    )
    calls = [
        node
        for node in ast.walk(ast.parse(dag(replace(given, steps=steps))))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "step"
    ]
    assert len(calls) == 9
    for call in calls:
        script = jinja2.Template(ast.literal_eval(call.args[1])).render()
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
        words = subprocess.run(
            ["bash", "-c", 'mlkit() { for word in "$@"; do echo "$word"; done; exit 0; }; mkdir() { :; }\n' + script],
            env={"REGISTRY_TOKEN": "x", "DATABASE": "x", "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        assert hostile in words.splitlines() or ast.literal_eval(call.args[0]) == "trigger"


def _pod_scripts() -> dict[str, str]:
    """What each pod runs, by task."""
    tree = ast.parse(dag("airflow"))
    checkout = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "CHECKOUT"
    )
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) == 2]
    steps = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "step"]
    start = ast.literal_eval(checkout)
    return {ast.literal_eval(call.args[0]): start + ast.literal_eval(call.args[1]) for call in steps}


def test_the_pods_of_a_run_check_out_one_commit_however_the_branch_moves(tmp_path: Path) -> None:
    remote, binaries = tmp_path / "remote", tmp_path / "bin"
    git = ["git", "-C", str(remote), "-c", "user.name=Test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", "init", "-q", "-b", "main", str(remote)], check=True)
    binaries.mkdir()
    program = binaries / "mlkit"
    program.write_text(
        '#!/bin/sh\n[ "$1" != trigger ] || { echo \'{"action": "\'$ACTION\'"}\'; exit 0; }\n'
        f'exec >> {tmp_path}/calls; git log -1 --format=%s; [ -z "$GIT_CONFIG_COUNT" ]; echo "$?"; exit $CODE\n'
    )
    program.chmod(0o755)

    def pod(task: str, code: int = 0, action: str = "started") -> int:
        scratch = tmp_path / f"pod-{len(list(tmp_path.iterdir()))}"
        scratch.mkdir()
        script = _pod_scripts()[task].replace("/tmp/", f"{scratch}/")
        environment = {
            "PATH": f"{binaries}:{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(scratch), "CODE": str(code),
            "MLKIT_OUT": str(tmp_path / "out" / "run-1"), "MLKIT_REPOSITORY": remote.as_uri(), "MLKIT_CODE_TOKEN": "t",
            "MLKIT_BECAUSE": "data", "ACTION": action,
        }  # fmt: skip
        return subprocess.run(["bash", "-euo", "pipefail", "-c", script], env=environment, check=False).returncode

    for message in ("first", "second"):
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", message], check=True)
        assert pod("check") == 0
    assert (tmp_path / "calls").read_text().split() == ["first", "0", "first", "0"]  # and the token is not left there
    assert [pod("judge", code) for code in (0, 1, 4)] == [0, 1, 99]
    assert [pod("trigger", action=action) for action in ("started", "cooldown")] == [0, 99]


def test_files_of_a_project_at_the_root_are_not_formatted(tmp_path: Path) -> None:
    (tmp_path / "dag.py").write_text(dag("airflow"))
    for command in (("format", "--check"), ("check", "--select", "ALL", "--ignore", "PGH004")):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("run_type", "assets", "because"),
    [
        ("scheduled", [], "schedule"),
        ("asset_triggered", ["mlkit-my-model-drift"], "drift"),
        ("asset_triggered", ["mlkit-my-model-data"], "data"),
        ("manual", [], "data"),
    ],
)
def test_what_started_a_run(run_type: str, assets: list[str], because: str) -> None:
    text = next(line for line in dag("airflow").splitlines() if 'MLKIT_BECAUSE":' in line)
    template = text.partition('"MLKIT_BECAUSE": "')[2].rpartition('"')[0]
    keys = {type("Key", (), {"name": name})(): [] for name in assets}
    run = {"dag_run": {"run_type": run_type}, "triggering_asset_events": keys}
    assert jinja2.Template(template).render(run) == because


GOOD = """\
targets: [airflow]
triggers: [{on: data}]
airflow: {image: "ghcr.io/acme/steps@sha256:%s", repository: "https://github.com/acme/a.git", state: claim,
  git: {name: git, key: token}}""" % ("5" * 64)


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("", "", "7:13: delivery.registry.credentials.oidc", "nothing of oidc"),
        ("[{on: data}]", "[{on: data}, {on: merge}]", "9:31: delivery.triggers.1.on", "told of no merge"),
        (", state: claim", "", "10:12: delivery.airflow.state", "in a volume"),
        ("git: {name: git, key: token}", "namespace: mlkit", "10:12: delivery.airflow.git", "step trigger pushes"),
        ("targets:", "runner: {label: gpu}\ntargets:", "8:19: delivery.runner.label", "by its label"),
        ("targets:", "policy: {signed: true}\ntargets:", "8:20: delivery.policy.signed", "no identity"),
        (
            "[{on: data}]",
            '[{on: data}, {on: schedule, cron: "1 1 * * 1", branch: b}]',
            "9:68: delivery.triggers.1.branch",
            "one branch",
        ),
        ("targets:", "secrets: {A: {env: A}}\ntargets:", "8:22: delivery.secrets.A.env", "reads Secrets"),
    ],
)
def test_what_airflow_cannot_express_is_a_fault_at_its_place(
    tmp_path: Path, old: str, new: str, place: str, message: str
) -> None:
    recipe = make_project(tmp_path, GOOD.replace(old, new) if old else GOOD)
    with pytest.raises(RecipeError) as caught:
        export_recipe(recipe)
    faults = {f"{fault.line}:{fault.column}: {fault.key}": fault.message for fault in caught.value.faults}
    assert message in faults.get(place, ""), faults


def test_a_worker_has_the_machine_that_it_is() -> None:
    plan = delivery_plans()["worker"]
    section = plan.section.model_copy(update={"runner": type(plan.section.runner)(gpus=1, cpus=4)})
    assert not list(target("airflow").unsupported(replace(plan, section=section)))  # it is the machine of github
    alone = section.model_copy(update={"targets": ["airflow"]})
    keys = [item.key for item in target("airflow").unsupported(replace(plan, section=alone))]
    assert keys == [("triggers", 0, "on"), ("runner", "cpus"), ("runner", "gpus")]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Airflow makes of the two DAGs."""
    answers = {}
    for plan in ("airflow", "worker"):
        folder = tmp_path_factory.mktemp(plan)
        (folder / "dags").mkdir()
        (folder / FILE).write_text(dag(plan))
        answers[plan] = AirflowWorld(folder / "home", folder / "dags").load()
    return answers


@pytest.mark.delivery
@pytest.mark.parametrize("plan", ["airflow", "worker"])
def test_airflow_loads_the_dag_quickly_and_without_an_error(loaded: dict[str, Any], plan: str) -> None:
    answer = loaded[plan]
    assert answer["errors"] == {}
    assert not [name for name in answer["imported"] if name.startswith(("mlflowkit", "torch", "ray", "pandas"))]
    value = answer["dags"]["mlkit_my_model"]
    assert list(value["tasks"]) == STEPS
    assert [task["after"] for task in value["tasks"].values()] == [[], *([name] for name in STEPS[:-1])]
    assert {task["retries"] for task in value["tasks"].values()} == {0}
    assert (value["catchup"], value["runs"]) == (False, 1)
    assert "Asset(name='mlkit-my-model-data'" in value["timetable"]
    if plan == "airflow":
        assert "CronTriggerTimetable(expression='17 4 * * 1', timezone='Europe/Berlin'" in value["timetable"]


@pytest.mark.delivery
def test_a_file_that_does_not_load_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "dags").mkdir()
    (tmp_path / FILE).write_text(dag("worker").replace("bash_command=", "bash_comand="))
    (message,) = AirflowWorld(tmp_path / "home", tmp_path / "dags").load()["errors"].values()
    assert "missing keyword argument 'bash_command'" in message


@pytest.mark.delivery
def test_the_pods_are_valid_restricted_and_hold_no_secret(tmp_path: Path, loaded: dict[str, Any]) -> None:
    tool = require_tool("kubernetes-validate")
    pods = {
        name: task["pod"]
        for name, task in loaded["airflow"]["dags"]["mlkit_my_model"]["tasks"].items()
        if "pod" in task
    }
    assert len(pods) == 8
    for name, pod in pods.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(pod))
        done = subprocess.run([tool, "--strict", str(file)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        spec, (container,) = pod["spec"], pod["spec"]["containers"]
        assert container["image"].partition("@")[2] == f"sha256:{'5' * 64}"
        assert container["resources"]["requests"] == {"cpu": "2000m", "memory": "4096Mi"}
        assert container["resources"]["limits"] == {"memory": "4096Mi"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        variables = {entry["name"]: entry for entry in container["env"]}
        assert variables["MLKIT_OUT"]["value"] == "/mlkit/out/run-manual__1"
        assert all("valueFrom" in entry for key, entry in variables.items() if key == "DB_URL" or "TOKEN" in key)
        if name != "image":
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    environment = {entry["name"]: entry.get("value") for entry in pods["trigger"]["spec"]["containers"][0]["env"]}
    assert environment["MLKIT_BECAUSE"] == "schedule"
    assert pods["judge"]["spec"]["activeDeadlineSeconds"] == 7200


@pytest.mark.delivery
def test_a_misspelt_field_of_a_pod_is_found(tmp_path: Path, loaded: dict[str, Any]) -> None:
    tool = require_tool("kubernetes-validate")
    pod = loaded["airflow"]["dags"]["mlkit_my_model"]["tasks"]["judge"]["pod"]
    pod["spec"]["activeDeadlineSecond"] = 1
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod))
    assert subprocess.run([tool, "--strict", str(tmp_path / "pod.yaml")], capture_output=True, timeout=120).returncode
