"""Control records are read and written through `service_state` only, so that their storage can be another one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlflowkit

PACKAGE = Path(mlflowkit.__file__).parent
ROOMS = ("rollout", "serving", "adapters/ray_serve", "processes", "cli")
"""The packages whose modules know the folder of a service."""

FILE_CALLS = {
    "open", "read_bytes", "read_text", "write_bytes", "unlink", "rename", "glob", "rglob", "iterdir",
    "listdir", "scandir", "read_json", "write_json", "replace_file", "staged_file", "rmtree",
}  # fmt: skip
RECORDS_ONLY = {"files", "_files", "records", "_records"}
"""Receivers whose methods of these names are those of `ServiceFiles` and `ControlRecords`."""

ALLOWED = {
    "rollout/feedback_loop.py": "looks for the feedback log, which is appended",
    "rollout/incidents.py": "reads a bundle's manifest",
    "rollout/signature_check.py": "reads the signatures of two bundles",
    "serving/auth.py": "files of API keys, which an operator names and edits",
    "serving/feedback/intake.py": "the feedback log, appended and synced by line",
    "serving/feedback/join.py": "the index join.sqlite, of one process and rebuilt from the logs",
    "serving/grpc/message_codec.py": "a descriptor in this package",
    "serving/inference/variants.py": "a bundle's evidence",
    "serving/observer/bundle_info.py": "a bundle's signature and reference profile",
    "serving/observer/answered_ledger.py": "rows that a gateway answered, in memory-mapped files",
    "serving/observer/pane_compaction.py": "counts of live traffic, merged and removed",
    "serving/observer/panes.py": "counts and profiles of live traffic, written once",
    "serving/observer/prediction_log.py": "the prediction log, Parquet segments",
    "adapters/ray_serve/cluster.py": "the Ray cluster of this machine: its record, its token, its lock",
    "adapters/ray_serve/isolated.py": "reads /proc/self/status",
    "adapters/ray_serve/ray_logs.py": "reads and keeps the logs of Ray",
    "adapters/ray_serve/ownership.py": "lists /proc and removes Ray's temporary folder",
    "adapters/ray_serve/remote.py": "opens a connection",
    "adapters/ray_serve/supervisor.py": "the log and the lock of this machine's supervisor",
    "processes/foreground.py": "follows the log of this machine's supervisor",
    "cli/__init__.py": "opens /dev/null for a closed stream",
    "cli/app.py": "looks for state folders below the working directory",
    "cli/commands/bench.py": "writes the page that its user named",
    "cli/commands/feedback.py": "reads the file that its user named",
    "cli/commands/init.py": "reads the project's own .gitlab-ci.yml",
    "cli/commands/monitor.py": "writes the page that its user named",
    "cli/commands/predict.py": "reads the file that its user named",
    "cli/commands/report.py": "writes the page of a run",
    "cli/commands/serve.py": "removes the bundle that it fetched",
    "cli/error_format.py": "quotes a recipe",
    "cli/output_file.py": "writes the file that its user named",
}
"""Modules that open files which are no control records, and which those are."""

NAMES = {
    "service.json", "observed.json", "table.json", "proposal.json", "rollout.json", "request.json", "champions.json",
    "failed.json", "webhooks.json", "admin.json", "isolated.json", "controller.json", "evidence", "disagreements",
    "tenths", "retired.json", "delivery.json", "commands", "answers", "incidents", "webhooks", "isolated", "replicas",
}  # fmt: skip
"""Names of control records and their folders (see `service_state.records`)."""
SAME_NAMES = {
    "service.json": ("stages/deploy.py", "the result of the deploy stage"),
    "table.json": (
        "stages/data.py stages/base.py pipeline/run_recorder.py features/preprocess.py graphs/rehearsal.py "
        "adapters/onnx_exporter/bundle_model.py",
        "the result of the data stage",
    ),
    "evidence": (
        "stages/package.py stages/deploy.py pipeline/bench_targets.py serving/inference/variants.py "
        "serving/observer/bundle_info.py",
        "the evidence in a bundle",
    ),
}
"""Files of the same name elsewhere: the modules that join it to a path, and what it is there."""


def modules(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """Modules outside service_state by their path in the package."""
    for folder in folders or (".",):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            name = path.relative_to(PACKAGE).as_posix()
            if not name.startswith("service_state/"):
                yield name, ast.parse(path.read_text())


def receiver(node: ast.expr) -> str:
    """The last name of the object that a method is called on."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def file_calls(tree: ast.Module) -> set[str]:
    """Names of calls that open, replace, list or remove files."""
    calls = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else receiver(node.func)
        if isinstance(node.func, ast.Attribute) and receiver(node.func.value) in RECORDS_ONLY:
            continue
        if name in FILE_CALLS:
            calls.add(name)
    return calls


def joined_names(tree: ast.Module) -> set[str]:
    """Names that an operator ``/`` joins to a path; the suffix of an f-string counts as its name."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            names.add(str(node.right.value))
    return names


def test_only_listed_modules_open_files() -> None:
    found = {name for name, tree in modules(*ROOMS) if file_calls(tree)}
    assert found - set(ALLOWED) == set(), "use ServiceFiles, or say here which file it is and why it is no record"
    assert set(ALLOWED) - found == set(), "these open no file any more"


def test_no_module_makes_a_path_to_a_control_record() -> None:
    found = {(name, joined) for name, tree in modules() for joined in joined_names(tree) & NAMES}
    allowed = {(module, name) for name, (listed, _) in SAME_NAMES.items() for module in listed.split()}
    assert found - allowed == set(), "use ServiceFiles, or say here what else this file is"
    assert allowed - found == set(), "these join that name no more"


@pytest.mark.parametrize(
    "source",
    [
        'state = (folder / "rollout.json").read_bytes()',
        'write_json(files.folder / "champions.json", [])',
        'for path in folder.glob("*.json"): path.unlink()',
        "replace_file(path, content)",
        "with open(path) as stream: stream.read()",
    ],
)
def test_a_direct_access_is_noticed(source: str) -> None:
    assert file_calls(ast.parse(source))


def test_typed_access_is_not_mistaken_for_a_file() -> None:
    assert not file_calls(ast.parse('self._files.write_bytes("a", b""); files.read_json("b"); x.records.get("c")'))
    assert joined_names(ast.parse('files.folder / "commands" / name')) == {"commands"}
