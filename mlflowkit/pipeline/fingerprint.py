"""What each stage's result depends on, by name: the ingredients of its fingerprint.

The name of an ingredient says what it is::

    spec:epochs       a key of the stage's Spec, its value as JSON      seed               of the run
    content:a.csv     digest of a data file, read or declared           machine            where latency is measured
    code:helper.py    digest of a file beside the recipe that it runs   input:data         fingerprint of an input
    own:stages.train  digest of a module of mlflowkit that it runs      champion           identity judged against
    library:torch     installed version of a library that these import

Nothing is executed or imported to find them: recipes' code and mlflowkit's own are followed by reading them.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from mlflowkit import usercode
from mlflowkit.errors import DataError
from mlflowkit.graphs.onnx_file import external_files
from mlflowkit.optimization.search import method_of
from mlflowkit.pipeline import codec
from mlflowkit.pipeline.journal import Journal
from mlflowkit.recipe.schema import LoadedRecipe, Recipe, stage_specs
from mlflowkit.sections import Section
from mlflowkit.stages.data import source_files
from mlflowkit.stages.optimize import planned
from mlflowkit.stages.train import OnnxModel
from mlflowkit.system import machine
from mlflowkit.system.digests import digest_file, digest_json
from mlflowkit.values import Json

PACKAGE = Path(__file__).parent.parent

STAGE_PORTS: Mapping[str, tuple[str, ...]] = {
    "data": ("tables",),
    "validate": ("checker", "profiler"),
    "train": ("trainer",),
    "export": ("exporter", "runtime"),
    "optimize": ("trials", "passes", "engines", "search"),
    "evaluate": ("runtime",),
    "package": ("runtime",),
    "deploy": (),
}
"""Ports that each stage's result depends on. Deploy is judged by what runs, so its platform is not one of them."""

PORT_MODULES: Mapping[str, str] = {
    "tables": "adapters.arrow",
    "checker": "adapters.pandera",
    "profiler": "adapters.whylogs",
    "trainer:torch": "adapters.ray_train",
    "trainer:sklearn": "adapters.sklearn_trainer",
    "trainer:onnx": "adapters.onnx_exporter.external_model",
    "exporter": "adapters.onnx_exporter",
    "runtime": "adapters.onnxruntime",
    "trials": "adapters.trials",
    "passes": "adapters.onnx_passes",
    "engines:ort": "adapters.onnxruntime",
    "engines:tensorrt": "adapters.tensorrt",
    "engines:torch": "adapters.torch_runtime",
    "search:optuna": "adapters.optuna",
}
"""The module of mlflowkit behind each port, as `mlflowkit.wiring` makes it; of those that have several, those that the
recipe asks for."""

SEEDED: tuple[str, ...] = ("data", "train", "export", "optimize")
"""Stages that draw random numbers."""

CONTRACTS = ("errors", "ports", "values")
"""Modules that say what others look like and do nothing themselves: no ingredient."""

IRRELEVANT = ("pydantic", "typing_extensions", "mlflowkit")
"""Distributions that stages import and no result depends on."""

RECENT_NS = 50_000_000
"""A file that changed this shortly before it was digested may change again within one tick of the clock."""


def fingerprint(stage: str, ingredients: Mapping[str, str]) -> str:
    """The fingerprint of a stage: a digest of its name and all its ingredients.

    >>> fingerprint("train", {"seed": "7"}) == fingerprint("train", {"seed": "8"})
    False
    """
    return digest_json({"stage": stage, "ingredients": dict(ingredients)})


def gather(loaded: LoadedRecipe, digests: FileDigests) -> dict[str, dict[str, str]]:
    """The ingredients of each stage of a recipe, but for its inputs and the champion.

    Raises DataError when a data file is missing, UserCodeError when code that the recipe names is.
    """
    return {
        stage: {
            **_spec_ingredients(spec),
            **_own_ingredients(_roots(stage, loaded.recipe), digests),
            **_world_ingredients(stage, loaded, digests),
        }
        for stage, spec in stage_specs(loaded.recipe).items()
    }


def files_read(loaded: LoadedRecipe) -> list[Path]:
    """The data files and the code beside the recipe that its stages read."""
    recipe, folder = loaded.recipe, loaded.folder
    source = recipe.data.source
    references = [source.function] if source.kind == "python" else []
    references += [recipe.model.module] if not isinstance(recipe.model, OnnxModel) else []
    code = [folder / name for reference in references for name in usercode.closure(reference, folder).files]
    return [*code, *source_files(source, folder), *_model_files(loaded)]


def recipe_key(stage: str, key: str) -> str:
    """The key of a recipe that a key of a stage's Spec comes from.

    >>> recipe_key("data", "split.test"), recipe_key("train", "train.epochs")
    ('data.split.test', 'train.epochs')
    """
    return f"data.{key}" if stage in ("data", "validate") and key != "task" else key


def flatten(value: Json, prefix: str = "") -> dict[str, Json]:
    """Nested mappings and lists as one mapping from dotted keys to leaves; empty ones are leaves.

    >>> flatten({"train": {"epochs": 3}, "gates": [{"min": 0.7}], "drop": []})
    {'train.epochs': 3, 'gates[0].min': 0.7, 'drop': []}
    """
    if isinstance(value, Mapping) and value:
        items = [(f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and value:
        items = [(f"{prefix}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    return {key: leaf for name, item in items for key, leaf in flatten(item, name).items()}


@dataclass
class FileDigests:
    """Digests of files by path, remembered with each file's stat so that a file is read once."""

    journal: Journal
    _known: dict[str, tuple[str, str]] = field(default_factory=dict)
    _new: dict[str, tuple[str, str]] = field(default_factory=dict)

    def look_up(self, paths: Sequence[Path]) -> dict[Path, str]:
        """SHA-256 of each file. Raises DataError when one cannot be read."""
        unknown = [str(path) for path in paths if str(path) not in self._known]
        self._known.update(self.journal.file_digests(unknown) if unknown else {})
        return {path: self._one(path) for path in paths}

    def save(self) -> None:
        """Keep in the journal what was newly digested."""
        self.journal.remember_files(self._new)
        self._new = {}

    def _one(self, path: Path) -> str:
        try:
            stat = stat_text(path)
            known = self._known.get(str(path))
            if known is not None and known[0] == stat:
                return known[1]
            started = time.time_ns()
            digest = digest_file(path)
            settled = started - max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) > RECENT_NS
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}", hint=f"ls -l {path}") from error
        self._known[str(path)] = (stat, digest)
        if settled:
            self._new[str(path)] = (stat, digest)
        return digest


def stat_text(path: Path) -> str:
    """What tells a file from a changed one without reading it: size, times of change, inode."""
    stat = os.stat(path)
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"


# ---------------------------------------------------------------------------------------------------- ingredients


def _spec_ingredients(spec: Section) -> dict[str, str]:
    plain = spec.model_dump(mode="json")
    leaves = {f"spec:{key}": codec.dumps(value) for key, value in flatten(plain).items()}
    return {"spec": digest_json(plain), **leaves}


def _world_ingredients(stage: str, loaded: LoadedRecipe, digests: FileDigests) -> dict[str, str]:
    recipe = loaded.recipe
    found: dict[str, str] = {}
    if stage in SEEDED and not (stage == "data" and recipe.data.split.kind == "time"):
        found["seed"] = str(recipe.seed)
    if stage == "data":
        found |= _source_ingredients(loaded, digests)
    if stage == "train" and not isinstance(recipe.model, OnnxModel):
        found |= _code_ingredients(recipe.model.module, loaded.folder, digests)
    elif stage == "train":
        files = digests.look_up(_model_files(loaded))
        found |= {f"content:{_relative(path, loaded.folder)}": digest for path, digest in files.items()}
    if stage == "optimize":
        found["machine"] = machine.described()
    return found


def _model_files(loaded: LoadedRecipe) -> list[Path]:
    """The graph that a recipe brings and the files of its external data. Raises EngineError when it is no graph."""
    model = loaded.recipe.model
    if not isinstance(model, OnnxModel):
        return []
    path = loaded.folder / model.path
    return [path, *external_files(path)]


def _source_ingredients(loaded: LoadedRecipe, digests: FileDigests) -> dict[str, str]:
    source = loaded.recipe.data.source
    code = _code_ingredients(source.function, loaded.folder, digests) if source.kind == "python" else {}
    files = source_files(source, loaded.folder)
    named = {_relative(path, loaded.folder): digest for path, digest in digests.look_up(files).items()}
    return code | {f"content:{name}": digest for name, digest in named.items()}


def _code_ingredients(reference: str, folder: Path, digests: FileDigests) -> dict[str, str]:
    closure = usercode.closure(reference, folder)
    files = digests.look_up([folder / name for name in closure.files])
    return {
        **{f"code:{_relative(path, folder)}": digest for path, digest in files.items()},
        **{f"library:{name}": version for name, version in closure.distributions if name not in IRRELEVANT},
    }


def _own_ingredients(roots: Sequence[str], digests: FileDigests) -> dict[str, str]:
    modules = own_modules(roots)
    files = digests.look_up(list(modules.values()))
    found = {f"own:{name}": files[path] for name, path in modules.items()}
    installed = usercode.installed()
    for library in sorted({name for path in modules.values() for name in _read_imports(path).libraries}):
        distribution = usercode.ALIASES.get(library, library)
        for candidate in (distribution, f"{distribution}_gpu"):
            if candidate in installed and candidate not in IRRELEVANT:
                found[f"library:{candidate.replace('_', '-')}"] = installed[candidate]
    return found | {"library:python": platform.python_version().rpartition(".")[0]}


def _roots(stage: str, recipe: Recipe) -> list[str]:
    model = recipe.model
    chosen: dict[str, list[str]] = {"trainer": [model.kind], "engines": _engines(recipe), "search": _searches(recipe)}
    ports = [f"{port}:{one}" if one else port for port in STAGE_PORTS[stage] for one in chosen.get(port, [""])]
    roots = [f"stages.{stage}", *(PORT_MODULES[port] for port in ports)]
    if stage == "train" and not isinstance(model, OnnxModel) and model.module.startswith("mlflowkit."):
        roots.append(model.module.partition(":")[0].removeprefix("mlflowkit."))
    return roots


def _engines(recipe: Recipe) -> list[str]:
    """The kinds of engine that the candidates of a recipe run on; the float graph's among them."""
    plan = planned(recipe.optimize)
    runtimes = {one.engine.runtime for one in (*plan.listed, *plan.space)}
    return ["ort", *(kind for kind in ("tensorrt", "torch") if any(one.startswith(kind) for one in runtimes))]


def _searches(recipe: Recipe) -> list[str]:
    space = planned(recipe.optimize).space
    return ["optuna"] if space and method_of(recipe.optimize.search, len(space)) == "optuna" else []


# ----------------------------------------------------------------------------------------------- mlflowkit's own code


@dataclass(frozen=True, slots=True)
class _Imports:
    own: tuple[str, ...]
    libraries: tuple[str, ...]


_OWN = re.compile(
    r"^[ \t]*from mlflowkit((?:\.\w+)*) import (\([^)]*\)|[^\n]+)|^[ \t]*import mlflowkit\.([\w.]+)", re.M
)
_LIBRARY = re.compile(r"^[ \t]*(?:import|from) ([A-Za-z_]\w*)", re.M)


def own_modules(roots: Sequence[str]) -> dict[str, Path]:
    """Modules of mlflowkit that these import, themselves included, with their files; found by reading.

    >>> sorted(own_modules(["arrays"]))
    ['arrays', 'files']
    """
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        path = _module_file(name)
        if name in found or name in CONTRACTS or path is None:
            continue
        found[name] = path
        waiting.extend(_read_imports(path).own)
        parent = name.rpartition(".")[0]
        if parent:
            waiting.append(parent)
    return dict(sorted(found.items()))


@lru_cache(maxsize=256)
def _read_imports(path: Path) -> _Imports:
    text = path.read_text(encoding="utf-8")
    own: list[str] = []
    for module, names, plain in _OWN.findall(text):
        base = module.removeprefix(".")
        own.extend([base] if base else [])
        own.extend(f"{base}.{name}".removeprefix(".") for name in re.findall(r"\w+", names))
        own.extend([plain] if plain else [])
    return _Imports(tuple(own), tuple(sorted(set(_LIBRARY.findall(text)))))


@lru_cache(maxsize=512)
def _module_file(name: str) -> Path | None:
    place = PACKAGE.joinpath(*name.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
