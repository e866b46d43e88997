"""GitLab CI: a file to include, with one job a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mlflowkit.delivery.delivery_plan import BAKING_MARGIN, OUTPUT, DeliveryPlan, DeliveryStep
from mlflowkit.delivery.delivery_settings import RunnerSettings, SecretReference
from mlflowkit.delivery.delivery_target import DeliveryTarget, Unsupported, machine_faults
from mlflowkit.delivery.step_script import command_line, step_script
from mlflowkit.delivery.yaml_text import Commented, yaml_text

FOLDER = ".mlkit-ci"
"""Outputs and state: artifacts and caches must lie in the project's folder, where git is told to ignore them."""
MERGE_REQUEST = "$CI_PIPELINE_SOURCE == 'merge_request_event'"
CALLED = "($CI_PIPELINE_SOURCE == 'trigger' || $CI_PIPELINE_SOURCE == 'api') && $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH"
NEUTRAL = 4
"""The exit code of INCONCLUSIVE."""
MAX_DELAY = 7 * 24 * 3600
"""Seconds after which GitLab starts a delayed job at the latest."""
HEADER = "Change the recipe and run `mlkit export RECIPE`; what is changed here is merged when it is generated again."


class GitlabCi(DeliveryTarget):
    """GitLab CI."""

    name = "gitlab"
    version = 2

    def unsupported(self, plan: DeliveryPlan) -> Iterator[Unsupported]:
        secrets = {("secrets", name): reference for name, reference in plan.secrets.items()}
        for key, reference in {("registry", "credentials"): plan.credentials, **secrets}.items():
            kind = next(name for name, value in reference if value is not None)
            if kind == "kubernetes":
                yield Unsupported((*key, kind), "GitLab CI cannot read a secret of Kubernetes", "write env or vault")
            elif kind == "oidc" and key[0] == "secrets":
                message = "a job's identity is exchanged by the registry only, and is no secret of a step"
                yield Unsupported((*key, kind), message, "write env: NAME, a masked variable of the project")
            elif reference.oidc not in (None, "gitlab"):
                message = f"a GitLab job has no identity of {reference.oidc}"
                yield Unsupported((*key, kind), message, "write oidc: gitlab, or env: NAME")
            elif kind == "vault" and key[0] == "registry":
                message = "the registry's token is read from a variable of the project"
                yield Unsupported((*key, kind), message, "write env: NAME, a masked variable of the project")
        for index, trigger in enumerate(plan.triggers):
            if trigger.on == "schedule":
                message = "GitLab keeps schedules in the project's settings: a file cannot make one"
                yield Unsupported(
                    ("triggers", index, "on"), message, "write on: data, and let the project's schedule call the API"
                )
        yield from machine_faults(plan, "GitLab", "the tag of such a runner")
        for environment in plan.environments:
            if plan.baking_seconds(environment.name) + BAKING_MARGIN > MAX_DELAY:
                message = "GitLab delays a job by a week at most"
                yield Unsupported(("environments", environment.name, "baking"), message, "write baking: 6d")

    def render(self, plan: DeliveryPlan) -> Mapping[str, str]:
        file = f".gitlab/mlkit-{plan.name}.yml"
        header = f"{HEADER}\nIn .gitlab-ci.yml: include: [{{local: {file}}}]"
        return {file: yaml_text(_pipeline(plan), header=header)}

    def checks(self) -> Mapping[str, str]:
        transform = "--builtin-schema vendor.gitlab-ci --data-transform gitlab-ci"
        return {"schema": f"check-jsonschema {transform} .gitlab/mlkit-*.yml"}


def _pipeline(plan: DeliveryPlan) -> dict[str, Any]:
    """Jobs only: an included file says nothing of the pipelines of its project. The rules of each job put it into
    one pipeline a change: of the merge request while there is one, of the branch once it is merged."""
    return {name: job for step in plan.steps for name, job in _jobs(plan, step).items()}


def _jobs(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, Any]:
    """The job of a step, and before a promotion of what must bake first one that waits for that long."""
    seconds = plan.baking_seconds(step.environment) if step.id.startswith("promote-") else 0
    own = {_job_name(plan, step.id): _job(plan, step)}
    if not seconds:
        return own
    delayed = {"when": "delayed", "start_in": f"{seconds + BAKING_MARGIN} seconds"}
    before = plan.section.environments[step.environment].after
    bake = {
        "image": plan.images[0].base,
        "rules": [{"if": rule, **delayed} for rule in (*_pushes(plan), *_calls(plan))],
        "needs": [{"job": _job_name(plan, f"settle-{before}")}],
        "timeout": "5 minutes",
        "variables": {"GIT_STRATEGY": "none"},
        "script": [f"echo 'the version has had its time in {before}; the promotion looks whether it still serves'"],
    }
    return {_job_name(plan, f"bake-{step.environment}"): bake, **own}


def _job_name(plan: DeliveryPlan, id: str) -> str:
    return f"mlkit-{plan.name}-{id}"


def _branches(plan: DeliveryPlan, event: str) -> list[str]:
    return list(dict.fromkeys(trigger.branch for trigger in plan.triggers if trigger.on == event))


def _merge_requests(plan: DeliveryPlan) -> list[str]:
    names = _branches(plan, "pull_request")
    return [f"{MERGE_REQUEST} && $CI_MERGE_REQUEST_TARGET_BRANCH_NAME == '{name}'" for name in names]


def _pushes(plan: DeliveryPlan) -> list[str]:
    return [f"$CI_PIPELINE_SOURCE == 'push' && $CI_COMMIT_BRANCH == '{name}'" for name in _branches(plan, "merge")]


def _calls(plan: DeliveryPlan) -> list[str]:
    return [CALLED] if any(trigger.on in ("data", "drift") for trigger in plan.triggers) else []


def _job(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, Any]:
    label = plan.section.runner.label
    tags = [] if label == RunnerSettings().label else [label]
    needs = [{"job": _job_name(plan, need), "artifacts": True, **_optional(need)} for need in _needs(plan, step)]
    neutral = NEUTRAL in plan.step("judge").exit_codes and step.id.partition("-")[0] in ("judge", "image", "promote")
    return {
        "image": plan.images[0].base,
        **({"tags": tags} if tags else {}),
        "rules": _rules(plan, step),
        "needs": needs,
        "timeout": f"{step.timeout_minutes} minutes",
        **({"interruptible": True} if step.id in ("check", "judge", "comment") else {}),
        **({"allow_failure": {"exit_codes": [NEUTRAL]}} if neutral else {}),
        **({"allow_failure": Commented(True, "the verdict is the judge's")} if step.id == "comment" else {}),
        **_environment(plan, step),
        **_secrets(plan, step),
        "variables": _variables(plan, step),
        **_cache(plan, step),
        "before_script": [
            f'mkdir -p {FOLDER} && echo "/{FOLDER}/" >> .git/info/exclude',
            f"apt-get update -qq && apt-get install -qq -y --no-install-recommends {_packages(step)} >/dev/null",
            f"python -m pip install --disable-pip-version-check -r {plan.section.requirements}",
        ],
        "script": [_script(plan, step)],
        **_artifacts(step),
    }


def _packages(step: DeliveryStep) -> str:
    """Debian packages that a step needs and Python's image lacks."""
    return "git buildah" if step.id == "image" else "git"


def _needs(plan: DeliveryPlan, step: DeliveryStep) -> list[str]:
    """The jobs before; the judge's, whose outputs the step reads; and the one that knows whether there is work."""
    reads = step.id not in ("trigger", "check", "judge") and any(OUTPUT in word for word in step.command)
    asked = _calls(plan) and step.id not in ("trigger", "comment")
    bakes = step.id.startswith("promote-") and plan.baking_seconds(step.environment)
    baked = [f"bake-{step.environment}"] if bakes else []
    return list(dict.fromkeys([*(["trigger"] if asked else []), *(["judge"] if reads else []), *step.needs, *baked]))


def _optional(need: str) -> dict[str, Any]:
    return {"optional": True} if need == "trigger" else {}  # it is part of some pipelines only


def _rules(plan: DeliveryPlan, step: DeliveryStep) -> list[Any]:
    changes, calls = _merge_requests(plan), _calls(plan)
    if step.id == "trigger":
        return [{"if": rule} for rule in calls]
    if step.id == "finish":  # its script looks whether there is a verdict, and an image for a good one
        return [{"if": rule, "when": "always"} for rule in calls]
    if step.id == "comment":
        return [{"if": rule, "when": "always"} for rule in changes]
    delivered = [*_pushes(plan), *calls]
    if step.id in ("check", "judge"):
        restored = {"variables": {"MLKIT_CACHE": "pull"}} if step.id == "judge" else {}
        return [*({"if": rule, **restored} for rule in changes), *({"if": rule} for rule in delivered)]
    manual = {"when": "manual"} if step.approval else {}
    return [{"if": rule, **manual} for rule in delivered]


def _environment(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, Any]:
    if not step.environment:
        return {}
    group = f"{plan.name}-{step.environment}"
    return {"environment": {"name": step.environment}, "resource_group": Commented(group, "one promotion at a time")}


def _secrets(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, Any]:
    """Secrets of Vault, which the job reads with an identity token of its own."""
    fields = {name: plan.secrets[name].vault for name in step.secrets if plan.secrets[name].vault}
    if not fields:
        return {}
    return {
        "id_tokens": {"VAULT_ID_TOKEN": {"aud": "$VAULT_SERVER_URL"}},
        "secrets": {
            name: {"vault": (field or "").replace("#", "/"), "file": False, "token": "$VAULT_ID_TOKEN"}
            for name, field in fields.items()
        },
    }


def _variables(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, Any]:
    variables: dict[str, Any] = {
        "PYTHONUNBUFFERED": "1",
        "MLKIT_OUT": f"$CI_PROJECT_DIR/{FOLDER}/out",
        "MLKIT_STATE": f"$CI_PROJECT_DIR/{FOLDER}/state",
    }
    for name in step.secrets:
        variable = plan.secrets[name].env
        if variable and variable != name:  # a variable of its own name is there already
            variables[name] = f"${variable}"
    if {"read-image", "push-image"} & set(step.permissions):
        user, token = _registry(plan.credentials)
        host = plan.registry.partition("/")[0]
        variables |= {"MLKIT_REGISTRY": host, "MLKIT_REGISTRY_USER": user, "MLKIT_REGISTRY_TOKEN": token}
    if {"write-env-repo", "write-trigger"} & set(step.permissions):
        push = Commented("$MLKIT_ENV_TOKEN", "a masked, protected variable: a token that may push")
        variables["MLKIT_GIT_TOKEN"] = push
    elif "read-env-repo" in step.permissions and plan.environments:
        variables["MLKIT_GIT_TOKEN"] = Commented("$MLKIT_READ_TOKEN", "a masked variable: a token that may only read")
    if step.id == "trigger":
        variables["MLKIT_BECAUSE"] = Commented("data", "or drift: whoever calls the trigger API says so")
    if step.id == "comment":
        variables["GITLAB_TOKEN"] = Commented("$MLKIT_COMMENT_TOKEN", "a masked variable: a token of the scope api")
    if step.id == "image":  # without a daemon, and without rights beyond those of any container
        variables |= {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
    if step.id == "judge":
        variables["MLKIT_CACHE"] = "pull-push"
    return variables


def _registry(reference: SecretReference) -> tuple[str, str]:
    """User and token: of the project's own registry, or of the variable that the recipe names."""
    return ("$MLKIT_USER", f"${reference.env}") if reference.env else ("$CI_REGISTRY_USER", "$CI_REGISTRY_PASSWORD")


def _cache(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, Any]:
    if step.id != "judge":
        return {}
    key = {"prefix": f"mlkit-{plan.name}", "files": [plan.section.requirements]}
    policy = Commented("$MLKIT_CACHE", "a merge request restores only")
    return {"cache": {"key": key, "paths": [f"{FOLDER}/state"], "policy": policy}}


def _script(plan: DeliveryPlan, step: DeliveryStep) -> str:
    if step.id == "trigger":
        read = "import json, sys; print('MLKIT_ACTION=' + json.load(sys.stdin)['action'])"
        answer = f"{FOLDER}/trigger.json"
        return f'{command_line(step.command)} > {answer}\npython -c "{read}" < {answer} > {FOLDER}/trigger.env\n'
    lines = []
    if _calls(plan) and step.id != "comment":
        lines += ['if [ "${MLKIT_ACTION:-started}" != started ]; then echo "no work: $MLKIT_ACTION"; exit 0; fi']
    if step.id == "finish":
        unbuilt = f'{{ [ "${{MLKIT_CODE:-0}}" = 0 ] && [ ! -f {FOLDER}/out/image.json ]; }}'
        missing = f"[ ! -f {FOLDER}/out/report.json ] || {unbuilt}"
        lines += [f"if {missing}; then echo 'no verdict or no image: the claim ends with its lease'; exit 0; fi"]
    if step.id == "image":
        lines += [f'if [ "${{MLKIT_CODE:-0}}" = {NEUTRAL} ]; then exit {NEUTRAL}; fi  # INCONCLUSIVE: not delivered']
    record = f'echo "MLKIT_CODE=$code" > {FOLDER}/judge.env; rm -rf "$MLKIT_STATE/trials"'
    # No exit code becomes 0: allow_failure tells INCONCLUSIVE from success.
    script = step_script(replace(step, exit_codes=(0,)), record=record if step.id == "judge" else "")
    return "\n".join([*lines, script])


def _artifacts(step: DeliveryStep) -> dict[str, Any]:
    if step.id == "trigger":
        return {"artifacts": {"reports": {"dotenv": f"{FOLDER}/trigger.env"}}}
    if not step.outputs:
        return {}
    out = f"{FOLDER}/out"
    reports: dict[str, Any] = {"junit": f"{out}/{'checks.xml' if step.id == 'check' else 'junit.xml'}"}
    if step.id == "judge":
        reports |= {"metrics": f"{out}/metrics.txt", "dotenv": f"{FOLDER}/judge.env"}
    paths = [f"{out}/"] if step.id == "judge" else [f"{out}/{name}" for name in step.outputs]
    kept = {"when": "always", "expire_in": "30 days", "paths": paths}
    return {"artifacts": {**kept, **({"reports": reports} if step.id in ("check", "judge") else {})}}
