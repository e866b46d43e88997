"""The recipe section ``delivery``: where images go, what starts a pipeline, which environments follow one another, and
for which systems files are generated. Nothing in it holds a secret: it names where each is kept.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mlflowkit.monitoring.monitor_settings import Duration
from mlflowkit.sections import Section
from mlflowkit.values import Json

_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"

EnvironmentVariable = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$", max_length=100)]
"""The name of an environment variable."""
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
"""A name that every system takes: lower case letters, digits and dashes (RFC 1123)."""
RelativePath = Annotated[str, Field(pattern=rf"^{_SEGMENT}(/{_SEGMENT})*$", max_length=200)]
"""A path below the root of a repository."""
Trigger = Literal["pull_request", "merge", "schedule", "data", "drift"]


class KubernetesSecret(Section):
    """A key of a Kubernetes Secret."""

    name: Label
    """The Secret."""
    key: str = Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=253)
    """Its key."""


class SecretReference(Section):
    """Where a secret is kept; exactly one key. Its value never stands in a recipe or in a generated file."""

    env: EnvironmentVariable | None = None
    """A secret of the pipeline (GitHub and GitLab variables, Jenkins credentials), by its name there."""
    kubernetes: KubernetesSecret | None = None
    """A Secret of the cluster."""
    vault: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_/-]+#[A-Za-z0-9_-]+$")
    """A field of a HashiCorp Vault secret, as path#field."""
    oidc: Literal["github", "gitlab", "aws"] | None = None
    """No stored secret: the pipeline's own identity is exchanged for a short token."""

    @model_validator(mode="after")
    def _has_one_key(self) -> SecretReference:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"name one of env, kubernetes, vault, oidc, not {' and '.join(given) or 'none'}")
        return self


class RegistrySettings(Section):
    """The registry that holds the images and the bundles."""

    image: str = Field(pattern=r"^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+$", max_length=200)
    """Repository of the image without a tag, such as ghcr.io/acme/lending; bundles go to the same name with -bundle."""
    credentials: SecretReference = Field(default_factory=lambda: SecretReference(oidc="github"))
    """How a pipeline logs in."""
    base: str | None = Field(default=None, pattern=r"^[^@\s]+@sha256:[0-9a-f]{64}$")
    """Base image by digest; the pinned python:3.11-slim when it is not given."""


class RunnerSettings(Section):
    """The machine that trains and judges."""

    label: str = Field(default="ubuntu-24.04", pattern=r"^[A-Za-z0-9._-]+$")
    """The runner's label (GitHub), tag (GitLab) or agent label (Jenkins)."""
    cpus: float = Field(default=2, gt=0, le=512)
    """CPUs."""
    memory_mb: int = Field(default=4096, ge=256)
    """Memory in MiB."""
    gpus: int = Field(default=0, ge=0, le=64)
    """GPUs."""
    machine: str | None = None
    """Class of machine, as gates on latency name it (gates.machine): they are judged on this one only."""
    timeout: Duration = "2h"
    """A job that takes longer is ended."""


class TriggerSettings(Section):
    """What starts the pipeline."""

    on: Trigger
    """The event. Data and drift ask for `mlkit trigger`, which decides whether there is work."""
    branch: str = Field(default="main", pattern=r"^[A-Za-z0-9._/-]+$")
    """Branch of a merge, and the target of a pull request."""
    cron: str | None = Field(default=None, pattern=r"^\S+( \S+){4}$")
    """When a schedule fires: minute, hour, day of month, month, day of week."""
    timezone: str = Field(default="UTC", pattern=r"^[A-Za-z0-9_+/-]+$")
    """Time zone of the cron expression."""

    @model_validator(mode="after")
    def _has_cron_for_a_schedule(self) -> TriggerSettings:
        if (self.on == "schedule") != (self.cron is not None):
            requirement = (
                "needs cron, such as '17 4 * * 1'" if self.on == "schedule" else "takes no cron: on: schedule does"
            )
            raise ValueError(f"on: {self.on} {requirement}")
        return self


class EnvironmentSettings(Section):
    """One place where the service runs."""

    promote: Literal["automatic", "approval"] = "approval"
    """Whether a blessed version goes there by itself or after a person's approval."""
    after: str | None = None
    """The environment in which the same digest must have been promoted before."""
    baking: Duration | None = None
    """How long it must have served there."""
    repo: str | None = Field(default=None, max_length=300)
    """Git repository of the environment's desired state (GitOps); this repository when it is not given."""
    branch: str = Field(default="main", pattern=r"^[A-Za-z0-9._/-]+$")
    """Its branch."""
    path: RelativePath | None = None
    """Folder of the overlay in it; deploy/overlays/ENVIRONMENT when it is not given."""
    cluster: str = "https://kubernetes.default.svc"
    """The Kubernetes API server that Argo CD deploys to."""
    namespace: Label | None = None
    """Kubernetes namespace; SERVICE-ENVIRONMENT when it is not given."""
    replicas: int | None = Field(default=None, ge=1, le=100)
    """Pods of the service. A Deployment with a state volume has one, which the default is: one pod decides a rollout.
    RayService has 2 by default, and so has a Deployment without a volume of a service that has no rollouts."""
    gateway: str | None = Field(default=None, pattern=r"^https?://[^\s@?#]+$", max_length=300)
    """Address of the gateway that follows the environment's file, as a pipeline reaches it: `mlkit gitops settle` asks
    it. With API keys, MLKIT_API_KEY in secrets is one with the scope admin."""


class ChecksSettings(Section):
    """What is checked of the recipe's own Python code, and of training, before anything is judged."""

    format: bool = True
    """`ruff format --check` over the recipe's folder."""
    lint: bool = True
    """`ruff check` over the recipe's folder."""
    tests: RelativePath | None = None
    """Folder of pytest tests; tests beside the recipe when that exists."""
    smoke_rows: int = Field(default=500, ge=0)
    """Rows of a small training run that shows that the recipe works; 0 for none."""


class PolicySettings(Section):
    """What verdicts mean for the pipeline."""

    inconclusive: Literal["fail", "neutral"] = "fail"
    """Whether INCONCLUSIVE (exit code 4) fails the pipeline's job; it never promotes."""
    signed: bool = False
    """Whether the job that pushes images gets an identity token, for a signature by a step of your own (cosign)."""
    key: RelativePath | None = None
    """A public key (PEM), from the repository's root: a bundle or an image that its owner did not sign is not promoted.
    The job `image` signs with the private key in MLKIT_SIGNING_KEY_PEM, where secrets has it."""


class KubernetesSettings(Section):
    """The Kubernetes manifests."""

    workload: Literal["deployment", "rayservice"] = "deployment"
    """A plain Deployment, or KubeRay's RayService."""
    state: Literal["volume", "memory"] = "volume"
    """Whether the state folder outlives its pod (a PersistentVolumeClaim)."""
    storage: str = Field(default="10Gi", pattern=r"^[0-9]+(Mi|Gi|Ti)$")
    """Size of that volume."""
    storage_class: Label | None = None
    """Its storage class; the cluster's default when it is not given."""
    clients: dict[Label, str] = Field(default_factory=dict)
    """Namespace labels of those who may call the service."""
    service_monitor: bool = False
    """A ServiceMonitor for the Prometheus operator."""


class AirflowSettings(Section):
    """The Airflow DAG."""

    executor: Literal["kubernetes", "bash"] = "kubernetes"
    """Whether each step is a pod, or a command on the worker."""
    namespace: Label = "airflow"
    """Namespace of the pods."""
    image: str | None = Field(default=None, pattern=r"^[^@\s]+@sha256:[0-9a-f]{64}$")
    """Image of the pods by digest, with git, bash, the packages of the lock, and buildah for the step `image`."""
    repository: str | None = Field(default=None, pattern=r"^https://[^\s@]+$", max_length=300)
    """Address of the recipe's git repository, which pods check out."""
    code: KubernetesSecret | None = None
    """A token that may read that repository; not needed for a public one."""
    git: KubernetesSecret | None = None
    """A token that may push to the environments' repositories, and claims of triggers to the recipe's."""
    state: Label | None = None
    """A PersistentVolumeClaim for the state folder and for the outputs that pods hand on: that of the gateway, where
    rollouts are settled."""
    folder: str = Field(default="/var/lib/mlkit", pattern=r"^/[A-Za-z0-9._/-]+$", max_length=200)
    """Folder of state and outputs on the worker (executor: bash); all workers share it."""


class KubeflowSettings(Section):
    """The Kubeflow pipeline."""

    image: str | None = Field(default=None, pattern=r"^[^@\s]+@sha256:[0-9a-f]{64}$")
    """Image of the steps by digest, with git, buildah and the packages of the lock. When it is not given, each step
    starts Python's base image as root, and installs them."""
    code: KubernetesSecret | None = None
    """A token that may read the repository of the recipe; not needed for a public one."""
    git: KubernetesSecret | None = None
    """A token that may push to the environments' repositories, and claims of triggers to the recipe's."""
    state: Label | None = None
    """A PersistentVolumeClaim with the state folder: that of the gateway, where rollouts are settled. Without it every
    run starts with an empty one."""


class SagemakerSettings(Section):
    """SageMaker pipelines and endpoints."""

    region: str = Field(default="us-east-1", pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]$")
    """AWS region."""
    role: str = Field(default="", pattern=r"^(arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9+=,.@_/-]+)?$")
    """ARN of the execution role."""
    instance: str = Field(default="ml.m5.large", pattern=r"^ml\.[a-z0-9.-]+$")
    """Instance type of the endpoint and of training."""
    count: int = Field(default=2, ge=1, le=100)
    """Instances of the endpoint."""
    bucket: str = Field(default="", pattern=r"^([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])?$")
    """S3 bucket of bundles, code and reports, in the same region."""
    image: str | None = Field(default=None, pattern=r"^[^@\s]+@sha256:[0-9a-f]{64}$")
    """Image of the pipeline's steps by digest, in Amazon ECR: it has git and the packages of the lock."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class DeliverySection(Section):
    """CI/CD: what `mlkit export` generates, and what `mlkit ci`, `image`, `gitops` and `trigger` act on."""

    registry: RegistrySettings
    """Where images and bundles are pushed."""
    runner: RunnerSettings = Field(default_factory=RunnerSettings)
    """The machine of the pipeline."""
    requirements: RelativePath = "requirements.txt"
    """The lock of the Python packages, from the repository's root: what jobs and images install."""
    triggers: list[TriggerSettings] = Field(
        default_factory=lambda: [TriggerSettings(on="pull_request"), TriggerSettings(on="merge")]
    )
    """What starts the pipeline."""
    environments: dict[Label, EnvironmentSettings] = Field(default_factory=dict)
    """Environments in order."""
    secrets: dict[EnvironmentVariable, SecretReference] = Field(default_factory=dict)
    """Environment variables that training and judging need, and where each is kept."""
    checks: ChecksSettings = Field(default_factory=ChecksSettings)
    """Checks of the recipe's own code."""
    policy: PolicySettings = Field(default_factory=PolicySettings)
    """What verdicts mean."""
    targets: Annotated[list[str], BeforeValidator(_as_list)] = Field(default_factory=lambda: ["github"])
    """Systems that files are generated for."""
    kubernetes: KubernetesSettings = Field(default_factory=KubernetesSettings)
    """Options of the targets kubernetes, argocd and flux."""
    airflow: AirflowSettings = Field(default_factory=AirflowSettings)
    """Options of the target airflow."""
    kubeflow: KubeflowSettings = Field(default_factory=KubeflowSettings)
    """Options of the target kubeflow."""
    sagemaker: SagemakerSettings = Field(default_factory=SagemakerSettings)
    """Options of the target sagemaker."""
    options: dict[str, dict[str, Json]] = Field(default_factory=dict)
    """Options of targets that plugins add, by target."""
