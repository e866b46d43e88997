"""Each module is a command that prints a table, writes JSON, and compares with a peer or a limit in the same run."""

import contextlib

with contextlib.suppress(ImportError):  # a peer's environment has no mlflowkit; it inherits these settings
    from mlflowkit.system import telemetry

    telemetry.switch_off()
