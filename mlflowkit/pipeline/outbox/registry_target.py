"""A registry of models as a target of deliveries: the blessed bundles of finished runs."""

from __future__ import annotations

from dataclasses import dataclass

from mlflowkit.data_access.registry_sections import HuggingfaceRegistry, OciRegistry
from mlflowkit.errors import DeliveryRefusedError, UsageError
from mlflowkit.ports import FinishedRun, ModelRegistry
from mlflowkit.values import RunRecord


@dataclass(frozen=True)
class RegistryTarget:
    """Pushes the bundle of a run whose gates passed; one identity is one version there, whichever runs made it."""

    section: HuggingfaceRegistry | OciRegistry
    registry: ModelRegistry

    @property
    def name(self) -> str:
        return f"{self.section.kind} {self.section.repository}"

    def key(self, run: RunRecord) -> str:
        return run.bundle if run.blessed else ""

    def deliver(self, run: FinishedRun) -> str:
        try:
            return self.registry.push(run.folders["package"] / "bundle")
        except UsageError as error:
            raise DeliveryRefusedError(error.message, hint=error.hint) from None

    def defer(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing stays open."""
