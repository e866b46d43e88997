"""Jenkins: a declarative Jenkinsfile for a multibranch pipeline, with one stage a step.

What is built stays on one agent up to the image; each environment has an agent of its own, which is taken after a
person has approved. Credentials are bound around the one step that needs them, and shell scripts are single-quoted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from mlflowkit.delivery.delivery_plan import BAKING_MARGIN, DeliveryPlan, DeliveryStep, Environment
from mlflowkit.delivery.delivery_settings import TriggerSettings
from mlflowkit.delivery.delivery_target import DeliveryTarget, Unsupported, machine_faults
from mlflowkit.delivery.groovy_text import groovy_block, groovy_shell, groovy_string
from mlflowkit.delivery.step_script import command_line, step_script

PYTHON = "python3.11"
FOLDER = "$WORKSPACE_TMP/mlkit"
"""Outputs, state and packages: beside the checkout, which stays clean."""
APPROVAL_MINUTES = 24 * 60
"""How long a promotion waits for a person: meanwhile no other build of the branch starts."""
HEADER = "Change the recipe and run `mlkit export RECIPE`; what is changed here is merged when it is generated again."
TIMER = "hudson.triggers.TimerTrigger$TimerTriggerCause"
_CRON = re.compile(r"[0-9*,/ -]+")


class JenkinsPipeline(DeliveryTarget):
    """Jenkins."""

    name = "jenkins"
    version = 2

    def unsupported(self, plan: DeliveryPlan) -> Iterator[Unsupported]:
        secrets = {("secrets", name): reference for name, reference in plan.secrets.items()}
        for key, reference in {("registry", "credentials"): plan.credentials, **secrets}.items():
            kind = next(name for name, value in reference if value is not None)
            if kind != "env":
                message = f"a Jenkins job reads its credentials store, and nothing of {kind}"
                yield Unsupported((*key, kind), message, "write env: NAME, the id of a credential in Jenkins")
        yield from _schedule_faults(plan)
        yield from machine_faults(plan, "Jenkins", "the label of such an agent")
        if plan.policy.signed:
            message = "Jenkins gives a job no identity to sign with"
            yield Unsupported(("policy", "signed"), message, "remove signed, and sign with a key of your own")

    def render(self, plan: DeliveryPlan) -> Mapping[str, str]:
        path = f"jenkins/mlkit-{plan.name}/Jenkinsfile"
        header = [f"// {HEADER}", f"// Script Path of the multibranch pipeline: {path}"]
        return {path: "\n".join([*header, *groovy_block("pipeline", _pipeline(plan)), ""])}

    def checks(self) -> Mapping[str, str]:
        return {"syntax": "npm-groovy-lint --failon error --files 'jenkins/**/Jenkinsfile'"}


def _schedules(plan: DeliveryPlan) -> list[tuple[int, TriggerSettings]]:
    return [(index, trigger) for index, trigger in enumerate(plan.triggers) if trigger.on == "schedule"]


def _schedule_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    schedules = _schedules(plan)
    for index, trigger in schedules:
        first = schedules[0][1]
        if not _CRON.fullmatch(trigger.cron or ""):
            message = "Jenkins' cron takes numbers, * , - and / only"
            yield Unsupported(("triggers", index, "cron"), message, "write months and days of the week as numbers")
        for key in ("timezone", "branch"):
            if getattr(trigger, key) != getattr(first, key):
                message = f"the schedules of a Jenkins job have one {key}: {getattr(first, key)} here"
                yield Unsupported(("triggers", index, key), message, f"write {key}: {getattr(first, key)}")


def _pipeline(plan: DeliveryPlan) -> list[str]:
    stages = [*_fork(plan), *_model(plan)]
    for environment in plan.environments:
        stages += [*_bake(plan, environment), "", *_environment(plan, environment)]
    options = [
        "buildDiscarder(logRotator(numToKeepStr: '50', artifactNumToKeepStr: '20'))",
        "disableConcurrentBuilds(abortPrevious: env.CHANGE_ID != null)  // never a half-done promotion",
    ]
    return [
        "agent none",
        "",
        *groovy_block("options", options),
        *_triggers(plan),
        "",
        *groovy_block("stages", stages),
    ]


def _triggers(plan: DeliveryPlan) -> list[str]:
    lines: list[str] = []
    schedules = [trigger for _, trigger in _schedules(plan)]
    if schedules:
        table = "\n".join([f"TZ={schedules[0].timezone}", *(str(trigger.cron) for trigger in schedules)])
        on_branch = f"env.BRANCH_NAME == {groovy_string(schedules[0].branch)}"
        lines += ["", *groovy_block("triggers", [f"cron({on_branch} ? {groovy_string(table)} : '')"])]
    if _called(plan):
        choices = ", ".join(groovy_string(name) for name in ("merge", *_called(plan)))
        text = groovy_string("Why this build is started: all but merge ask first whether there is work.")
        choice = f"choice(name: 'MLKIT_BECAUSE', choices: [{choices}], description: {text})"
        lines += ["", *groovy_block("parameters", [choice])]
    return lines


def _called(plan: DeliveryPlan) -> list[str]:
    """The events of which somebody else learns, who starts a build with parameters."""
    return list(dict.fromkeys(trigger.on for trigger in plan.triggers if trigger.on in ("data", "drift")))


def _claimed_events(plan: DeliveryPlan) -> list[str]:
    """The conditions of a build that asks whether there is work."""
    called = ", ".join(map(groovy_string, _called(plan)))
    return [
        *(["triggeredBy 'TimerTrigger'"] if _schedules(plan) else []),
        *([f"expression {{ params.MLKIT_BECAUSE in [{called}] }}"] if called else []),
    ]


def _branches(plan: DeliveryPlan, *events: str) -> list[str]:
    return list(dict.fromkeys(trigger.branch for trigger in plan.triggers if trigger.on in events))


def _events(plan: DeliveryPlan) -> list[str]:
    """What is built at all; only what a person starts where the recipe has no trigger. A fork's pull request is not:
    its code would run with the credentials of this job."""
    lines: list[str] = []
    for branch in _branches(plan, "pull_request"):
        lines += groovy_block(
            "allOf",
            [
                f"changeRequest target: {groovy_string(branch)}",
                "expression { env.CHANGE_FORK == null }  // its code would run with the credentials of this job",
            ],
        )
    merged = _branches(plan, "merge")
    lines += [f"branch {groovy_string(branch)}" for branch in merged]
    for branch in _branches(plan, "schedule", "data", "drift"):
        if branch not in merged:
            lines += groovy_block(
                "allOf", [f"branch {groovy_string(branch)}", *groovy_block("anyOf", _claimed_events(plan))]
            )
    return lines or ["triggeredBy cause: 'UserIdCause'"]


def _fork(plan: DeliveryPlan) -> list[str]:
    """A build of a fork's pull request says that nobody judged it, instead of being green without a stage."""
    if not _branches(plan, "pull_request"):
        return []
    when = groovy_block("when", ["expression { env.CHANGE_FORK != null }"])
    text = "not judged: a fork's code would run with the credentials of this job; push its branch here to judge it"
    caught = groovy_block(
        "catchError(buildResult: 'NOT_BUILT', stageResult: 'NOT_BUILT')", [f"error({groovy_string(text)})"]
    )
    return [*_stage("fork", 5, when, groovy_block("steps", caught)), ""]


def _model(plan: DeliveryPlan) -> list[str]:
    """The stages up to the image, on one agent."""
    has_trigger = bool(_claimed_events(plan))
    stages = [
        _install(plan, "install"),
        *([_trigger(plan, plan.step("trigger"))] if has_trigger else []),
        _check(plan, plan.step("check"), has_trigger=has_trigger),
        _judge(plan, plan.step("judge"), has_trigger=has_trigger),
        *([_comment(plan, plan.step("comment"))] if _branches(plan, "pull_request") else []),
        _image(plan, plan.step("image")),
        *([_finish(plan, plan.step("finish"))] if has_trigger else []),  # not reached where the image failed
    ]
    body = [
        _agent(plan),
        *groovy_block("when", ["beforeAgent true", *groovy_block("anyOf", _events(plan))]),
        *groovy_block("stages", [line for stage in stages for line in ["", *stage]][1:]),
    ]
    return groovy_block("stage('model')", body)


def _agent(plan: DeliveryPlan) -> str:
    return f"agent {{ label {groovy_string(plan.section.runner.label)} }}"


def _stage(name: str, minutes: int, *parts: list[str]) -> list[str]:
    options = f"options {{ timeout(time: {minutes}, unit: 'MINUTES') }}"
    return groovy_block(f"stage({groovy_string(name)})", [options, *(line for part in parts for line in part)])


def _install(plan: DeliveryPlan, name: str) -> list[str]:
    """The packages of the lock in an environment of their own, and an empty folder for the outputs."""
    pip = f'"{FOLDER}/venv/bin/python" -m pip install --disable-pip-version-check'
    script = (
        f'rm -rf "{FOLDER}/out" "{FOLDER}/venv"\n'
        f'mkdir -p "{FOLDER}/out"\n'
        f'{PYTHON} -m venv "{FOLDER}/venv"\n'
        f"{pip} -r {command_line((plan.section.requirements,))}\n"
    )
    return _stage(name, 30, groovy_block("steps", groovy_shell(script)))


def _script(plan: DeliveryPlan, step: DeliveryStep, text: str = "") -> str:
    """A step's script. No exit code becomes 0: the stage tells INCONCLUSIVE from success."""
    lines = [
        f'export PATH="{FOLDER}/venv/bin:$PATH" MLKIT_OUT="{FOLDER}/out" MLKIT_STATE="{FOLDER}/state"',
        *([f"export MLKIT_REGISTRY={plan.registry.partition('/')[0]}"] if _uses_registry(plan, step) else []),
        text or step_script(replace(step, exit_codes=(0,))),
    ]
    return "\n".join(lines)


def _uses_registry(plan: DeliveryPlan, step: DeliveryStep) -> bool:
    """Whether a step pushes or reads images: judging reads the champion of an environment only."""
    return "push-image" in step.permissions or ("read-image" in step.permissions and bool(plan.environments))


def _with_credentials(plan: DeliveryPlan, step: DeliveryStep, lines: list[str]) -> list[str]:
    bindings = [
        f"string(credentialsId: {groovy_string(str(plan.secrets[name].env))}, variable: {groovy_string(name)})"
        for name in step.secrets
    ]
    if _uses_registry(plan, step):
        bindings.append(
            f"usernamePassword(credentialsId: {groovy_string(str(plan.credentials.env))}, "
            "usernameVariable: 'MLKIT_REGISTRY_USER', passwordVariable: 'MLKIT_REGISTRY_TOKEN')"
        )
    if {"write-env-repo", "write-trigger"} & set(step.permissions):
        bindings.append("string(credentialsId: 'MLKIT_ENV_TOKEN', variable: 'MLKIT_GIT_TOKEN')")
    elif "read-env-repo" in step.permissions and plan.environments:  # a change's own code runs in this step
        bindings.append("string(credentialsId: 'MLKIT_READ_TOKEN', variable: 'MLKIT_GIT_TOKEN')")
    if "write-comment" in step.permissions:
        bindings.append("string(credentialsId: 'MLKIT_COMMENT_TOKEN', variable: 'MLKIT_COMMENT_TOKEN')")
    if not bindings:
        return lines
    listed = [f"  {binding}," for binding in bindings]
    listed[-1] = listed[-1].removesuffix(",")
    return ["withCredentials([", *listed, "]) {", *(f"  {line}" for line in lines), "}"]


def _trigger(plan: DeliveryPlan, step: DeliveryStep) -> list[str]:
    read = "import json, sys; print(json.load(sys.stdin)['action'])"
    answer = f'"{FOLDER}/trigger.json"'
    text = f'{command_line(step.command)} > {answer}\npython -c "{read}" < {answer}\n'
    lines = groovy_shell(_script(plan, step, text), "env.MLKIT_ACTION = sh(returnStdout: true, script: ", ").trim()")
    lines = _with_credentials(plan, step, lines)
    if _schedules(plan):
        timed = f"currentBuild.getBuildCauses({groovy_string(TIMER)})"
        because = f"{timed} ? 'schedule' : params.MLKIT_BECAUSE" if _called(plan) else "'schedule'"
        lines = [f"env.MLKIT_ASKED = {because}", *groovy_block('withEnv(["MLKIT_BECAUSE=${env.MLKIT_ASKED}"])', lines)]
    when = groovy_block("when", groovy_block("anyOf", _claimed_events(plan)))
    return _stage(step.id, step.timeout_minutes, when, groovy_block("steps", groovy_block("script", lines)))


def _when_work(has_trigger: bool) -> list[str]:
    return groovy_block("when", ["expression { env.MLKIT_ACTION in [null, 'started'] }"]) if has_trigger else []


def _reports(file: str, kept: tuple[str, ...] = ()) -> list[str]:
    """Keep the outputs of a stage, whatever became of it."""
    lines = [f"junit allowEmptyResults: true, skipMarkingBuildUnstable: true, testResults: {groovy_string(file)}"]
    if kept:
        files = groovy_string(",".join(kept))
        lines.append(f"archiveArtifacts allowEmptyArchive: true, artifacts: {files}")
    return groovy_block("post", groovy_block("always", _in_outputs(lines)))


def _in_outputs(lines: list[str]) -> list[str]:
    return groovy_block('dir("${env.WORKSPACE_TMP}/mlkit/out")', lines)


def _check(plan: DeliveryPlan, step: DeliveryStep, *, has_trigger: bool) -> list[str]:
    steps = groovy_block("steps", _with_credentials(plan, step, groovy_shell(_script(plan, step))))
    return _stage(step.id, step.timeout_minutes, _when_work(has_trigger), steps, _reports("checks.xml"))


def _judge(plan: DeliveryPlan, step: DeliveryStep, *, has_trigger: bool) -> list[str]:
    run = groovy_shell(_script(plan, step), "int code = sh(returnStatus: true, script: ", ")")
    neutral = 4 in step.exit_codes
    verdict = [
        "env.MLKIT_CODE = code.toString()",
        *(["if (code == 4) { unstable('INCONCLUSIVE: nothing is delivered') }"] if neutral else []),
        f'{"else if" if neutral else "if"} (code != 0) {{ error("the judge ended with ${{code}}") }}',
    ]
    script = groovy_block("script", _with_credentials(plan, step, run + verdict))
    caught = "catchError(buildResult: 'FAILURE', stageResult: 'FAILURE', catchInterruptions: false)"
    steps = groovy_block("steps", ["// The comment is written whatever the verdict is.", *groovy_block(caught, script)])
    kept = ("report.json", "mlkit.sarif", "page.html")
    return _stage(step.id, step.timeout_minutes, _when_work(has_trigger), steps, _reports("junit.xml", kept))


def _finish(plan: DeliveryPlan, step: DeliveryStep) -> list[str]:
    """The end of the claim, whatever the verdict is, and for a good one after its image."""
    when = groovy_block("when", ["expression { env.MLKIT_ACTION == 'started' && env.MLKIT_CODE != null }"])
    lines = _with_credentials(plan, step, groovy_shell(_script(plan, step)))
    return _stage(step.id, step.timeout_minutes, when, groovy_block("steps", lines))


def _comment(plan: DeliveryPlan, step: DeliveryStep) -> list[str]:
    when = groovy_block("when", ["changeRequest()", "expression { env.MLKIT_CODE != null }"])
    lines = _with_credentials(plan, step, groovy_shell(_script(plan, step)))
    caught = "catchError(buildResult: 'SUCCESS', stageResult: 'UNSTABLE', catchInterruptions: false)"
    steps = groovy_block("steps", ["// The verdict is the judge's.", *groovy_block(caught, lines)])
    return _stage(step.id, step.timeout_minutes, when, steps)


def _delivered() -> list[str]:
    return [*groovy_block("not", ["changeRequest()"]), "expression { env.MLKIT_CODE == '0' }"]


def _image(plan: DeliveryPlan, step: DeliveryStep) -> list[str]:
    lines = _with_credentials(plan, step, groovy_shell(_script(plan, step)))
    if plan.environments:
        lines += _in_outputs([f"stash name: {groovy_string(f'mlkit-{plan.name}')}, includes: '**'"])
    when = groovy_block("when", _delivered())
    return _stage(step.id, step.timeout_minutes, when, groovy_block("steps", lines))


def _bake(plan: DeliveryPlan, environment: Environment) -> list[str]:
    """A wait without an agent, before a promotion of what must bake first; meanwhile the branch has no other build."""
    seconds = plan.baking_seconds(environment.name)
    if not seconds:
        return []
    steps = groovy_block("steps", [f"sleep time: {seconds + BAKING_MARGIN}, unit: 'SECONDS'"])
    when = groovy_block("when", _delivered())
    return ["", *_stage(f"bake-{environment.name}", seconds // 60 + 30, when, steps)]


def _environment(plan: DeliveryPlan, environment: Environment) -> list[str]:
    """A promotion and its settlement, on an agent that is taken after the approval."""
    promote, settle = (plan.step(f"{kind}-{environment.name}") for kind in ("promote", "settle"))
    stash = groovy_string(f"mlkit-{plan.name}")
    stages = [
        _install(plan, f"install-{environment.name}"),
        _promotion(plan, promote, [] if environment.name in plan.held else _in_outputs([f"unstash {stash}"])),
        _promotion(plan, settle, []),
    ]
    approval: list[str] = []
    if promote.approval:
        minutes = APPROVAL_MINUTES + 30 + promote.timeout_minutes + settle.timeout_minutes
        message = groovy_string(f"Promote {plan.name} to {environment.name}?")
        approval = [
            f"options {{ timeout(time: {minutes}, unit: 'MINUTES') }}  // a day for the approval",
            *groovy_block("input", [f"message {message}", "ok 'Promote'"]),
        ]
    when = ["beforeInput true", "beforeAgent true", *_delivered()]
    body = [
        _agent(plan),
        *groovy_block("when", when),
        *approval,
        *groovy_block("stages", [line for stage in stages for line in ["", *stage]][1:]),
    ]
    return groovy_block(f"stage({groovy_string(environment.name)})", body)


def _promotion(plan: DeliveryPlan, step: DeliveryStep, before: list[str]) -> list[str]:
    lines = _with_credentials(plan, step, groovy_shell(_script(plan, step)))
    return _stage(step.id, step.timeout_minutes, groovy_block("steps", [*before, *lines]))
