"""Checks before a run that the optional dependencies of its steps are installed."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec

from mlflowkit.errors import EngineError
from mlflowkit.recipe.schema import RecipeSchema
from mlflowkit.system.extras import missing_distributions

_EXTRAS = {"huggingface": "hub", "oci": "delivery", "mlflow": "track"}
"""The extra of each kind of registry."""


def require_installed(recipe: RecipeSchema, stages: Collection[str]) -> None:
    """Raise EngineError when a distribution that one of ``stages`` imports is not installed.

    ``deploy`` needs the extra ``serve``, every other stage the extra ``train``, and those of the recipe's registries;
    PyTorch only for ``model.kind: torch``.
    """
    offline = [stage for stage in stages if stage != "deploy"]
    ignore = () if recipe.model.kind == "torch" else ("torch",)
    missing = {"train": missing_distributions("train", ignore=ignore)} if offline else {}
    if "package" in stages:
        registries = {_EXTRAS[section.kind] for section in recipe.registries}
        missing |= {extra: missing_distributions(extra) for extra in sorted(registries)}
    if "deploy" in stages:
        missing["serve"] = missing_distributions("serve")
    if stages and find_spec("onnxruntime") is None:
        missing["cpu"] = ("onnxruntime",)
    absent = sorted({name for names in missing.values() for name in names})
    if absent:
        extras = ",".join(extra for extra, names in missing.items() if names)
        is_are = "is" if len(absent) == 1 else "are"
        raise EngineError(
            f"{', '.join(absent)} {is_are} not installed; this run needs {'it' if len(absent) == 1 else 'them'} for "
            f"{', '.join(stages)}",
            hint=f"pip install 'mlflowkit[{extras}]'",
        )


def is_tracked() -> bool:
    """Whether the extra ``track`` (MLflow) is installed, so that runs can be mirrored into it."""
    return not missing_distributions("track")
