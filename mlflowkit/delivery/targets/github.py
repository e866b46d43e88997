"""GitHub Actions: a workflow for the pipeline, and one that comments on pull requests without any code of theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mlflowkit import __version__
from mlflowkit.delivery.delivery_plan import OUTPUT, DeliveryPlan, DeliveryStep, Permission
from mlflowkit.delivery.delivery_settings import SecretReference
from mlflowkit.delivery.delivery_target import DeliveryTarget, Unsupported, machine_faults
from mlflowkit.delivery.pins import action
from mlflowkit.delivery.step_script import command_line, step_script
from mlflowkit.delivery.yaml_text import Commented, yaml_text

PYTHON = "3.11"
OUT = "${{ runner.temp }}/mlkit"
STATE = "${{ runner.temp }}/mlkit-state"
SAME_REPOSITORY = (
    "github.event_name != 'pull_request' || github.event.pull_request.head.repo.full_name == github.repository"
)
"""Not a pull request from a fork: those have no secrets and a token that can only read."""
RIGHTS: Mapping[Permission, Mapping[str, tuple[str, str]]] = {
    "read-code": {"contents": ("read", "check out the code")},
    "read-image": {"packages": ("read", "pull images and bundles")},
    "push-image": {"packages": ("write", "push the image and the bundle")},
    "sign": {"id-token": ("write", "sign with the identity of this workflow"),
             "attestations": ("write", "record the provenance")},
    "write-comment": {"pull-requests": ("write", "write the comment")},
    "write-trigger": {"contents": ("write", "claim the run with a git ref, so that it is started once")},
}  # fmt: skip
"""Rights of the workflow's token, with the reason that stands beside each. Those of the environment's repository are
not among them where it is another one: `_env_repository`."""
OWN_RUNNER = ("check", "judge", "image", "settle")
"""Steps on the runner that the recipe names: what trains or builds, and what asks the gateway, which may be inside."""
NO_APPROVAL = "zizmor: ignore[secrets-outside-env] this job runs before anybody approves a promotion"
HEADER = "Change the recipe and run `mlkit export RECIPE`; what is changed here is merged when it is generated again."

HOSTED = re.compile(r"(ubuntu|windows|macos)-")
"""Labels of GitHub's own machines, each of which is used for one job."""
NO_FORK = "github.event_name != 'pull_request' || github.event.pull_request.head.repo.full_name == github.repository"
BAKED_CRON = "23 * * * *"
"""When the workflow of what has baked looks: once an hour, and not on the hour, when GitHub has most to do."""
BY_HAND_ON_DEFAULT_BRANCH = (
    "github.event_name != 'workflow_dispatch' || github.ref_name == github.event.repository.default_branch"
)
"""A person may start a workflow on any branch, and deliver from the default one only."""


class GithubActions(DeliveryTarget):
    """GitHub Actions."""

    name = "github"
    version = 2

    def unsupported(self, plan: DeliveryPlan) -> Iterator[Unsupported]:
        secrets = {("secrets", name): reference for name, reference in plan.secrets.items()}
        for key, reference in {("registry", "credentials"): plan.credentials, **secrets}.items():
            kind = next(name for name, value in reference if value is not None)
            if kind in ("kubernetes", "vault"):
                message = f"GitHub Actions cannot read a secret of {kind}"
                yield Unsupported((*key, kind), message, "write env: NAME, a secret of the repository, or oidc: github")
            elif kind == "oidc" and key[0] == "secrets":
                message = "GitHub's identity is exchanged by the registry only, and is no secret of a step"
                yield Unsupported((*key, kind), message, "write env: NAME, a secret of the repository")
            elif reference.oidc not in (None, "github"):
                yield Unsupported(
                    (*key, kind), f"a GitHub workflow has no identity of {reference.oidc}", "write github"
                )
        yield from machine_faults(plan, "GitHub", "the label of such a runner, as ubuntu-24.04 has 4 CPUs and 16 GB")
        for index, trigger in enumerate(plan.triggers):
            if trigger.cron is not None and "L" in trigger.cron.upper().replace("JUL", ""):
                yield Unsupported(("triggers", index, "cron"), "GitHub's cron has no L", "write a number of days")

    def render(self, plan: DeliveryPlan) -> Mapping[str, str]:
        folder = ".github/workflows"
        files = {f"{folder}/mlkit-{plan.name}.yml": yaml_text(_pipeline(plan), plain=("on",), header=HEADER)}
        if _on(plan, "pull_request"):
            files[f"{folder}/mlkit-{plan.name}-comment.yml"] = yaml_text(_comment(plan), plain=("on",), header=HEADER)
        if plan.held:
            files[f"{folder}/mlkit-{plan.name}-baked.yml"] = yaml_text(_baked(plan), plain=("on",), header=HEADER)
        return files

    def checks(self) -> Mapping[str, str]:
        return {
            "syntax": "actionlint",
            "security": "zizmor --offline --persona=auditor .github/workflows",
            "schema": "check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/mlkit-*.yml",
        }


def _pipeline(plan: DeliveryPlan) -> dict[str, Any]:
    held = plan.held  # these have a workflow of their own: no job waits for a day
    jobs = {step.id: _job(plan, step) for step in plan.steps if step.id != "comment" and step.environment not in held}
    return {
        "name": _title(plan),
        "on": _events(plan),
        "permissions": Commented({}, "Nothing by default: each job names what it needs."),
        "concurrency": {
            "group": "${{ github.workflow }}-${{ github.ref }}",
            "cancel-in-progress": Commented(
                "${{ github.event_name == 'pull_request' }}", "never a half-done promotion"
            ),
        },
        "defaults": {"run": {"shell": "bash"}},
        "env": {"PYTHONUNBUFFERED": "1"},
        "jobs": jobs,
    }


def _title(plan: DeliveryPlan) -> str:
    return f"mlkit {plan.name}"


def _on(plan: DeliveryPlan, *events: str) -> bool:
    return any(trigger.on in events for trigger in plan.triggers)


def _branches(plan: DeliveryPlan, event: str) -> list[str]:
    return list(dict.fromkeys(trigger.branch for trigger in plan.triggers if trigger.on == event))


def _events(plan: DeliveryPlan) -> dict[str, Any]:
    events: dict[str, Any] = {}
    if _on(plan, "pull_request"):
        events["pull_request"] = {"branches": _branches(plan, "pull_request")}
    if _on(plan, "merge"):
        events["push"] = {"branches": _branches(plan, "merge")}
    if _on(plan, "schedule"):
        events["schedule"] = [
            {"cron": trigger.cron, **({"timezone": trigger.timezone} if trigger.timezone != "UTC" else {})}
            for trigger in plan.triggers
            if trigger.on == "schedule"
        ]
    dispatched = [f"mlkit-{plan.name}-{trigger.on}" for trigger in plan.triggers if trigger.on in ("data", "drift")]
    if dispatched:
        events["repository_dispatch"] = {"types": list(dict.fromkeys(dispatched))}
    return {**events, "workflow_dispatch": None}


def _job(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, Any]:
    needs = [other for other in step.needs if other != "comment"]
    condition = _condition(plan, step)
    return {
        "name": step.id,
        **({"needs": needs} if needs else {}),
        **({"if": condition} if condition else {}),
        "runs-on": plan.section.runner.label if step.id.partition("-")[0] in OWN_RUNNER else "ubuntu-24.04",
        "timeout-minutes": step.timeout_minutes,
        **_environment(plan, step),
        "permissions": _permissions(plan, step),
        **({"outputs": {"code": f"${{{{ steps.{step.id}.outputs.code }}}}"}} if step.id == "judge" else {}),
        **({"outputs": {"action": "${{ steps.ask.outputs.action }}"}} if _asks(step) else {}),
        "steps": [*_setup(plan), *_inputs(plan, step), *_run(plan, step), *_outputs(plan, step)],
    }


def _environment(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, Any]:
    """GitHub's environment of a promotion: its protection rules (reviewers) hold the job until somebody approves.

    Rules hold every job that names the environment, so the settlement after an approval names one of its own.
    """
    if not step.environment or step.id.startswith("baked-"):
        return {}
    if step.id.startswith("settle-") and plan.step(f"promote-{step.environment}").approval:
        own = "without reviewers: the promotion was approved; secrets of the settlement belong to it"
        return {"environment": Commented(f"{step.environment}-settle", own)}
    if step.approval:
        return {"environment": Commented(step.environment, "its required reviewers approve the promotion")}
    return {"environment": step.environment}


def _condition(plan: DeliveryPlan, step: DeliveryStep) -> str:
    if step.id == "trigger":
        return "github.event_name == 'schedule' || github.event_name == 'repository_dispatch'"
    if step.id == "check":
        started = "needs.trigger.result == 'skipped' || needs.trigger.outputs.action == 'started'"
        parts = ["!cancelled()", f"({started})"] if "trigger" in step.needs else []
        return " && ".join([*parts, *_no_fork(plan)])
    if step.id == "judge":  # after a skipped trigger, which would skip all that follow
        return "!cancelled() && needs.check.result == 'success'" if "trigger" in plan.step("check").needs else ""
    if step.id == "finish":  # a verdict ends the claim; a good one once its image is there
        judged = (
            "needs.judge.outputs.code != '' && (needs.judge.outputs.code != '0' || needs.image.result == 'success')"
        )
        return f"!cancelled() && needs.trigger.outputs.action == 'started' && {judged}"
    if "--baked" in step.command:
        ready = f"needs.baked-{step.environment}.outputs.action == 'promoted'"
        return ready if step.needs else BY_HAND_ON_DEFAULT_BRANCH
    waits = " && ".join(f"needs.{need}.result == 'success'" for need in step.needs)
    own = f"!cancelled() && {waits}" if waits else "!cancelled()"
    if step.id == "image":  # INCONCLUSIVE may leave the judge green, and is never delivered
        delivered = "needs.judge.outputs.code == '0' && github.event_name != 'pull_request'"
        return f"{own} && {delivered} && ({BY_HAND_ON_DEFAULT_BRANCH})"
    return own


def _no_fork(plan: DeliveryPlan) -> list[str]:
    """On machines of one's own no code of a fork runs; what needs the check is then skipped, too."""
    own_machine = not HOSTED.match(plan.section.runner.label)
    return [f"({NO_FORK})"] if own_machine and _on(plan, "pull_request") else []


def _permissions(plan: DeliveryPlan, step: DeliveryStep) -> dict[str, Any]:
    rights: dict[str, tuple[str, str]] = {}
    own_repository = step.environment and _env_repository(plan, step) == ""
    for permission in step.permissions:
        if permission == "write-env-repo" and own_repository:
            rights["contents"] = ("write", f"commit the desired state of {step.environment}")
        for scope, (level, reason) in RIGHTS.get(permission, {}).items():
            if scope not in rights or level == "write":
                rights[scope] = (level, reason)
    return {scope: Commented(level, reason) for scope, (level, reason) in rights.items()}


def _env_repository(plan: DeliveryPlan, step: DeliveryStep) -> str:
    """The other repository that holds the desired state of a step's environment; "" for this one.

    Judging looks into the last environment's.
    """
    name = step.environment or (plan.environments[-1].name if plan.environments else "")
    return next((item.settings.repo or "" for item in plan.environments if item.name == name), "")


def _uses(action_name: str, fields: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    pin = action(action_name, path)
    return {"uses": Commented(pin.uses, pin.tag), **fields}


def _setup(plan: DeliveryPlan) -> list[dict[str, Any]]:
    return [
        _uses("actions/checkout", {"with": {"persist-credentials": False}}),
        _uses("actions/setup-python", {"with": {"python-version": PYTHON}}),
        {
            "name": "Install",
            "run": f"python -m pip install --disable-pip-version-check -r {plan.section.requirements}\n",
        },
    ]


def _inputs(plan: DeliveryPlan, step: DeliveryStep) -> list[dict[str, Any]]:
    """What a job takes from others: the finished steps of earlier runs, the report and bundle of this one."""
    if step.id == "judge":
        return [
            _uses(
                "actions/cache",
                {"name": "Finished steps of earlier runs", "with": {"path": _cached(), **_cache_key(plan)}},
                "restore",
            )
        ]
    if any(OUTPUT in word for word in step.command) and step.id not in ("check", "judge"):
        built = [_download(plan, suffix="-image")] if step.id.startswith("promote-") else []  # image.json
        return [_download(plan), *built]
    return []


def _cached() -> str:
    """What is kept of the state folder: measurements and trials are of one machine, and are made again."""
    return f"{STATE}\n!{STATE}/trials\n"


def _cache_key(plan: DeliveryPlan) -> dict[str, Any]:
    prefix = f"mlkit-{plan.name}-${{{{ runner.os }}}}-py{PYTHON}-${{{{ hashFiles('{plan.section.requirements}') }}}}-"
    return {"key": f"{prefix}${{{{ github.sha }}}}", "restore-keys": f"{prefix}\n"}


def _download(plan: DeliveryPlan, *, suffix: str = "", **run: str) -> dict[str, Any]:
    return _uses("actions/download-artifact", {"with": {"name": f"mlkit-{plan.name}{suffix}", "path": OUT, **run}})


def _run(plan: DeliveryPlan, step: DeliveryStep) -> Iterator[dict[str, Any]]:
    env: dict[str, Any] = {"MLKIT_OUT": OUT, "MLKIT_STATE": STATE}
    for name in step.secrets:
        env[name] = Commented(_secret(plan.secrets[name]), NO_APPROVAL)
    if {"read-image", "push-image"} & set(step.permissions):
        token: Any = _secret(plan.credentials)
        if plan.credentials.env and not _environment(plan, step):
            token = Commented(token, NO_APPROVAL)
        host = plan.registry.partition("/")[0]
        env |= {
            "MLKIT_REGISTRY": host,
            "MLKIT_REGISTRY_USER": "${{ github.actor }}",
            "MLKIT_REGISTRY_TOKEN": token,
        }
    if {"read-env-repo", "write-env-repo", "write-trigger"} & set(step.permissions):
        writes = "write-env-repo" in step.permissions
        repository = "" if step.id in ("trigger", "finish") else _env_repository(plan, step)
        yield from _app_token(repository, writes=writes, forks=step.id == "judge")
        env["MLKIT_GIT_TOKEN"] = "${{ steps.app.outputs.token }}" if repository else "${{ github.token }}"
    if step.id.startswith("settle-"):
        env["MLKIT_API_KEY"] = "${{ secrets.MLKIT_API_KEY }}"
    if step.id == "trigger":
        env["MLKIT_BECAUSE"] = (
            "${{ github.event_name == 'schedule' && 'schedule' || endsWith(github.event.action, '-drift') && 'drift' "
            "|| 'data' }}"
        )
    record = {"judge": 'echo "code=$code" >> "$GITHUB_OUTPUT"'}.get(step.id, "")
    script = _asking_script(step) if _asks(step) else step_script(step, record=record)
    id = {"id": "ask"} if _asks(step) else {"id": step.id} if step.id == "judge" else {}
    yield {"name": step.id.capitalize().replace("-", " to "), **id, "env": env, "run": script}


def _asks(step: DeliveryStep) -> bool:
    """Whether a step's answer says if others run."""
    return "--json" in step.command


def _asking_script(step: DeliveryStep) -> str:
    """The step with its answer in a file, and the answer's ``action`` as an output of the job."""
    read = "import json, sys; print('action=' + json.load(sys.stdin)['action'])"
    answer = '"$RUNNER_TEMP/answer.json"'
    return f'{command_line(step.command)} > {answer}\npython -c "{read}" < {answer} >> "$GITHUB_OUTPUT"\n'


def _app_token(repository: str, *, writes: bool, forks: bool) -> Iterator[dict[str, Any]]:
    """A short token of a GitHub App for the environment's repository: the workflow's own reaches this one only."""
    if not repository:
        return
    owner, _, name = repository.removesuffix(".git").replace(":", "/").rpartition("/")
    yield _uses(
        "actions/create-github-app-token",
        {
            "id": "app",
            **({"if": SAME_REPOSITORY} if forks else {}),
            "with": {
                "client-id": "${{ vars.MLKIT_APP_CLIENT_ID }}",
                "private-key": "${{ secrets.MLKIT_APP_PRIVATE_KEY }}",
                "owner": owner.rpartition("/")[2],
                "repositories": name,
                "permission-contents": "write" if writes else "read",
            },
        },
    )


def _secret(reference: SecretReference) -> str:
    return f"${{{{ secrets.{reference.env} }}}}" if reference.env else "${{ github.token }}"


def _outputs(plan: DeliveryPlan, step: DeliveryStep) -> Iterator[dict[str, Any]]:
    if not step.outputs:
        return
    name = f"mlkit-{plan.name}" if step.id == "judge" else f"mlkit-{plan.name}-{step.id}"
    path = OUT if step.id == "judge" else "".join(f"{OUT}/{output}\n" for output in step.outputs)
    yield _uses(
        "actions/upload-artifact",
        {
            "if": "!cancelled()",
            "with": {"name": name, "path": path, "if-no-files-found": "warn", "retention-days": 30},
        },
    )
    if step.id == "judge" and _on(plan, "merge"):
        yield _uses(
            "actions/cache",
            {
                "name": "Keep the finished steps",
                "if": "github.event_name == 'push'",  # a pull request restores only
                "with": {"path": _cached(), "key": _cache_key(plan)["key"]},
            },
            "save",
        )


def _baked(plan: DeliveryPlan) -> dict[str, Any]:
    """Looks each hour whether a version has baked in the environment before, and only then asks for an approval."""
    jobs: dict[str, Any] = {}
    for name in (item.name for item in plan.environments if item.name in plan.held):
        promote, settle = plan.step(f"promote-{name}"), plan.step(f"settle-{name}")
        asking = replace(
            promote,
            id=f"baked-{name}",
            command=(*promote.command, "--dry-run", "--json"),
            needs=(),
            permissions=("read-code", "read-image", "read-env-repo"),
        )
        for step in (asking, replace(promote, needs=(asking.id,)), settle):
            jobs[step.id] = _job(plan, step)
    return {
        "name": f"{_title(plan)} baked",
        "on": {"schedule": [{"cron": BAKED_CRON}], "workflow_dispatch": None},
        "permissions": Commented({}, "Nothing by default: each job names what it needs."),
        "concurrency": {
            "group": "${{ github.workflow }}",
            "cancel-in-progress": Commented(False, "a run that waits for an approval stays; of later ones the newest"),
        },
        "defaults": {"run": {"shell": "bash"}},
        "env": {"PYTHONUNBUFFERED": "1"},
        "jobs": jobs,
    }


def _comment(plan: DeliveryPlan) -> dict[str, Any]:
    """Runs on the default branch's text with a token that may comment, for forks too; takes data only, and no code."""
    step = plan.step("comment")
    finished = (
        "github.event.workflow_run.event == 'pull_request' && github.event.workflow_run.conclusion != 'cancelled'"
    )
    return {
        "name": f"{_title(plan)} comment",
        "on": {
            "workflow_run": Commented(
                {"workflows": [_title(plan)], "types": ["completed"]},
                "zizmor: ignore[dangerous-triggers] no code of the pull request is checked out or run: only\n"
                "report.json is read, as data, and the pull request is found by the run's head commit.",
            )
        },
        "permissions": Commented({}, "Nothing by default."),
        "concurrency": {
            "group": "${{ github.workflow }}-${{ github.event.workflow_run.head_sha }}",
            "cancel-in-progress": False,
        },
        "defaults": {"run": {"shell": "bash"}},
        "jobs": {
            "comment": {
                "name": "comment",
                "if": finished,
                "runs-on": "ubuntu-24.04",
                "timeout-minutes": step.timeout_minutes,
                "permissions": {
                    "actions": Commented("read", "download the report of the other workflow"),
                    **_permissions(plan, step),
                },
                "steps": [
                    _uses("actions/setup-python", {"with": {"python-version": PYTHON}}),
                    {
                        "name": "Install",
                        "run": f"python -m pip install --disable-pip-version-check mlflowkit=={__version__}\n",
                    },
                    _download(
                        plan, **{"run-id": "${{ github.event.workflow_run.id }}", "github-token": "${{ github.token }}"}
                    ),
                    {
                        "name": "Comment",
                        "env": {"MLKIT_OUT": OUT, "GITHUB_TOKEN": "${{ github.token }}"},
                        "run": step_script(step),
                    },
                ],
            }
        },
    }
