"""Names, labels and folders of a plan's objects in a cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from mlflowkit.delivery.delivery_plan import DeliveryPlan, Environment
from mlflowkit.delivery.delivery_target import Unsupported

IN_CLUSTER = "https://kubernetes.default.svc"
"""The API server of the cluster itself."""
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_REPOSITORY = re.compile(r"(https://|ssh://git@)[A-Za-z0-9.-]+(:[0-9]+)?/[\w./~-]+|git@[A-Za-z0-9.-]+:[\w./~-]+")
_GENERATED = frozenset(("kustomization.yaml", "namespace.yaml", "disruption.yaml", "images", "training.yaml"))


def service_name(plan: DeliveryPlan) -> str:
    """The name of the service's objects."""
    return plan.recipe.service or plan.name


def selector_labels(plan: DeliveryPlan, component: str) -> dict[str, str]:
    """The labels that select the pods of a component; never changed, since selectors cannot be."""
    return {"app.kubernetes.io/name": service_name(plan), "app.kubernetes.io/component": component}


def labels(plan: DeliveryPlan, component: str) -> dict[str, str]:
    """All labels of an object."""
    return {**selector_labels(plan, component), "app.kubernetes.io/managed-by": "mlkit"}


def short_name(name: str, suffix: str, most: int) -> str:
    """A name with a suffix, cut to a number of characters.

    >>> short_name("lending", "-trigger", 12)
    'lend-trigger'
    """
    return f"{name[: most - len(suffix)].rstrip('-')}{suffix}"


def base_folder(environment: Environment) -> str:
    """The folder of what the environments have in common, beside that of the overlays.

    >>> from mlflowkit.delivery.delivery_settings import EnvironmentSettings
    >>> base_folder(Environment("prod", "lending-prod", "deploy/overlays/prod", EnvironmentSettings()))
    'deploy/base'
    """
    parent = PurePosixPath(environment.path).parent
    return (parent.parent / "base").as_posix()


def place_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    """Environments that would write over one another, and names that Kubernetes refuses."""
    if not plan.environments:
        yield Unsupported(("environments",), "manifests are of an environment, and there is none", "write prod: {}")
    if not _LABEL.fullmatch(service_name(plan)):
        key: tuple[str, ...] = ("/", "serve", "service") if plan.recipe.service else ("/", "name")
        hint = "write serve.service: lower case letters, digits and dashes, at most 63"
        yield Unsupported(key, f"Kubernetes takes no object of the name {service_name(plan)!r}", hint)
    folders: dict[str, str] = {base_folder(environment): "the base" for environment in plan.environments}
    spaces: dict[tuple[str, str], str] = {}
    for environment in plan.environments:
        key = ("environments", environment.name, "path")
        inside = next((path for path in folders if _overlap(environment.path, path)), None)
        if inside is not None:
            hint = f"write path: deploy/overlays/{environment.name}"
            message = f"{environment.path} would hold the files of {environment.name} and of {folders[inside]}"
            yield Unsupported(key, message, hint)
        folders[environment.path] = environment.name
        place = (environment.settings.cluster, environment.namespace)
        if place in spaces:
            message = f"{environment.name} and {spaces[place]} would share the namespace {environment.namespace}"
            yield Unsupported(("environments", environment.name, "namespace"), message, "write a namespace: of its own")
        spaces[place] = environment.name


def _overlap(path: str, other: str) -> bool:
    """Whether one folder's generated files may be another's."""
    if path == other:
        return True
    first, second = PurePosixPath(path), PurePosixPath(other)
    return any(
        inner.is_relative_to(outer) and inner.relative_to(outer).parts[0] in _GENERATED
        for inner, outer in ((first, second), (second, first))
    )


def client_faults(plan: DeliveryPlan) -> Iterator[Unsupported]:
    for name, value in plan.section.kubernetes.clients.items():
        if not _LABEL_VALUE.fullmatch(value):
            hint = "write letters, digits, dots, dashes and underscores, at most 63"
            yield Unsupported(("kubernetes", "clients", name), f"{value!r} is no value of a label", hint)


def repository_faults(plan: DeliveryPlan, system: str) -> Iterator[Unsupported]:
    """Environments whose repository a system could not read."""
    for environment in plan.environments:
        key, repo = ("environments", environment.name, "repo"), environment.settings.repo
        if repo is None:
            hint = "write repo: https://HOST/OWNER/REPOSITORY.git"
            yield Unsupported(key, f"{system} needs the address of the repository", hint)
        elif not _REPOSITORY.fullmatch(repo):
            hint = "write https://HOST/PATH, ssh://git@HOST/PATH or git@HOST:PATH, without a user or a password"
            yield Unsupported(key, f"{system} reads no repository of this address", hint)
