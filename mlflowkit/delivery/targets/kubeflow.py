"""Kubeflow Pipelines: a compiled pipeline (the v2 intermediate representation) that is uploaded as it is.

Every step is a container that checks the commit out and runs one command. The first step resolves the revision that a
run is asked for; the others get that commit, so that a branch that moves meanwhile changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from mlflowkit.delivery.delivery_plan import DeliveryPlan, DeliveryStep, Permission
from mlflowkit.delivery.delivery_settings import KubernetesSecret
from mlflowkit.delivery.delivery_target import DeliveryTarget, Unsupported
from mlflowkit.delivery.step_script import command_line, step_script
from mlflowkit.delivery.yaml_text import yaml_text

SDK = "kfp-2.16.1"
"""The version whose protocol the pipeline is written in."""
EVENT_TARGETS = frozenset(("github", "gitlab", "jenkins", "airflow"))
"""Targets that are told of changes or keep a schedule: beside one of them a trigger is theirs."""
STATE = "/mlkit/state"
SCRATCH_STATE = "/tmp/mlkit-state"
"""The state folder without a volume."""
ARTIFACTS = {"check": "out", "judge": "out", "image": "record"}
"""What a step leaves as an artifact: its folder of outputs, or the record of pushed images that promotions read."""
RECORD = "$MLKIT_OUT/image.json"
NEUTRAL = 4
"""The exit code of INCONCLUSIVE."""
HEADER = (
    "Change the recipe and run `mlkit export RECIPE`; what is changed here is merged when it is generated again.\n"
    "Upload this file as a version of the pipeline. Kubeflow's cache is off: `mlkit` itself knows what changed."
)
_REGISTRY: frozenset[Permission] = frozenset(("read-image", "push-image"))
_GIT: frozenset[Permission] = frozenset(("read-env-repo", "write-env-repo", "write-trigger"))


class KubeflowPipelines(DeliveryTarget):
    """A pipeline of Kubeflow."""

    name = "kubeflow"
    version = 1
    steps: ClassVar[frozenset[str]] = frozenset(("trigger", "check", "judge", "finish", "image", "promote", "settle"))

    def unsupported(self, plan: DeliveryPlan) -> Iterator[Unsupported]:
        yield from _secret_faults(plan)
        yield from _trigger_faults(plan)
        yield from _environment_faults(plan)
        if plan.section.policy.signed:
            message = "a step has no identity token to sign with"
            yield Unsupported(("policy", "signed"), message, "write signed: false")

    def render(self, plan: DeliveryPlan) -> Mapping[str, str]:
        components: dict[str, Any] = {}
        root, names = _dag(plan, _levels(plan), components)
        pipeline = {
            "pipelineInfo": {
                "name": f"mlkit-{plan.name}",
                "description": f"{plan.recipe.path}: checked, judged, delivered",
            },
            "schemaVersion": "2.1.0",
            "sdkVersion": SDK,
            "root": {"dag": root, "inputDefinitions": {"parameters": {name: _parameter(plan, name) for name in names}}},
            "components": components,
            "deploymentSpec": {"executors": {f"exec-{step.id}": _executor(plan, step) for step in _steps(plan)}},
        }
        executors = {f"exec-{step.id}": _platform(plan, step) for step in _steps(plan)}
        platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}
        text = yaml_text(pipeline, header=HEADER) + "---\n" + yaml_text(platform)
        return {f"pipelines/mlkit-{plan.name}.yaml": text}


# What Kubeflow cannot express


def _secret_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    references = {("secrets", name): reference for name, reference in plan.secrets.items()}
    for key, reference in {("registry", "credentials"): plan.credentials, **references}.items():
        kind = next(name for name, value in reference if value is not None)
        if kind != "kubernetes":
            message = f"a step cannot read a secret of {kind}"
            yield Unsupported((*key, kind), message, "write kubernetes: {name: SECRET, key: KEY}")
    if plan.section.kubeflow.git is None and any(_GIT & set(step.permissions) for step in _steps(plan)):
        needed = [step for step in _steps(plan) if {"write-env-repo", "write-trigger"} & set(step.permissions)]
        if needed:
            message = f"step {needed[0].id} pushes to a repository, and there is no token for that"
            yield Unsupported(("kubeflow", "git"), message, "write kubeflow.git: {name: SECRET, key: KEY}")


def _trigger_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    if "triggers" not in plan.section.model_fields_set or EVENT_TARGETS & set(plan.section.targets):
        return
    for index, trigger in enumerate(plan.triggers):
        others = ", ".join(sorted(EVENT_TARGETS))
        if trigger.on in ("pull_request", "merge"):
            message = f"Kubeflow is told of no {trigger.on.replace('_', ' ')}"
            yield Unsupported(("triggers", index, "on"), message, f"add one of {others} to targets")
        elif trigger.on == "schedule":
            message = "Kubeflow keeps recurring runs in its server: a file cannot make one"
            hint = f"write on: data and make a recurring run, or add one of {others} to targets"
            yield Unsupported(("triggers", index, "on"), message, hint)


def _environment_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    if plan.environments and plan.section.kubeflow.state is None:
        message = "a rollout is settled from the gateway's state folder, which a step has as a volume only"
        yield Unsupported(("kubeflow", "state"), message, "write kubeflow.state: CLAIM, the gateway's volume")
    for environment in plan.environments:
        key = ("environments", environment.name)
        if environment.settings.promote == "approval":
            hint = "write promote: automatic, or deliver by a target that asks a person"
            yield Unsupported((*key, "promote"), "a pipeline of Kubeflow cannot wait for a person", hint)
        if environment.settings.baking:
            message = "a pipeline of Kubeflow cannot wait for a version to bake: it tries again for an hour at most"
            hint = "remove baking, or deliver by github, gitlab, jenkins or airflow"
            yield Unsupported((*key, "baking"), message, hint)
        repository = environment.settings.repo or ""
        if repository and not repository.startswith("https://"):
            message = "a step has a token, and neither an SSH key nor another machine's files"
            yield Unsupported((*key, "repo"), message, "write an https:// address")


# The graph


@dataclass(frozen=True, slots=True)
class _Level:
    """Steps of one graph, which runs under a condition: that ``name`` is ``value``."""

    steps: tuple[DeliveryStep, ...]
    title: str = ""
    name: str = ""
    value: str = ""


def _steps(plan: DeliveryPlan) -> tuple[DeliveryStep, ...]:
    """The plan's steps but the comment: there is no change to comment on."""
    return tuple(step for step in plan.steps if step.id != "comment")


def _levels(plan: DeliveryPlan) -> list[_Level]:
    """Graphs, each inside the one before."""
    levels = [_Level(())]
    for step in _steps(plan):
        if step.id == "finish" and levels[-1].title == "passed":  # beside the judge, whatever its verdict is
            levels[-2] = replace(levels[-2], steps=(*levels[-2].steps, step))
            continue
        levels[-1] = replace(levels[-1], steps=(*levels[-1].steps, step))
        if step.id == "trigger":
            levels.append(_Level((), "there-is-work", "action", "started"))
        elif step.id == "judge" and NEUTRAL in step.exit_codes:
            levels.append(_Level((), "passed", "code", "0"))
    return levels


def _producer(plan: DeliveryPlan, name: str) -> str:
    """The step that writes a value; "" for a parameter of the run."""
    first = _steps(plan)[0].id
    writers = {"commit": first, "action": "trigger", "code": "judge", "out": "judge", "record": "image"}
    return writers.get(name, "")


def _inputs(plan: DeliveryPlan, step: DeliveryStep) -> list[str]:
    """Parameters that a step takes, in the order of its arguments."""
    first = step == _steps(plan)[0]
    return [
        "repository",
        "revision" if first else "commit",
        *(["because"] if step.id == "trigger" else []),
        *(["registry_user"] if _REGISTRY & set(step.permissions) else []),
    ]


def _outputs(plan: DeliveryPlan, step: DeliveryStep) -> list[str]:
    names = {"trigger": ["action"], "judge": ["code"]}.get(step.id, [])
    return [*(["commit"] if step == _steps(plan)[0] else []), *names]


def _artifacts_read(step: DeliveryStep) -> list[str]:
    """The judge's outputs, and for a promotion the record of the images."""
    if not {"--from", "--finished"} & set(step.command):
        return []
    return ["out", "record"] if step.id.startswith("promote-") else ["out"]


def _artifacts_written(step: DeliveryStep) -> list[str]:
    return [ARTIFACTS[step.id]] if step.id in ARTIFACTS else []


def _dag(plan: DeliveryPlan, levels: list[_Level], components: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A graph and the values that it takes from outside; its components are added to ``components``."""
    level, inner = levels[0], levels[1:]
    local = {step.id for step in level.steps}
    tasks: dict[str, Any] = {}
    wanted: list[str] = []
    for step in level.steps:
        names = [*_inputs(plan, step), *_artifacts_read(step)]
        components[f"comp-{step.id}"] = _component(plan, step)
        needs = [need for need in step.needs if need in local]
        tasks[step.id] = {
            "taskInfo": {"name": step.id},
            "componentRef": {"name": f"comp-{step.id}"},
            **({"dependentTasks": needs} if needs else {}),
            "cachingOptions": {"enableCache": False},
            "inputs": _sources(plan, names, local),
        }
        wanted += names
    if inner:
        body, names = _dag(plan, inner, components)
        condition = inner[0]
        names = list(dict.fromkeys([*names, condition.name]))
        components[f"comp-{condition.title}"] = {"dag": body, "inputDefinitions": _definitions(names)}
        tasks[condition.title] = {
            "taskInfo": {"name": condition.title},
            "componentRef": {"name": f"comp-{condition.title}"},
            "dependentTasks": [_producer(plan, condition.name)],
            "inputs": _sources(plan, names, local),
            "triggerPolicy": {
                "condition": f"inputs.parameter_values['{condition.name}'] == '{condition.value}'",
            },
        }
        wanted += names
    return {"tasks": tasks}, [name for name in dict.fromkeys(wanted) if _producer(plan, name) not in local]


def _sources(plan: DeliveryPlan, names: list[str], local: set[str]) -> dict[str, Any]:
    """Where the inputs of a task come from: a task of the same graph, or the graph's own inputs."""
    parameters: dict[str, Any] = {}
    artifacts: dict[str, Any] = {}
    for name in names:
        producer, artifact = _producer(plan, name), name in ARTIFACTS.values()
        into, kind = (artifacts, "Artifact") if artifact else (parameters, "Parameter")
        if producer in local:
            key = f"output{kind}Key"
            into[name] = {f"taskOutput{kind}": {"producerTask": producer, key: name}}
        else:
            into[name] = {f"componentInput{kind}": name}
    return {**({"artifacts": artifacts} if artifacts else {}), "parameters": parameters}


def _definitions(names: list[str]) -> dict[str, Any]:
    kind = {"artifactType": {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}}
    artifacts = {name: kind for name in names if name in ARTIFACTS.values()}
    parameters = {name: {"parameterType": "STRING"} for name in names if name not in artifacts}
    return {
        **({"artifacts": artifacts} if artifacts else {}),
        **({"parameters": parameters} if parameters else {}),
    }


def _component(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, Any]:
    outputs = [*_outputs(plan, step), *_artifacts_written(step)]
    return {
        "executorLabel": f"exec-{step.id}",
        "inputDefinitions": _definitions([*_inputs(plan, step), *_artifacts_read(step)]),
        **({"outputDefinitions": _definitions(outputs)} if outputs else {}),
    }


def _parameter(plan: DeliveryPlan, name: str) -> dict[str, Any]:
    """A parameter of the run: only the repository's address has no default."""
    branch = next((trigger.branch for trigger in plan.triggers if trigger.on == "merge"), "main")
    defaults = {"revision": branch, "because": "data", "registry_user": "mlkit"}
    optional = {"defaultValue": defaults[name], "isOptional": True} if name in defaults else {}
    return {"parameterType": "STRING", **optional}


# The containers


def _executor(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, Any]:
    values = [f"{{{{$.inputs.parameters['{name}']}}}}" for name in _inputs(plan, step)]
    values += [f"{{{{$.outputs.parameters['{name}'].output_file}}}}" for name in _outputs(plan, step)]
    values += [f"{{{{$.inputs.artifacts['{name}'].path}}}}" for name in _artifacts_read(step)]
    values += [f"{{{{$.outputs.artifacts['{name}'].path}}}}" for name in _artifacts_written(step)]
    return {
        "container": {
            "image": plan.section.kubeflow.image or plan.images[0].base,
            "command": ["sh", "-euc", _script(plan, step), "mlkit"],
            "args": values,
            "env": [{"name": name, "value": value} for name, value in _variables(plan, step).items()],
            "resources": _resources(step),
        }
    }


def _variables(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, str]:
    registry = {"MLKIT_REGISTRY": plan.registry.partition("/")[0]} if _REGISTRY & set(step.permissions) else {}
    builder = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"} if step.id == "image" else {}
    return {
        "PYTHONUNBUFFERED": "1",
        "MLKIT_STATE": STATE if plan.section.kubeflow.state else SCRATCH_STATE,
        **registry,
        **builder,
    }


def _resources(step: DeliveryStep) -> dict[str, Any]:
    """Requests, and the memory as a limit too; in the fields of Kubeflow before 2.4, and in those since."""
    wanted = step.resources
    memory, gigabytes = f"{wanted.memory_mb}Mi", wanted.memory_mb * 1048576 / 1e9
    gpus = str(wanted.gpus)
    accelerator = {"type": "nvidia.com/gpu", "count": gpus, "resourceType": "nvidia.com/gpu", "resourceCount": gpus}
    return {
        "cpuRequest": float(wanted.cpus),
        "memoryRequest": gigabytes,
        "memoryLimit": gigabytes,
        "resourceCpuRequest": f"{round(wanted.cpus * 1000)}m",
        "resourceMemoryRequest": memory,
        "resourceMemoryLimit": memory,
        **({"accelerator": accelerator} if wanted.gpus else {}),
    }


def _platform(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, Any]:
    """What Kubernetes adds to a step: secrets, the state folder, and when it is ended."""
    options = plan.section.kubeflow
    secrets: list[tuple[str, KubernetesSecret | None]] = [("MLKIT_CODE_TOKEN", options.code)]
    if _GIT & set(step.permissions):
        secrets.append(("MLKIT_GIT_TOKEN", options.git))
    if _REGISTRY & set(step.permissions):
        secrets.append(("MLKIT_REGISTRY_TOKEN", plan.credentials.kubernetes))
    secrets += [(name, plan.secrets[name].kubernetes) for name in step.secrets]
    mount = _named("pvcNameParameter", "constant", options.state or "")
    variables = [_secret_variable(name, secret) for name, secret in secrets if secret is not None]
    return {
        **({"secretAsEnv": variables} if variables else {}),
        **({"pvcMount": [{**mount, "mountPath": STATE}]} if options.state else {}),
        "activeDeadlineSeconds": str(step.timeout_minutes * 60),
    }


def _secret_variable(name: str, secret: KubernetesSecret) -> dict[str, Any]:
    key = {"secretKey": secret.key, "envVar": name}
    return {**_named("secretNameParameter", "secretName", secret.name), "keyToEnv": [key], "optional": False}


def _named(key: str, former: str, name: str) -> dict[str, Any]:
    """A name in its field, and in that of earlier servers."""
    return {key: {"runtimeValue": {"constant": name}}, former: name}


def _script(plan: DeliveryPlan, step: DeliveryStep) -> str:
    """Check the commit out and run the command; values come as arguments, never as text of the script."""
    names = [*_inputs(plan, step), *(f"{name}_file" for name in _outputs(plan, step))]
    names += [*_artifacts_read(step), *_artifacts_written(step)]
    lines = [f"{_SHELL.get(name, name)}=${number}" for number, name in enumerate(names, 1)]
    exported = [_SHELL.get(name, name) for name in names if name in _SHELL]
    lines += [f"export {' '.join(exported)}"] if exported else []
    lines += _checkout(plan, step, "commit" if "commit" in names else "revision")
    if "commit_file" in names:
        lines += _written("commit_file", '"$commit"')
    if step.id == "trigger":
        read = "import json, sys; print(json.load(sys.stdin)['action'], end='')"
        lines += [f"answer=$({command_line(step.command)})", 'echo "$answer"']
        lines += [f'action=$(printf %s "$answer" | python -c "{read}")', *_written("action_file", '"$action"')]
        return "\n".join([*lines, ""])
    if "record" in _artifacts_read(step):
        lines.append(f'cp "$record" "{RECORD}"')
    record = {"judge": "; ".join(_written("code_file", '"$code"')), "image": _KEEP_RECORD}.get(step.id, "")
    return "\n".join([*lines, step_script(step, record=record)])


_SHELL = {"because": "MLKIT_BECAUSE", "registry_user": "MLKIT_REGISTRY_USER", "out": "MLKIT_OUT"}
"""What the command reads as environment variables."""
_KEEP_RECORD = f'[ "$code" -ne 0 ] || {{ mkdir -p "$(dirname "$record")"; cp "{RECORD}" "$record"; }}'


def _written(file: str, value: str) -> list[str]:
    return [f'mkdir -p "$(dirname "${file}")"', f'printf %s {value} > "${file}"']


def _checkout(plan: DeliveryPlan, step: DeliveryStep, wanted: str) -> list[str]:
    """Packages, unless the image has them, and the commit in a folder of its own."""
    own = plan.section.kubeflow.image is not None
    packages = "git buildah" if step.id == "image" else "git"
    debian = ["apt-get update -qq", f"apt-get install -qq -y --no-install-recommends {packages} >/dev/null"]
    python = ["python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore"
              f" -r {plan.section.requirements}"]  # fmt: skip
    find = f'commit=$(git rev-parse --verify --quiet "refs/remotes/origin/${wanted}^{{commit}}" ||'
    header = "Authorization: Basic $(printf 'mlkit:%s' \"$MLKIT_CODE_TOKEN\" | base64 -w 0)"
    token = [
        f'GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0="http.$repository.extraHeader" GIT_CONFIG_VALUE_0="{header}" \\',
        '  git clone --quiet --no-checkout -- "$repository" "$folder"',
    ]
    clone = token if plan.section.kubeflow.code else ['git clone --quiet --no-checkout -- "$repository" "$folder"']
    return [
        *([] if own else debian),
        "folder=$(mktemp -d)/code",
        *clone,
        'cd "$folder"',
        f'{find} git rev-parse --verify "${wanted}^{{commit}}")',
        'git checkout --quiet --detach "$commit"',
        *([] if own else python),
    ]
