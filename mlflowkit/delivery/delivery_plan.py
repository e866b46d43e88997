"""The neutral delivery plan: which commands run where, with which rights, secrets and images. Pure.

A target renders a `DeliveryPlan` for one system. The commands are those of `mlkit`; each may run again at any time:

========  ==============================================  ================================================
step      command                                         what it does
========  ==============================================  ================================================
trigger   ``mlkit trigger RECIPE --because WHY --json``   whether there is work: {action: started} when there is
check     ``mlkit ci check RECIPE``                       format, lint, tests of the code; a small training
judge     ``mlkit ci judge RECIPE --environment ENV``     run up to the bundle, judge it against ENV's champion
comment   ``mlkit ci comment --from report.json``         the verdict on the pull request
image     ``mlkit image build RECIPE --push``             image and bundle in the registry
promote   ``mlkit gitops promote RECIPE --environment``   the desired digest, committed to the environment's repository;
                                                          with ``--baked`` that of the environment before, once it has
                                                          baked there: see `DeliveryPlan.held`
settle    ``mlkit gitops settle RECIPE --environment``    the rollout's verdict, committed there
========  ==============================================  ================================================

Every target sets these variables for a step: ``MLKIT_OUT`` (folder of outputs, outside of the checkout; the outputs of
``judge`` are in it for ``comment``, ``image`` and ``promote``: ``report.json``, and ``bundle/``, a copy of the bundle),
``MLKIT_STATE``, ``MLKIT_REGISTRY`` (the registry's host), ``MLKIT_REGISTRY_USER`` and ``MLKIT_REGISTRY_TOKEN`` (all
three where the step reads or pushes images; the token goes to that host only),
``MLKIT_GIT_TOKEN`` (where it reads or writes the environment's repository or a trigger's ref), ``MLKIT_BECAUSE`` (what
started ``trigger``), and the step's secrets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from mlflowkit.delivery.delivery_settings import (
    ChecksSettings,
    DeliverySection,
    EnvironmentSettings,
    PolicySettings,
    SecretReference,
    TriggerSettings,
)
from mlflowkit.monitoring.monitor_settings import seconds_of
from mlflowkit.system.digests import digest_json
from mlflowkit.values import Json

Permission = Literal[
    "read-code", "read-image", "write-comment", "push-image", "sign", "read-env-repo", "write-env-repo", "write-trigger"
]
"""What a step may do; each target maps it to its system's own rights."""
OUTPUT = "$MLKIT_OUT"
"""Folder of the outputs, outside of the checkout, so that the checkout stays clean."""
BECAUSE = "$MLKIT_BECAUSE"
"""What started a pipeline that asks whether there is work: schedule, data or drift."""

BAKING_MARGIN = 60
"""Seconds that a pipeline waits beyond ``baking``: the clocks of its machines differ."""

STEP_SECRETS = {"MLKIT_API_KEY": "settle", "MLKIT_SIGNING_KEY_PEM": "image"}
"""Secrets that one kind of step gets, and neither training nor judging."""


@dataclass(frozen=True, slots=True)
class RecipeFacts:
    """What delivery must know of a recipe. ``path`` is relative to the repository's root."""

    name: str
    path: str
    service: str = ""
    port: int = 8080
    replicas: int = 1
    timeout_seconds: float = 10.0
    strategy: str = "direct"
    gpus: int = 0
    rollout: Json = None
    """The recipe's ``serve.rollout``, as JSON."""
    grpc_port: int = 0
    """The fixed port of gRPC; 0 for none."""
    affinity: str = "request_id"
    """What keeps a client on one version (``serve.routing.affinity``)."""
    secrets: tuple[str, ...] = ()
    """Environment variables from which its connections read secrets."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image to build: ``train`` runs steps, ``serve`` answers requests, ``monitor`` watches the service."""

    role: Literal["train", "serve", "monitor"]
    repository: str
    base: str
    requirements: str
    entry: tuple[str, ...]
    user: str = "65532:0"

    @property
    def reference(self) -> str:
        """The repository of this role: that of the recipe, with the role appended except for ``serve``."""
        return self.repository if self.role == "serve" else f"{self.repository}-{self.role}"


@dataclass(frozen=True, slots=True)
class Resources:
    cpus: float
    memory_mb: int
    gpus: int


@dataclass(frozen=True, slots=True)
class DeliveryStep:
    """One command. ``exit_codes`` are those that do not fail the pipeline; ``retries`` those after a failure of the
    world (exit code 3)."""

    id: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    environment: str = ""
    permissions: tuple[Permission, ...] = ("read-code",)
    secrets: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    resources: Resources = field(default_factory=lambda: Resources(2, 4096, 0))
    timeout_minutes: int = 120
    retries: int = 0
    exit_codes: tuple[int, ...] = (0,)
    approval: bool = False
    """Whether a person lets it go on."""


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment with its defaults filled in."""

    name: str
    namespace: str
    path: str
    settings: EnvironmentSettings
    replicas: int = 1
    """Pods of the service."""


@dataclass(frozen=True, slots=True)
class DeliveryPlan:
    """What is delivered, for every target alike."""

    recipe: RecipeFacts
    registry: str
    credentials: SecretReference
    images: tuple[Image, ...]
    steps: tuple[DeliveryStep, ...]
    triggers: tuple[TriggerSettings, ...]
    secrets: Mapping[str, SecretReference]
    environments: tuple[Environment, ...]
    checks: ChecksSettings
    policy: PolicySettings
    section: DeliverySection
    """The section itself, for the options of targets."""

    @property
    def name(self) -> str:
        """The recipe's name as every system takes it: lower case, dashes for underscores.

        >>> from mlflowkit.delivery.delivery_settings import RegistrySettings
        >>> section = DeliverySection(registry=RegistrySettings(image="ghcr.io/acme/lending"))
        >>> delivery_plan(section, RecipeFacts("my_model", "recipes/a.yaml")).name
        'my-model'
        """
        return self.recipe.name.replace("_", "-")

    @property
    def digest(self) -> str:
        """SHA-256 of the plan: the same plan renders the same files."""
        return digest_json(self.to_json())

    def step(self, id: str) -> DeliveryStep:
        """The step of an id. Raises KeyError."""
        return {step.id: step for step in self.steps}[id]

    @property
    def held(self) -> frozenset[str]:
        """The environments whose versions come from the one before, after they have baked there, instead of from the
        run that judged them: those with ``baking``, and all that come after one."""
        return frozenset(_held(self.section))

    def baking_seconds(self, environment: str) -> int:
        """How long a version must have served in the environment before; 0 where the recipe does not say."""
        baking = self.section.environments[environment].baking
        return math.ceil(seconds_of(baking)) if baking else 0

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = TypeAdapter(DeliveryPlan).dump_python(self, mode="json")
        return value


def delivery_plan(section: DeliverySection, recipe: RecipeFacts, *, default_base: str = "") -> DeliveryPlan:
    """The plan of a recipe's ``delivery`` section.

    >>> from mlflowkit.delivery.delivery_settings import RegistrySettings
    >>> section = DeliverySection(registry=RegistrySettings(image="ghcr.io/acme/lending"))
    >>> [step.id for step in delivery_plan(section, RecipeFacts("lending", "recipes/lending.yaml")).steps]
    ['check', 'judge', 'comment', 'image']
    """
    base = section.registry.base or default_base
    images = tuple(
        Image(role, section.registry.image, base, section.requirements, entry)  # type: ignore[arg-type]
        for role, entry in (
            ("train", ("mlkit",)),
            ("serve", ("mlkit", "serve", "--delivery", "/etc/mlkit/delivery.yaml")),
            ("monitor", ("mlkit", "monitor")),
        )
    )
    return DeliveryPlan(
        recipe=recipe,
        registry=section.registry.image,
        credentials=section.registry.credentials,
        images=images,
        steps=_steps(section, recipe),
        triggers=tuple(section.triggers),
        secrets=_secret_references(section, recipe),
        environments=tuple(
            Environment(
                name,
                settings.namespace or f"{(recipe.service or recipe.name).replace('_', '-')}-{name}"[:63].rstrip("-"),
                settings.path or f"deploy/overlays/{name}",
                settings,
                settings.replicas or (1 if _is_single(section, recipe) else 2),
            )
            for name, settings in section.environments.items()
        ),
        checks=section.checks,
        policy=section.policy,
        section=section,
    )


def _is_single(section: DeliverySection, recipe: RecipeFacts) -> bool:
    """Whether the service has one pod: a state folder has one owner, and pods without a common one would each decide
    a rollout by their own requests."""
    options = section.kubernetes
    return options.workload == "deployment" and (options.state == "volume" or recipe.strategy != "direct")


def _steps(section: DeliverySection, recipe: RecipeFacts) -> tuple[DeliveryStep, ...]:
    """The steps in an order in which each comes after those that it needs."""
    minutes = max(1, round(seconds_of(section.runner.timeout) / 60))
    report = f"{OUTPUT}/report.json"
    claims = any(trigger.on in ("schedule", "data", "drift") for trigger in section.triggers)
    comment = DeliveryStep(
        "comment",
        ("mlkit", "ci", "comment", "--from", report),
        ("judge",),
        permissions=("write-comment",),
        timeout_minutes=5,
        retries=2,
    )
    return (
        *((_trigger(section, recipe),) if claims else ()),
        *_judging_steps(section, recipe, minutes, claims),
        comment,
        _image(section, recipe, report),
        *((_finish(recipe, report),) if claims else ()),
        *_environment_steps(section, recipe, minutes),
    )


def _secret_references(section: DeliverySection, recipe: RecipeFacts) -> dict[str, SecretReference]:
    """Where each secret is kept: what the section says, and for one of a connection a secret of the same name."""
    of_connections = {name: SecretReference(env=name) for name in recipe.secrets if name not in section.secrets}
    return {**section.secrets, **of_connections}


def _general_secrets(section: DeliverySection, recipe: RecipeFacts) -> tuple[str, ...]:
    """The secrets of training and judging: all that belong to no other step."""
    return tuple(name for name in _secret_references(section, recipe) if name not in STEP_SECRETS)


def _resources(section: DeliverySection) -> Resources:
    return Resources(section.runner.cpus, section.runner.memory_mb, section.runner.gpus)


def _trigger(section: DeliverySection, recipe: RecipeFacts) -> DeliveryStep:
    return DeliveryStep(
        "trigger",
        ("mlkit", "trigger", recipe.path, "--because", BECAUSE, "--json"),
        permissions=("read-code", "read-image", "read-env-repo", "write-trigger"),
        secrets=_general_secrets(section, recipe),
        timeout_minutes=15,
    )


def _judging_steps(
    section: DeliverySection, recipe: RecipeFacts, minutes: int, claims: bool
) -> tuple[DeliveryStep, DeliveryStep]:
    """The checks of the code, and the judgement against the champion of the last environment."""
    last = next(reversed(section.environments), "")
    against = ("--environment", last) if last else ()
    check = DeliveryStep(
        "check",
        ("mlkit", "ci", "check", recipe.path, "--out", OUTPUT),
        ("trigger",) if claims else (),
        secrets=_general_secrets(section, recipe),
        resources=_resources(section),
        timeout_minutes=min(minutes, 30),
        outputs=("checks.xml",),
    )
    judge = DeliveryStep(
        "judge",
        ("mlkit", "ci", "judge", recipe.path, *against, "--out", OUTPUT),
        ("check",),
        secrets=_general_secrets(section, recipe),
        permissions=("read-code", "read-image", "read-env-repo"),
        resources=_resources(section),
        timeout_minutes=minutes,
        retries=1,
        exit_codes=(0, 4) if section.policy.inconclusive == "neutral" else (0,),
        outputs=("report.json", "junit.xml", "mlkit.sarif", "page.html", "bundle"),
    )
    return check, judge


def _image(section: DeliverySection, recipe: RecipeFacts, report: str) -> DeliveryStep:
    return DeliveryStep(
        "image",
        ("mlkit", "image", "build", recipe.path, "--push", "--from", report),
        ("judge",),
        permissions=("read-code", "push-image", *(("sign",) if section.policy.signed else ())),
        secrets=_secrets_of(section, "image"),
        timeout_minutes=30,
        retries=1,
        resources=_resources(section),
        outputs=("image.json",),
    )


def _secrets_of(section: DeliverySection, step: str) -> tuple[str, ...]:
    return tuple(name for name, owner in STEP_SECRETS.items() if owner == step and name in section.secrets)


def _finish(recipe: RecipeFacts, report: str) -> DeliveryStep:
    """What ends the claim of `trigger`, once there is a verdict, and where it is good an image: else the claim ends
    with its lease, and the next event tries again."""
    return DeliveryStep(
        "finish",
        ("mlkit", "trigger", recipe.path, "--finished", report),
        ("trigger", "judge", "image"),
        permissions=("read-code", "write-trigger"),
        timeout_minutes=10,
        retries=2,
    )


def _held(section: DeliverySection) -> list[str]:
    """See `DeliveryPlan.held`; the environments are in order, so that ``after`` names one above."""
    held: list[str] = []
    for name, settings in section.environments.items():
        if settings.after and (settings.baking or settings.after in held):
            held.append(name)
    return held


def _environment_steps(section: DeliverySection, recipe: RecipeFacts, minutes: int) -> Iterator[DeliveryStep]:
    """A promotion and a settlement for each environment; ``minutes`` is how long a rollout may take to be settled."""
    report = f"{OUTPUT}/report.json"
    held = _held(section)
    for name, settings in section.environments.items():
        where = ("--environment", name)
        promote = f"promote-{name}"
        judged = () if name in held else ("image",)
        needs = (*judged, f"settle-{settings.after}") if settings.after else judged
        yield DeliveryStep(
            promote,
            ("mlkit", "gitops", "promote", recipe.path, *where, *(("--from", report) if judged else ("--baked",))),
            needs,
            name,
            permissions=("read-code", "read-image", "write-env-repo"),
            timeout_minutes=15,
            retries=3,
            approval=settings.promote == "approval",
        )
        yield DeliveryStep(
            f"settle-{name}",
            ("mlkit", "gitops", "settle", recipe.path, *where),
            (promote,),
            name,
            permissions=("read-code", "write-env-repo"),
            secrets=_secrets_of(section, "settle"),
            timeout_minutes=minutes,
            retries=3,
        )
