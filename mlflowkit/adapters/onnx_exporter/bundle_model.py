"""Bundles as models: the graph of a blessed bundle is imported as it is (the Trainer of model.kind bundle).

Its preprocessing is inside the graph, so that it takes the table's columns by name. What a recipe says of texts must be
what the bundle says, since the same text must mean the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlflowkit.adapters.onnx_exporter.external_model import BUNDLE_KEYS, GraphKeys, import_graph
from mlflowkit.bundle import Bundle, TextRule, open_bundle
from mlflowkit.errors import DataError, UsageError
from mlflowkit.features import row_digests
from mlflowkit.features.preprocess import Table, open_table
from mlflowkit.ports import StageContext
from mlflowkit.system.text import format_list
from mlflowkit.values import Event


class BundleImporter:
    """The Trainer port for bundles: stores a copy of the graph, with the columns of its inputs."""

    def fit(self, spec: Any, context: StageContext) -> Mapping[str, Any]:
        """Fetch the bundle named by a stages.train.Spec; returns the fields of a stages.train.FitResult.

        Raises BundleError for one that does not verify or is not blessed, UsageError and DataError for one that does
        not fit the recipe or the table, and what fetching raises.
        """
        assert context.fetch_model is not None
        context.progress(Event("train", "progress", f"fetching {spec.model.reference}", fraction=0.0))
        bundle = open_bundle(context.fetch_model(), blessed=True)
        data = context.inputs["data"]
        table, info = open_table(data), json.loads((data / "table.json").read_text())
        _require_same_task(bundle, spec.task)
        _require_same_columns(bundle, table)
        _require_same_classes(bundle, table)
        _require_same_texts(bundle, TextRule.model_validate(info.get("texts", {})))
        manifest, signature = bundle.manifest, bundle.signature
        words = f"bundle {manifest.version} of {manifest.name} is taken as it is: nothing is trained"
        context.progress(Event("train", "progress", words, fraction=0.5))
        _report_seen_rows(bundle, table, context)
        inputs = {tensor.name: list(tensor.columns) for tensor in signature.inputs}
        scores = "prediction" if spec.task == "regression" else "probabilities"
        classes = list(signature.classes) or None
        description = {
            "name": manifest.name, "version": manifest.version, "identity": manifest.identity, "inputs": inputs,
            "outputs": {scores: scores}, "classes": classes, "threshold": signature.threshold,
        }  # fmt: skip
        (context.out / BUNDLE_KEYS).write_text(json.dumps(description, ensure_ascii=False, indent=1))
        return import_graph(bundle.model, spec.task, GraphKeys(inputs, {scores: scores}, classes), context)


def _require_same_task(bundle: Bundle, task: str) -> None:
    signature, name = bundle.signature, f"bundle {bundle.manifest.version} of {bundle.manifest.name}"
    if signature.task != task:
        raise UsageError(f"{name} does {signature.task}, and the recipe {task}", hint=f"write task: {signature.task}")


def _require_same_columns(bundle: Bundle, table: Table) -> None:
    """Raise DataError unless the inputs are the table's features, by name and kind."""
    kinds = {"numeric": table.features.numeric, "categorical": table.features.categorical}
    name = f"bundle {bundle.manifest.version} of {bundle.manifest.name}"
    for tensor in bundle.signature.inputs:
        if tensor.name not in kinds:
            message = f"{name} takes {tensor.name} ({format_list(tensor.columns)}), which only its own recipe can give"
            raise DataError(message, hint="retrain it with its recipe: mlkit run RECIPE")
    input_kinds = {column: tensor.name for tensor in bundle.signature.inputs for column in tensor.columns}
    given = {column: kind for kind, columns in kinds.items() for column in columns}
    if missing := [column for column in input_kinds if column not in given]:
        message = f"{name} takes {format_list(missing)}, which the table does not have as a feature"
        raise DataError(message, hint=f"its features are {format_list(list(given))}; name them so at the source")
    if other := [column for column in input_kinds if given[column] != input_kinds[column]]:
        message = f"column {other[0]!r} is {given[other[0]]}, and {name} takes it as {input_kinds[other[0]]}"
        raise DataError(message, hint=f"declare data.columns: {{{other[0]}: {input_kinds[other[0]]}}}")
    if extra := [column for column in given if column not in input_kinds]:
        raise DataError(f"{name} does not take {format_list(extra)}", hint=f"data.drop: [{', '.join(extra)}]")


def _require_same_classes(bundle: Bundle, table: Table) -> None:
    """Raise DataError unless the target has the classes that the bundle answers."""
    theirs, ours = bundle.signature.classes, table.classes
    if sorted(map(str, theirs)) != sorted(map(str, ours)):
        name = f"bundle {bundle.manifest.version} of {bundle.manifest.name}"
        message = f"{name} answers {format_list(list(theirs))}, and the target has {format_list(list(ours))}"
        raise DataError(message, hint="write the target with its classes at the source, or train a model of these")


def _require_same_texts(bundle: Bundle, rule: TextRule) -> None:
    """Raise DataError where a text of the table means something else to the bundle; one of version 0.1 has no rule."""
    if not bundle.signature.has_text_rule:
        return
    if hashed := bundle.signature.texts.tokens:
        message = (
            f"bundle {bundle.manifest.version} of {bundle.manifest.name} takes {format_list(list(hashed))} as free text"
        )
        raise DataError(f"{message}, which only its own recipe can give", hint="retrain it: mlkit run RECIPE")
    theirs, ours = bundle.signature.texts.model_dump(), rule.model_dump()
    for key in sorted({*theirs, *ours}):
        if theirs.get(key) != ours.get(key):
            message = (
                f"bundle {bundle.manifest.version} of {bundle.manifest.name} was trained with {key}: "
                f"{theirs.get(key)!r} of texts, and this table has {ours.get(key)!r}"
            )
            raise DataError(message, hint="read the table as its recipe does: mlkit explain RECIPE data.source")


def _report_seen_rows(bundle: Bundle, table: Table, context: StageContext) -> None:
    """Warn where test rows may have been training rows of the bundle, and keep the digests of those."""
    seen_digests = row_digests.read(bundle)
    if seen_digests is None:
        message = "the bundle does not say which rows it was trained on: test rows that it has seen flatter its metrics"
        context.progress(Event("train", "warning", message))
        return
    row_digests.write(context.out / row_digests.FILE, seen_digests)
    digests = row_digests.digests_of(table.folder / "test.parquet", bundle.signature, table.target)
    share = float(np.mean(row_digests.is_seen(digests, seen_digests))) if len(digests) else 0.0
    if share:
        message = (
            f"{share:.1%} of these test rows are among those that the bundle was trained on: they flatter its metrics"
        )
        context.progress(Event("train", "warning", message))
