"""Airflow: one file with a DAG of at most four kinds of steps, each a pod or a command on the worker.

The file imports Airflow and nothing of ours. A run's pods check out one commit, which the first of them looks up, and
hand their outputs on in a volume.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from mlflowkit.delivery.delivery_plan import BAKING_MARGIN, DeliveryPlan, DeliveryStep, Permission
from mlflowkit.delivery.delivery_settings import KubernetesSecret, RunnerSettings, TriggerSettings
from mlflowkit.delivery.delivery_target import DeliveryTarget, Unsupported
from mlflowkit.delivery.manifests.pod_template import USER, pod_resources
from mlflowkit.delivery.step_script import command_line, step_script
from mlflowkit.delivery.text_templates import text_templates

EVENT_TARGETS = frozenset(("github", "gitlab", "jenkins"))
"""Targets that are told of changes: beside one of them, triggers on a change are theirs."""
ASKING = ("schedule", "data", "drift")
"""Events for which the DAG asks whether there is work."""
NEUTRAL = 4
"""The exit code of INCONCLUSIVE."""
SKIPPED = 99
"""The exit code of a task that is skipped, with all that follow."""
HEADER = "Change the recipe and run `mlkit export RECIPE`; what is changed here is merged when it is generated again."
_REGISTRY: frozenset[Permission] = frozenset(("read-image", "push-image"))
_GIT: frozenset[Permission] = frozenset(("read-env-repo", "write-env-repo", "write-trigger"))


class AirflowDag(DeliveryTarget):
    """A DAG of Airflow 3."""

    name = "airflow"
    version = 1
    steps: ClassVar[frozenset[str]] = frozenset(("trigger", "check", "judge", "finish", "image", "promote", "settle"))

    def unsupported(self, plan: DeliveryPlan) -> Iterator[Unsupported]:
        pods = plan.section.airflow.executor == "kubernetes"
        yield from _secret_faults(plan, "kubernetes" if pods else "env")
        yield from _trigger_faults(plan)
        yield from _pod_faults(plan) if pods else _worker_faults(plan)
        if plan.policy.signed:
            message = "a task of Airflow has no identity to sign with"
            yield Unsupported(("policy", "signed"), message, "remove signed, and sign with a key of your own")

    def render(self, plan: DeliveryPlan) -> Mapping[str, str]:
        templates = text_templates(blocks=True)
        templates.filters |= {"python": _python, "python_text": _python_text}
        tasks = _tasks(plan)
        approvals = any(task.approves for task in tasks)
        triggers = _triggers(plan)
        values = {
            "header": HEADER,
            "plan": plan,
            "options": plan.section.airflow,
            "pods": plan.section.airflow.executor == "kubernetes",
            "user": USER,
            "tasks": tasks,
            "approvals": approvals,
            "waits": any(task.waits for task in tasks),
            "triggers": triggers,
            "names": ["DAG", *triggers.names],
            "checkout": _untemplated(_checkout(plan)),
        }
        text = templates.get_template("airflow_dag.py.jinja2").render(values)
        return {f"dags/mlkit_{plan.name.replace('-', '_')}.py": text}

    def checks(self) -> Mapping[str, str]:
        return {"import": "airflow dags list-import-errors", "run": "airflow dags test mlkit_NAME"}


# What Airflow cannot express


def _secret_faults(plan: DeliveryPlan, wanted: str) -> Iterator[Unsupported]:
    secrets = {("secrets", name): reference for name, reference in plan.secrets.items()}
    hints = {"kubernetes": "write kubernetes: {name: SECRET, key: KEY}", "env": "write env: NAME"}
    reader = {"kubernetes": "a pod reads Secrets of Kubernetes", "env": "a worker reads variables of its environment"}
    for key, reference in {("registry", "credentials"): plan.credentials, **secrets}.items():
        kind = next(name for name, value in reference if value is not None)
        if kind != wanted:
            yield Unsupported((*key, kind), f"{reader[wanted]}, and nothing of {kind}", hints[wanted])


def _trigger_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    alone = "triggers" in plan.section.model_fields_set and not EVENT_TARGETS & set(plan.section.targets)
    first: TriggerSettings | None = None
    for index, trigger in enumerate(plan.triggers):
        if trigger.on not in ASKING:
            if alone:
                message = f"Airflow is told of no {trigger.on.replace('_', ' ')}"
                hint = f"add one of {', '.join(sorted(EVENT_TARGETS))} to targets"
                yield Unsupported(("triggers", index, "on"), message, hint)
            continue
        if first is not None and trigger.branch != first.branch:
            message = f"a DAG runs for one branch: {first.branch} here"
            yield Unsupported(("triggers", index, "branch"), message, f"write branch: {first.branch}")
        first = first or trigger
    schedules = [(index, trigger) for index, trigger in enumerate(plan.triggers) if trigger.on == "schedule"]
    for index, trigger in schedules[1:]:
        zone = schedules[0][1].timezone
        if trigger.timezone != zone:
            message = f"the schedules of a DAG have one time zone: {zone} here"
            yield Unsupported(("triggers", index, "timezone"), message, f"write timezone: {zone}")


def _pod_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    options = plan.section.airflow
    wanted = {
        "image": ("a pod needs an image with git and the packages of the lock", "NAME@sha256:DIGEST"),
        "repository": ("a pod checks the recipe's repository out, whose address is not known", "https://HOST/NAME.git"),
        "state": ("pods hand outputs on in a volume", "CLAIM, a PersistentVolumeClaim"),
    }
    for key, (message, value) in wanted.items():
        if getattr(options, key) is None:
            yield Unsupported(("airflow", key), message, f"write airflow.{key}: {value}, or airflow.executor: bash")
    writers = [step.id for step in _steps(plan) if {"write-env-repo", "write-trigger"} & set(step.permissions)]
    if writers and options.git is None:
        message = f"step {writers[0]} pushes to a repository, and there is no token for that"
        yield Unsupported(("airflow", "git"), message, "write airflow.git: {name: SECRET, key: KEY}")
    if _has_label(plan):
        message = "a pod asks for resources, and not for a machine by its label"
        yield Unsupported(("runner", "label"), message, "write runner.cpus, memory_mb and gpus")


def _worker_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    if EVENT_TARGETS & set(plan.section.targets):
        return  # the machine is that of the other target
    for key in ("cpus", "memory_mb", "gpus", "label"):
        if key in plan.section.runner.model_fields_set:
            message = f"a command on the worker has the worker's machine, and cannot ask for {key}"
            yield Unsupported(("runner", key), message, "write airflow.executor: kubernetes, or remove the key")


def _has_label(plan: DeliveryPlan) -> bool:
    label = plan.section.runner.label != RunnerSettings().label
    return label and not EVENT_TARGETS & set(plan.section.targets)


# The DAG


@dataclass(frozen=True, slots=True)
class _Triggers:
    """When the DAG runs: a Python expression, the names of airflow.sdk that it needs, and assets by event."""

    schedule: str
    names: tuple[str, ...]
    assets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Task:
    """A task of the DAG: a step, or what comes before it: a person's approval, the time in which a version bakes."""

    id: str
    script: str = ""
    minutes: int = 0
    variables: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[tuple[str, str, str], ...] = ()
    requests: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    builds: bool = False
    approves: bool = False
    subject: str = ""
    waits: int = 0
    """Seconds that the task waits; 0 for one that does something."""

    @property
    def variable(self) -> str:
        return self.id.replace("-", "_")


def _triggers(plan: DeliveryPlan) -> _Triggers:
    schedules = [trigger for trigger in plan.triggers if trigger.on == "schedule"]
    assets = tuple(dict.fromkeys(trigger.on for trigger in plan.triggers if trigger.on in ("data", "drift")))
    events = f"({' | '.join(name.upper() for name in assets)})" if len(assets) > 1 else "".join(assets).upper()
    kind = "MultipleCronTriggerTimetable" if len(schedules) > 1 else "CronTriggerTimetable"
    crons = ", ".join(_python(trigger.cron) for trigger in schedules)
    times = f"{kind}({crons}, timezone={_python(schedules[0].timezone)})" if schedules else ""
    names = [*(["Asset"] if assets else []), *(["AssetOrTimeSchedule"] if assets and schedules else [])]
    if schedules:
        names.append(kind)
    if schedules and assets:
        schedule = f"AssetOrTimeSchedule(timetable={times}, assets={events})"
    else:
        schedule = times or events or "None"
    return _Triggers(schedule, tuple(names), assets)


def _steps(plan: DeliveryPlan) -> tuple[DeliveryStep, ...]:
    """The plan's steps but the comment: there is no change to comment on."""
    return tuple(step for step in plan.steps if step.id != "comment")


def _tasks(plan: DeliveryPlan) -> list[_Task]:
    tasks: list[_Task] = []
    for step in _steps(plan):
        seconds = plan.baking_seconds(step.environment) if step.id.startswith("promote-") else 0
        if seconds:
            tasks.append(_Task(f"bake-{step.environment}", waits=seconds + BAKING_MARGIN))
        if step.approval:
            subject = f"Promote {plan.name} to {step.environment}?"
            tasks.append(_Task(f"approve-{step.environment}", approves=True, subject=subject))
        resources = pod_resources(step.resources)
        tasks.append(
            _Task(
                step.id,
                _script(plan, step),
                step.timeout_minutes,
                _variables(plan, step),
                tuple((variable, secret.name, secret.key) for variable, secret in _secrets(plan, step)),
                resources["requests"],
                resources["limits"],
                builds=step.id == "image",
            )
        )
    return tasks


def _variables(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, str]:
    variables: dict[str, str] = {}
    if _REGISTRY & set(step.permissions):
        variables["MLKIT_REGISTRY"] = plan.registry.partition("/")[0]
    if step.id == "trigger":
        variables["MLKIT_BECAUSE"] = _because(plan)
    if step.id == "image" and plan.section.airflow.executor == "kubernetes":
        variables |= {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
    return variables


def _because(plan: DeliveryPlan) -> str:
    """What started the run, as a template of Airflow; a run by hand is one for new data."""
    events = {trigger.on for trigger in plan.triggers}
    asset = "data"
    if "drift" in events:
        drift = f"mlkit-{plan.name}-drift"
        names = "triggering_asset_events.keys() | map(attribute='name')"
        asset = f"{{{{ 'drift' if '{drift}' in ({names} | list) else 'data' }}}}"
    if "schedule" not in events:
        return asset
    inner = asset.removeprefix("{{ ").removesuffix(" }}") if asset != "data" else "'data'"
    return f"{{{{ 'schedule' if dag_run.run_type == 'scheduled' else {inner} }}}}"


def _secrets(plan: DeliveryPlan, step: DeliveryStep) -> list[tuple[str, KubernetesSecret]]:
    """Variables of a pod that hold secrets."""
    options = plan.section.airflow
    if options.executor != "kubernetes":
        return []
    given: list[tuple[str, KubernetesSecret | None]] = [("MLKIT_CODE_TOKEN", options.code)]
    if _GIT & set(step.permissions):
        given.append(("MLKIT_GIT_TOKEN", options.git))
    if _REGISTRY & set(step.permissions):
        given.append(("MLKIT_REGISTRY_TOKEN", plan.credentials.kubernetes))
    given += [(name, plan.secrets[name].kubernetes) for name in step.secrets]
    return [(variable, secret) for variable, secret in given if secret is not None]


def _script(plan: DeliveryPlan, step: DeliveryStep) -> str:
    """The step under bash. A step after which nothing has to follow ends with the code of a skipped task."""
    pods = plan.section.airflow.executor == "kubernetes"
    before = [] if pods else ['mkdir -p "$MLKIT_OUT"', *_worker_secrets(plan, step)]
    if step.id == "trigger":
        read = "import json, sys; print(json.load(sys.stdin)['action'])"
        body = (
            f'answer=$({command_line(step.command)})\necho "$answer"\n'
            f'action=$(printf %s "$answer" | python -c "{read}")\n'
            f'[ "$action" = started ] || exit {SKIPPED}\n'
        )
    else:
        neutral = f'[ "$code" -ne {NEUTRAL} ] || exit {SKIPPED}  # INCONCLUSIVE: nothing is delivered'
        record = neutral if NEUTRAL in step.exit_codes else ""
        body = step_script(replace(step, exit_codes=(0,)), record=record)
    return _untemplated("\n".join([*before, body]))


def _worker_secrets(plan: DeliveryPlan, step: DeliveryStep) -> list[str]:
    """Variables of the worker by the names that the step reads; one that is not set ends the step."""
    pairs = [(name, plan.secrets[name].env) for name in step.secrets]
    if _REGISTRY & set(step.permissions):
        pairs.append(("MLKIT_REGISTRY_TOKEN", plan.credentials.env))
    return [f'export {name}="${{{variable}:?}}"' for name, variable in pairs if name != variable]


def _checkout(plan: DeliveryPlan) -> str:
    """The commit of this run in a folder of its own; the first pod finds it, later ones read which it was."""
    branch = next((trigger.branch for trigger in plan.triggers if trigger.on in ASKING), "")
    branch = branch or next((trigger.branch for trigger in plan.triggers if trigger.on == "merge"), "main")
    header = "Authorization: Basic $(printf 'mlkit:%s' \"$MLKIT_CODE_TOKEN\" | base64 -w 0)"
    token = [
        "export GIT_CONFIG_COUNT=1",
        'export GIT_CONFIG_KEY_0="http.$MLKIT_REPOSITORY.extraHeader"',
        f'export GIT_CONFIG_VALUE_0="{header}"',
    ]
    lines = [
        'mkdir -p "$MLKIT_OUT"',
        *(token if plan.section.airflow.code else []),
        'git clone --quiet --no-checkout -- "$MLKIT_REPOSITORY" /tmp/code',
        *(["unset GIT_CONFIG_COUNT GIT_CONFIG_KEY_0 GIT_CONFIG_VALUE_0"] if plan.section.airflow.code else []),
        "cd /tmp/code",
        'if [ ! -s "$MLKIT_OUT/commit" ]; then',
        f"  git rev-parse --verify {command_line((f'refs/remotes/origin/{branch}^{{commit}}',))} > /tmp/commit",
        '  cp /tmp/commit "$MLKIT_OUT/commit.new" && mv "$MLKIT_OUT/commit.new" "$MLKIT_OUT/commit"',
        "fi",
        'git checkout --quiet --detach "$(cat "$MLKIT_OUT/commit")"',
    ]
    return "\n".join([*lines, ""])


# Python text


def _untemplated(script: str) -> str:
    """A script in which Airflow finds no template."""
    if not any(mark in script for mark in ("{{", "{%", "{#")):
        return script
    return "{% raw %}" + script.replace("{% endraw %}", "{% endraw %}{{ '{% endraw %}' }}{% raw %}") + "{% endraw %}"


def _python(value: object) -> str:
    """A value as Python, in double quotes.

    >>> _python({"cpu": 'a "b"'})
    '{"cpu": "a \\\\"b\\\\""}'
    """
    return json.dumps(value if not isinstance(value, Mapping) else dict(value), ensure_ascii=False)


def _python_text(text: str) -> str:
    """A text of several lines as Python that a person can read, where that is the same text."""
    if '"""' in text or "\\" in text or text.endswith('"') or not all(c == "\n" or c.isprintable() for c in text):
        return _python(text)
    return f'"""\\\n{text}"""'
