"""Rules for ``delivery``: environments that follow one another, targets that exist, and secrets that are only named."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlflowkit.delivery.targets import BUILT_IN
from mlflowkit.errors import closest_match
from mlflowkit.monitoring.monitor_settings import seconds_of
from mlflowkit.recipe.rule import Problem, RecipeView, Rule
from mlflowkit.recipe.yaml_tree import KeyPath
from mlflowkit.system import entry_points

DELIVERY = ("delivery",)
ENVIRONMENTS = ("delivery", "environments")
CLUSTER_TARGETS = ("kubernetes", "argocd", "flux")
"""Targets that write something for each environment."""
PIPELINE_VARIABLES = frozenset(
    f"MLKIT_{name}"
    for name in (
        *("OUT", "STATE", "REGISTRY", "REGISTRY_USER", "REGISTRY_TOKEN", "GIT_TOKEN", "BECAUSE", "CODE", "ACTION"),
        *("CACHE", "ASKED", "CODE_TOKEN", "ENV_TOKEN", "READ_TOKEN", "COMMENT_TOKEN", "REPOSITORY"),
    )
)
"""What the steps of a pipeline read; MLKIT_API_KEY and MLKIT_SIGNING_KEY_PEM are secrets of the recipe."""
OWN_VARIABLES = frozenset(
    (
        *("PATH", "HOME", "PWD", "OLDPWD", "SHELL", "USER", "LOGNAME", "IFS", "ENV", "BASH_ENV", "LANG", "TMPDIR"),
        *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUNBUFFERED", "STORAGE_DRIVER", "BUILDAH_ISOLATION"),
        *("CI", "WORKSPACE", "WORKSPACE_TMP", "VAULT_ID_TOKEN"),
        *("GIT_COMMIT", "GIT_BRANCH", "GIT_URL", "GIT_DIR", "GIT_WORK_TREE"),
    )
)
"""What a pipeline's system, the shell, Python or git read or set."""
OWN_PREFIXES = (
    *("GITHUB_", "ACTIONS_", "RUNNER_", "CI_", "GITLAB_", "JENKINS_", "HUDSON_"),
    *("AIRFLOW_CTX_", "LD_", "GIT_CONFIG_"),
)
_CRON = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_NAMES = (
    *("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"),
    *("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"),
)
_SECRETS = (
    (re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}"), "a GitHub token"),
    (re.compile(r"\bglpat-[A-Za-z0-9_-]{16,}"), "a GitLab token"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), "an AWS access key"),
    (re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"), "a Slack token"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"), "a JSON web token"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), "a private key"),
    (re.compile(r"\b[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s:@{$][^/\s@]*@"), "a password in a URL"),
)


def _environments(view: RecipeView) -> Iterator[Problem]:
    """``after`` names another environment, in no circle; what bakes comes after something."""
    names = list(view.mapping(*ENVIRONMENTS))
    for name in names:
        path: KeyPath = (*ENVIRONMENTS, name)
        after = view.text(*path, "after")
        if view.has(*path, "baking") and view.get(*path, "after") is None:
            message = "baking is time in the environment before, and this one comes after none"
            yield Problem((*path, "baking"), message, f"add after: {_other(names, name)}, or remove baking")
        if not after:
            continue
        if after not in names:
            close = closest_match(after, [other for other in names if other != name])
            hint = f"did you mean {close}?" if close else f"write {_other(names, name)}, or add it"
            yield Problem((*path, "after"), f"there is no environment {after!r}; there are {', '.join(names)}", hint)
        elif after == name:
            yield Problem((*path, "after"), "an environment cannot come after itself", "remove after")
        elif name in _before(view, name):
            circle = " after ".join([name, *_before(view, name)])
            yield Problem((*path, "after"), f"environments in a circle: {circle}", "remove one after")
        elif names.index(after) > names.index(name):
            message = f"{name} comes after {after}, and stands above it: environments are listed in their order"
            yield Problem((*path, "after"), message, f"move {name} below {after}")


def _other(names: list[str], name: str) -> str:
    return next((other for other in names if other != name), "staging")


def _before(view: RecipeView, name: str) -> list[str]:
    """The environments before one, nearest first; with the name itself where they form a circle."""
    before: list[str] = []
    current = view.text(*ENVIRONMENTS, name, "after")
    while current and current not in before:
        before.append(current)
        current = view.text(*ENVIRONMENTS, current, "after")
    return before


def _targets(view: RecipeView) -> Iterator[Problem]:
    value = view.get(*DELIVERY, "targets")
    listed = isinstance(value, list)
    names = value if listed else [value] if isinstance(value, str) else []
    environments = view.mapping(*ENVIRONMENTS)
    for index, name in enumerate(names):
        path: KeyPath = (*DELIVERY, "targets", index) if listed else (*DELIVERY, "targets")
        if not isinstance(name, str):
            continue
        if name in names[:index]:
            yield Problem(path, f"{name!r} is listed twice", "remove one")
        elif name not in BUILT_IN and entry_points.find(entry_points.TARGETS, name) is None:
            close = closest_match(name, BUILT_IN)
            hint = f"did you mean {close}?" if close else entry_points.install_hint(entry_points.TARGETS, name)
            yield Problem(path, f"there is no target {name!r}; there are {', '.join(BUILT_IN)}", hint)
        elif name in CLUSTER_TARGETS and not environments:
            message = f"the target {name} writes what each environment needs, and there are no environments"
            yield Problem(path, message, "add environments: {production: {}} under delivery")
        elif name in CLUSTER_TARGETS and not isinstance(view.get("serve"), dict):
            yield Problem(
                path, f"the target {name} deploys a service, and the recipe has no serve", "add serve: {service: …}"
            )


def _triggers(view: RecipeView) -> Iterator[Problem]:
    triggers = view.items(*DELIVERY, "triggers")
    for index, trigger in enumerate(triggers):
        path: KeyPath = (*DELIVERY, "triggers", index)
        if not isinstance(trigger, dict):
            continue
        if trigger in triggers[:index]:
            yield Problem(path, "the same trigger is listed above", "remove one")
        reason = cron_fault(view.text(*path, "cron")) if view.has(*path, "cron") else ""
        if reason:
            yield Problem((*path, "cron"), reason, "write minute hour day month weekday, such as '17 4 * * 1'")
        zone = view.text(*path, "timezone")
        if zone and not _is_zone(zone):
            yield Problem((*path, "timezone"), f"there is no time zone {zone!r}", _zone_hint(zone))
        if trigger.get("on") == "drift" and not isinstance(view.get("monitor"), dict):
            message = "drift is what monitor finds, and the recipe has no monitor section"
            yield Problem((*path, "on"), message, "add monitor: {window: 1d}, or remove the trigger")


def cron_fault(text: str) -> str:
    """What is wrong with a cron expression of five fields, or "".

    >>> cron_fault("17 4 * * 1"), cron_fault("*/15 0-6,12 * JAN MON-FRI")
    ('', '')
    >>> cron_fault("61 4 * * 1")
    'minute is from 0 to 59, not 61'
    """
    fields = text.split(" ")
    if len(fields) != len(_FIELDS):
        return ""  # the schema says so
    for field, name, (low, high) in zip(fields, _FIELDS, _CRON, strict=True):
        for part in field.split(","):
            span, slash, step = part.partition("/")
            if slash and not (step.isdigit() and int(step)):
                return f"{name} has the step {step!r}: a whole number from 1 is expected"
            ends = [] if span == "*" else span.split("-")
            for end in ends:
                if end.upper() in _NAMES and name in ("month", "day of week"):
                    continue
                if not end.isdigit():
                    return f"{name} is a number, a range, a list or *, not {part!r}"
                if not low <= int(end) <= high:
                    return f"{name} is from {low} to {high}, not {end}"
            if len(ends) > 2 or (len(ends) == 2 and all(end.isdigit() for end in ends) and int(ends[0]) > int(ends[1])):
                return f"{name} has the range {span!r}: the lower end comes first"
    return ""


def _is_zone(name: str) -> bool:
    from zoneinfo import available_timezones

    zones = available_timezones()
    return not zones or name in zones  # a machine without the database cannot tell


def _zone_hint(name: str) -> str:
    from zoneinfo import available_timezones

    close = closest_match(name, sorted(available_timezones()))
    return f"did you mean {close}?" if close else "write a name such as Europe/Berlin"


def secret_kind(text: str) -> str:
    """What kind of secret a text looks like, or "": a recipe only names where a secret is kept.

    >>> secret_kind("postgresql://me:letmein@db/lending"), secret_kind("https://github.com/acme/env.git")
    ('a password in a URL', '')
    """
    return next((kind for pattern, kind in _SECRETS if pattern.search(text)), "")


def is_own_variable(name: str) -> bool:
    """Whether a pipeline, its system or a shell gives a variable its value.

    >>> is_own_variable("MLKIT_STATE"), is_own_variable("GITHUB_TOKEN"), is_own_variable("LAKEFS_KEY")
    (True, True, False)
    """
    return name in OWN_VARIABLES or name in PIPELINE_VARIABLES or name.startswith(OWN_PREFIXES)


def _durations(view: RecipeView) -> Iterator[Problem]:
    try:
        seconds = seconds_of(view.text(*DELIVERY, "runner", "timeout"))
    except ValueError:
        return
    if seconds < 60:
        yield Problem((*DELIVERY, "runner", "timeout"), "a job takes a minute at least", "write 2h")


def _secret_names(view: RecipeView) -> Iterator[Problem]:
    """A secret takes no name that a pipeline or its shell gives a value of its own."""
    for name in view.mapping(*DELIVERY, "secrets"):
        if isinstance(name, str) and is_own_variable(name):
            message = f"{name} is a variable that pipelines set themselves, and no name of a secret"
            yield Problem(
                (*DELIVERY, "secrets", name), message, f"write SECRET_{name}, and read that in the code", True
            )


RULES: tuple[Rule, ...] = (_environments, _targets, _triggers, _durations, _secret_names)
