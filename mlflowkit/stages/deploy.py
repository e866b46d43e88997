"""Put a blessed bundle behind a service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlflowkit.stages.base import Section


class Rollout(Section):
    """How a new version takes over."""

    strategy: Literal["direct"] = "direct"
    """direct: loaded, verified and warmed beside the old one, then swapped at once."""


class ServeSection(Section):
    """The service that answers requests."""

    service: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    """Its name; the model's name in the Open Inference Protocol."""
    host: str = "127.0.0.1"
    """Address to listen on; loopback unless said otherwise."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    replicas: int = Field(default=1, ge=1, le=64)
    """Gateway replicas that share the port."""
    threads: int = Field(default=1, ge=1)
    """ONNX Runtime threads a replica."""
    max_body_mb: float = Field(default=8.0, gt=0)
    """Largest request body, in MiB (413 beyond)."""
    timeout_seconds: float = Field(default=10.0, gt=0)
    """Deadline of a request (504 beyond)."""
    max_queue: int = Field(default=256, ge=1)
    """Requests waiting before new ones are refused with 503."""
    rollout: Rollout = Field(default_factory=Rollout)
    """How a new version takes over."""


class Spec(Section):
    """What the deploy stage does; it is judged by what runs, not by a fingerprint alone."""

    name: str
    serve: ServeSection
