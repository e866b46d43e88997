"""Gather graph, signature and evidence into a bundle, and bless it when its gates passed."""

from __future__ import annotations

from mlflowkit.stages.base import Section


class Spec(Section):
    """What the package stage's result depends on, besides its inputs."""

    name: str
    policy: str
    """Digest of the gates."""
