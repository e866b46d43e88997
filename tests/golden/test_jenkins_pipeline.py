"""The generated Jenkinsfile: its text, its syntax, and what its scripts do when they are run in order."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mlflowkit.delivery.delivery_settings import TriggerSettings
from mlflowkit.delivery.groovy_text import groovy_shell, groovy_string
from mlflowkit.delivery.jenkinsfile_checks import jenkinsfile_faults
from mlflowkit.delivery.targets import target
from mlflowkit.testing import delivery_plans
from tests.support.golden import Golden
from tests.support.jenkins_scripts import jenkins_scripts
from tests.support.tools import require_tool

FILE = "jenkins/mlkit-my-model/Jenkinsfile"


def pipeline() -> str:
    return target("jenkins").render(delivery_plans()["pipeline"])[FILE]


def test_the_text(golden: Golden) -> None:
    golden("Jenkinsfile", pipeline())


def _lint(folder: Path, text: str) -> str:
    (folder / "Jenkinsfile").write_text(text)
    command = [
        require_tool("npm-groovy-lint", "npm install npm-groovy-lint@15.2.2"),
        "--failon",
        "error",
        "--noserver",
        "--files",
        "**/Jenkinsfile",
    ]
    environment = {**os.environ, "HOME": str(folder), "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.mark.delivery
def test_groovys_parser_takes_it(tmp_path: Path) -> None:
    assert _lint(tmp_path, pipeline()) == ""


@pytest.mark.delivery
@pytest.mark.parametrize(("old", "new"), [("  agent none\n", "  agent {\n"), ("sh '''#!", "sh ''#!")])
def test_groovys_parser_refuses_what_is_broken(tmp_path: Path, old: str, new: str) -> None:
    assert "arse" in _lint(tmp_path, pipeline().replace(old, new, 1))


def test_our_own_check_has_no_finding() -> None:
    for plan in (delivery_plans()["pipeline"], replace(delivery_plans()["pipeline"], environments=(), triggers=())):
        (text,) = target("jenkins").render(plan).values()
        assert list(jenkinsfile_faults(text)) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sh '''#!", 'sh """#!/bin/sh\necho $DB_URL""" + \'\'\'#!', "the credential DB_URL becomes part"),
        ("mlkit ci check", "'''\nsh \"curl -H ${MLKIT_GIT_TOKEN} x\"\nsh '''#!", "the credential MLKIT_GIT_TOKEN"),
        ("returnStatus: true, script: '''", 'returnStatus: true, script: "-u ${env.MLKIT_REGISTRY_USER}" + \'\'\'',
         "the credential MLKIT_REGISTRY_USER"),
        ("sh '''#!", "sh(label: 'x', script: \"echo ${params.MLKIT_BECAUSE}\")\nsh '''#!", "puts params.MLKIT_BECAUSE"),
        ("'''#!/usr/bin/env bash\n", "'''\n", "names no interpreter"),
        ("options { timeout(time: 120, unit: 'MINUTES') }", "", "stage judge has no timeout"),
        ("agent none", "agent { docker { image 'python:3.11' } }", "image python:3.11 has no digest"),
        ("disableConcurrentBuilds(abortPrevious: env.CHANGE_ID != null)", "timestamps()", "promote at once"),
    ],
)  # fmt: skip
def test_our_own_check_catches_the_mutant(old: str, new: str, message: str) -> None:
    text = pipeline()
    assert old in text
    assert any(message in fault for fault in jenkinsfile_faults(text.replace(old, new)))


def test_a_shells_own_variables_are_no_finding() -> None:
    text = pipeline().replace("sh '''#!", "sh \"echo \\$DB_URL\"\nsh 'echo $DB_URL'\nsh '''#!", 1)
    assert list(jenkinsfile_faults(text)) == []


def test_what_is_no_jenkinsfile_is_refused() -> None:
    with pytest.raises(ValueError, match="declarative"):
        list(jenkinsfile_faults("node { sh 'ls' }"))


class Build:
    """The scripts of a Jenkinsfile in order, with an `mlkit` that writes its arguments down."""

    def __init__(self, folder: Path, codes: dict[str, list[int]] | None = None) -> None:
        self.folder = folder
        self.scripts = jenkins_scripts(pipeline())
        self._bin = folder / "bin"
        self._bin.mkdir()
        for command, given in (codes or {}).items():
            (folder / f"codes-{command}").write_text("".join(f"{code}\n" for code in given))
        self._program("sleep", "exit 0")
        self._program("python3.11", 'mkdir -p "$3/bin"; ln -s /bin/true "$3/bin/python"')
        self._program(
            "mlkit",
            f'cd {folder}; echo "$MLKIT_REGISTRY $*" >> calls; file="codes-$2"\n'
            'echo \'{"action": "started"}\'\n'
            '[ -s "$file" ] || exit 0; code=$(head -n 1 "$file"); sed -i 1d "$file"; exit "$code"',
        )

    def _program(self, name: str, text: str) -> None:
        (self._bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self._bin / name).chmod(0o755)

    def run(self, stage: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self._bin}:{os.environ['PATH']}", "WORKSPACE_TMP": f"{self.folder}/it's tmp",
            "MLKIT_BECAUSE": "drift", "MLKIT_REGISTRY": "-",
        }  # fmt: skip
        file = self.folder / "script.sh"
        file.write_text(self.scripts[stage])
        file.chmod(0o755)
        return subprocess.run([str(file)], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


def test_the_stages_in_order_run_the_plan(tmp_path: Path) -> None:
    build = Build(tmp_path)
    assert [build.run(stage).returncode for stage in build.scripts] == [0] * 13
    out = f"{tmp_path}/it's tmp/mlkit/out"
    recipe = "recipes/my_model.yaml"
    assert build.calls() == [
        f"ghcr.io trigger {recipe} --because drift --json",
        f"- ci check {recipe} --out {out}",
        f"ghcr.io ci judge {recipe} --environment production --out {out}",
        f"- ci comment --from {out}/report.json",
        f"ghcr.io image build {recipe} --push --from {out}/report.json",
        f"- trigger {recipe} --finished {out}/report.json",
        f"ghcr.io gitops promote {recipe} --environment staging --from {out}/report.json",
        f"- gitops settle {recipe} --environment staging",
        f"ghcr.io gitops promote {recipe} --environment production --baked",
        f"- gitops settle {recipe} --environment production",
    ]


def test_a_verdict_is_the_scripts_exit_code_and_a_failure_of_the_world_is_tried_again(tmp_path: Path) -> None:
    build = Build(tmp_path, {"judge": [3, 4], "promote": [3, 3, 3, 3], "check": [1]})
    assert build.run("judge").returncode == 4
    assert build.run("promote-staging").returncode == 3
    assert build.run("check").returncode == 1
    assert [line.split()[2] for line in build.calls()] == ["judge"] * 2 + ["promote"] * 4 + ["check"]


def test_what_a_trigger_answers_is_all_that_its_script_prints(tmp_path: Path) -> None:
    build = Build(tmp_path)
    build.run("install")
    (tmp_path / "it's tmp" / "mlkit" / "venv" / "bin" / "python").unlink()  # the real one reads the answer
    assert build.run("trigger").stdout == "started\n"


def test_approval_credentials_and_verdicts() -> None:
    text = pipeline()
    staging, production = re.split(r"stage\('production'\)", text.partition("stage('staging')")[2])
    assert "input {" not in staging
    assert "message 'Promote my-model to production?'" in production
    assert text.count("credentialsId: 'DB_URL'") == 3  # trigger, check and judge, and no other stage
    assert "unstable('INCONCLUSIVE" in text
    fork = text[text.index("stage('fork')") : text.index("stage('model')")]
    assert "env.CHANGE_FORK != null" in fork
    assert "catchError(buildResult: 'NOT_BUILT'" in fork
    assert "agent" not in fork, "no code of a fork is checked out"
    strict = replace(delivery_plans()["pipeline"], steps=tuple(
        replace(step, exit_codes=(0,)) for step in delivery_plans()["pipeline"].steps))  # fmt: skip
    assert "unstable(" not in target("jenkins").render(strict)[FILE]


@pytest.mark.parametrize(
    ("schedules", "key"),
    [
        ([{"cron": "5 4 * * MON"}], ("triggers", 0, "cron")),
        ([{"cron": "5 4 * * 1"}, {"cron": "5 5 * * 1", "timezone": "Asia/Tokyo"}], ("triggers", 1, "timezone")),
        ([{"cron": "5 4 * * 1"}, {"cron": "5 5 * * 1", "branch": "next"}], ("triggers", 1, "branch")),
    ],
)
def test_schedules_that_jenkins_cannot_express(schedules: list[dict[str, str]], key: tuple[object, ...]) -> None:
    triggers = tuple(TriggerSettings.model_validate({"on": "schedule", **item}) for item in schedules)
    plan = replace(delivery_plans()["pipeline"], triggers=triggers)
    assert [item.key for item in target("jenkins").unsupported(plan)] == [key]


def test_a_machine_without_a_label_is_not_found() -> None:
    plan = delivery_plans()["pipeline"]
    for runner, keys in (({"gpus": 1, "cpus": 4}, ["cpus", "gpus"]), ({"gpus": 1, "label": "gpu"}, [])):
        section = plan.section.model_validate({"registry": plan.section.registry, "runner": runner})
        faults = target("jenkins").unsupported(replace(plan, section=section))
        assert [item.key for item in faults] == [("runner", name) for name in keys]


def test_groovy_reads_the_text_back() -> None:
    (text,) = jenkins_scripts("\n".join(groovy_shell("echo 'a\\b' '''\n"))).values()
    assert text == "#!/usr/bin/env bash\nset -euo pipefail\necho 'a\\b' '''\n"
    assert groovy_string("a'b\\") == "'a\\'b\\\\'"
