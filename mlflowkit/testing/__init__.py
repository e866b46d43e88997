"""Contract suites for adapters and plugins, shipped so that code outside this repository can pass them too.

Each suite is a class of pytest tests. Subclass it in a test module and override its first method::

    class TestFileRecords(ControlRecordsContract):
        def open(self, folder: Path) -> ControlRecords:
            return FileRecords(folder)
"""

from mlflowkit.testing.delivery_suite import DeliveryTargetContract, delivery_plans
from mlflowkit.testing.plugin_suites import MetricContract, PassContract, SourceContract
from mlflowkit.testing.registry_suites import ModelRegistryContract
from mlflowkit.testing.runtime_suites import (
    PROFILED_ROWS,
    ProfilerContract,
    RuntimeContract,
    profiled_table,
    runtime_graph,
    runtime_inputs,
)
from mlflowkit.testing.source_suites import RemoteSourceContract
from mlflowkit.testing.state_suites import ControlRecordsContract, JournalContract, ObjectStoreContract
from mlflowkit.testing.table_source_suites import RemoteTableContract

__all__ = [
    "PROFILED_ROWS",
    "ControlRecordsContract",
    "DeliveryTargetContract",
    "JournalContract",
    "MetricContract",
    "ModelRegistryContract",
    "ObjectStoreContract",
    "PassContract",
    "ProfilerContract",
    "RemoteSourceContract",
    "RemoteTableContract",
    "RuntimeContract",
    "SourceContract",
    "delivery_plans",
    "profiled_table",
    "runtime_graph",
    "runtime_inputs",
]
