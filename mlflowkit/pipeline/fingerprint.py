"""Fingerprints: a digest per stage of the ingredients that its result depends on.

Kinds of ingredients::

    spec:epochs       a key of the stage's Spec, its value as JSON      seed          of the run
    content:a.csv     digest of a data file, read or declared           machine       that measures latency
    code:helper.py    digest of a user or plugin file                   input:data    digest of what an input published
    own:stages.train  digest of a module of mlflowkit                   champion      identity compared with
    library:torch     installed version of a library that these import

None says where something lies: files are named from the recipe's folder, or from the folder that a key names, and such
keys are left out. So another checkout, or data that was moved, has the same fingerprints. Sources are read, never
imported or executed.
"""

from __future__ import annotations

import importlib
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlflowkit import usercode
from mlflowkit.bundle import MANIFEST
from mlflowkit.data_access.remote_source import RemoteSource
from mlflowkit.errors import DataError
from mlflowkit.graphs.onnx_file import external_files
from mlflowkit.judging.file_checks.check_sections import FileCheck
from mlflowkit.optimization.search import method_of
from mlflowkit.pipeline.storage import codec
from mlflowkit.ports import Journal
from mlflowkit.recipe.schema import LoadedRecipe, RecipeSchema, stage_specs
from mlflowkit.sections import Section, used_plugins
from mlflowkit.stages.optimize import search_plan
from mlflowkit.stages.sources import content_names, resolve_source
from mlflowkit.stages.train import HOW, IMPORTED, ImportedBundle, OnnxModel
from mlflowkit.system import machine
from mlflowkit.system.digests import digest_file, digest_json
from mlflowkit.system.own_modules import adapter_modules, own_modules, read_imports
from mlflowkit.system.text import shell_word
from mlflowkit.values import STAGE_INPUTS, DataSnapshot, Json

SEEDED: tuple[str, ...] = ("data", "validate", "train", "export", "optimize")
"""Stages that draw random numbers."""

IRRELEVANT = ("pydantic", "typing_extensions", "mlflowkit")
"""Imported distributions that no result depends on."""

MAX_OBJECTS = 500
"""Most objects of remote data that are ingredients each, so that a plan can name those that changed."""

RECENT_NS = 50_000_000
"""A file that changed this recently may change again within one clock tick, so its digest is not stored."""


def stage_ports(stage: str) -> tuple[str, ...]:
    """The ports that a stage's result depends on, from its module's PORTS."""
    ports: tuple[str, ...] = importlib.import_module(f"mlflowkit.stages.{stage}").PORTS
    return ports


def fingerprint(stage: str, ingredients: Mapping[str, str]) -> str:
    """The fingerprint of a stage: a digest of its name and all its ingredients.

    >>> fingerprint("train", {"seed": "7"}) == fingerprint("train", {"seed": "8"})
    False
    """
    return digest_json({"stage": stage, "ingredients": dict(ingredients)})


def collect_ingredients(
    loaded: LoadedRecipe, digests: FileDigests, snapshot: DataSnapshot | None = None
) -> dict[str, dict[str, str]]:
    """The ingredients of each stage of a recipe, without inputs and champion. ``snapshot`` is its remote data.

    Raises DataError for a missing data file, UserCodeError for missing user code.
    """
    return {
        stage: {
            **_spec_ingredients(spec, left_out_keys(stage, loaded.recipe)),
            **_plugin_ingredients(spec, digests),
            **_own_ingredients(_root_modules(stage, loaded.recipe), digests),
            **_environment_ingredients(stage, loaded, digests),
            **(_snapshot_ingredients(snapshot) if stage == "data" and snapshot is not None else {}),
        }
        for stage, spec in stage_specs(loaded.recipe).items()
    }


def left_out_keys(stage: str, recipe: RecipeSchema) -> tuple[str, ...]:
    """Keys of a stage's Spec that are no ingredients: they say only where something lies, whose content is one, or
    how a result is computed that does not depend on it."""
    if stage == "data":
        return tuple(f"source.{key}" for key in recipe.data.source.location_keys)
    if stage == "train":
        return (*(f"train.{key}" for key in HOW), *_model_keys(recipe))
    return ()


def _model_keys(recipe: RecipeSchema) -> tuple[str, ...]:
    """The key that says where a model is that is not trained here; a reference to a registry is what it is."""
    if isinstance(recipe.model, OnnxModel):
        return ("model.path",)
    return ("model.reference",) if isinstance(recipe.model, ImportedBundle) and recipe.model.path else ()


def origins(ingredients: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """A digest per stage of its ingredients and those of all that it depends on: known before anything ran, and the
    same afterwards. Stages come after their inputs."""
    chain: dict[str, str] = {}
    for stage, own in ingredients.items():
        inputs = {f"input:{name}": chain[name] for name in STAGE_INPUTS[stage]}
        chain[stage] = fingerprint(stage, {**own, **inputs})
    return chain


def input_files(loaded: LoadedRecipe) -> list[Path]:
    """The data files, the user code and the plugins that a recipe's stages read."""
    recipe, folder = loaded.recipe, loaded.folder
    source = recipe.data.source
    references = list(source.code_references())
    references += _training_code(recipe)
    references += [reference for check in file_checks(recipe) for reference in check.code_references()]
    code = [folder / name for reference in references for name in usercode.source_closure(reference, folder).files]
    for plugin in used_plugins(recipe):
        site, closure = usercode.installed_closure(plugin.reference)
        code += [*(site / name for name in closure.files), *([plugin.registered] if plugin.registered else [])]
    rules = [folder / name for check in file_checks(recipe) for name in check.files()]
    return [*code, *rules, *resolve_source(source, folder).files, *_model_files(loaded)]


def _training_code(recipe: RecipeSchema) -> list[str]:
    """References of the model and of the transformers of its columns."""
    if isinstance(recipe.model, IMPORTED):
        return []
    return [recipe.model.module, *(transform.module for transform in recipe.preprocess.transforms)]


def file_checks(recipe: RecipeSchema) -> list[FileCheck]:
    """The data checks whose rules stand in files."""
    return [check for check in recipe.data.checks if isinstance(check, FileCheck)]


def recipe_key(stage: str, key: str) -> str:
    """The recipe key of a key of a stage's Spec.

    >>> recipe_key("data", "split.test"), recipe_key("train", "train.epochs")
    ('data.split.test', 'train.epochs')
    """
    return f"data.{key}" if stage in ("data", "validate") and key != "task" else key


def flatten(value: Json, prefix: str = "") -> dict[str, Json]:
    """Flatten nested mappings and lists to dotted keys; empty ones are leaves.

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
    """File digests, cached in the journal with each file's stat."""

    journal: Journal
    _stored: dict[str, tuple[str, str]] = field(default_factory=dict)
    _new: dict[str, tuple[str, str]] = field(default_factory=dict)

    def look_up(self, paths: Sequence[Path]) -> dict[Path, str]:
        """SHA-256 of each file. Raises DataError when one cannot be read."""
        missing = [str(path) for path in paths if str(path) not in self._stored]
        self._stored.update(self.journal.file_digests(missing) if missing else {})
        return {path: self._digest(path) for path in paths}

    def save(self) -> None:
        """Store new digests in the journal."""
        self.journal.save_file_digests(self._new)
        self._new = {}

    def _digest(self, path: Path) -> str:
        try:
            stat = stat_text(path)
            stored = self._stored.get(str(path))
            if stored is not None and stored[0] == stat:
                return stored[1]
            started = time.time_ns()
            digest = digest_file(path)
            settled = started - max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) > RECENT_NS
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}", hint=f"ls -l {shell_word(path)}") from error
        self._stored[str(path)] = (stat, digest)
        if settled:
            self._new[str(path)] = (stat, digest)
        return digest


def stat_text(path: Path) -> str:
    """Size, times of change and inode: equal text means an unchanged file."""
    stat = os.stat(path)
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"


def _snapshot_ingredients(snapshot: DataSnapshot) -> dict[str, str]:
    """The content of remote data: its tree, not the commit that it is read at, and each object where they are few."""
    objects = snapshot.objects if len(snapshot.objects) <= MAX_OBJECTS else ()
    return {"content:tree": snapshot.tree, **{f"content:{item.path}": item.digest for item in objects}}


def _spec_ingredients(spec: Section, left_out: Sequence[str]) -> dict[str, str]:
    plain = spec.model_dump(mode="json")
    for section, _, key in (name.partition(".") for name in left_out):
        del plain[section][key]
    leaves = {f"spec:{key}": codec.dumps(value) for key, value in flatten(plain).items()}
    return {"spec": digest_json(plain), **leaves}


def _environment_ingredients(stage: str, loaded: LoadedRecipe, digests: FileDigests) -> dict[str, str]:
    recipe = loaded.recipe
    ingredients: dict[str, str] = {}
    if stage in SEEDED and not _draws_nothing(stage, recipe):
        ingredients["seed"] = str(recipe.seed)
    if stage == "data":
        ingredients |= _source_ingredients(loaded, digests)
    if stage == "validate":
        ingredients |= _rules_ingredients(loaded, digests)
    if stage == "train" and not isinstance(recipe.model, IMPORTED):
        for reference in _training_code(recipe):
            ingredients |= _code_ingredients(reference, loaded.folder, digests)
    elif stage == "train":
        files = digests.look_up(_model_files(loaded))
        first = next(iter(files), loaded.folder)
        ingredients |= {f"content:{_relative(path, first.parent)}": digest for path, digest in files.items()}
    if stage == "optimize":
        ingredients["machine"] = machine.describe_machine()
    return ingredients


def _rules_ingredients(loaded: LoadedRecipe, digests: FileDigests) -> dict[str, str]:
    """Files and code of the data checks whose rules stand in files."""
    ingredients: dict[str, str] = {}
    for check in file_checks(loaded.recipe):
        for reference in check.code_references():
            ingredients |= _code_ingredients(reference, loaded.folder, digests)
        files = digests.look_up([loaded.folder / name for name in check.files()])
        ingredients |= {f"content:{name}": files[loaded.folder / name] for name in check.files()}
    return ingredients


def _draws_nothing(stage: str, recipe: RecipeSchema) -> bool:
    """Whether a stage of SEEDED draws no random numbers with this recipe."""
    if stage == "validate":  # draws the sample that the next version is compared with
        return all(check.kind != "drift" for check in recipe.data.checks)
    return stage == "data" and recipe.data.split.kind == "time"


def _model_files(loaded: LoadedRecipe) -> list[Path]:
    """The imported graph of a recipe and its external data files; the manifest of a bundle, which has the digests of
    all its files; nothing for a bundle in a registry, whose reference names one version. Raises EngineError for an
    invalid graph."""
    model = loaded.recipe.model
    if isinstance(model, ImportedBundle):
        folder = loaded.folder / model.path
        inner = folder / "bundle" / MANIFEST
        return [inner if inner.is_file() else folder / MANIFEST] if model.path else []
    if not isinstance(model, OnnxModel):
        return []
    path = loaded.folder / model.path
    return [path, *external_files(path)]


def _source_ingredients(loaded: LoadedRecipe, digests: FileDigests) -> dict[str, str]:
    source = loaded.recipe.data.source
    ingredients: dict[str, str] = {}
    for reference in source.code_references():
        ingredients |= _code_ingredients(reference, loaded.folder, digests)
    content = resolve_source(source, loaded.folder)
    ingredients |= {f"content:{name}": version for name, version in content.versions.items()}
    contents = digests.look_up(content.files)
    names = content_names(content, loaded.folder)
    return ingredients | {f"content:{name}": contents[path] for name, path in names.items()}


def _plugin_ingredients(spec: Section, digests: FileDigests) -> dict[str, str]:
    """Code, libraries and distributions of the plugins that a stage's Spec names."""
    ingredients: dict[str, str] = {}
    for plugin in used_plugins(spec):
        ingredients |= _closure_ingredients(*usercode.installed_closure(plugin.reference), digests)
        ingredients[f"library:{plugin.distribution}"] = plugin.version
    return ingredients


def _code_ingredients(reference: str, folder: Path, digests: FileDigests) -> dict[str, str]:
    return _closure_ingredients(folder, usercode.source_closure(reference, folder), digests)


def _closure_ingredients(folder: Path, closure: usercode.SourceClosure, digests: FileDigests) -> dict[str, str]:
    files = digests.look_up([folder / name for name in closure.files])
    return {
        **{f"code:{_relative(path, folder)}": digest for path, digest in files.items()},
        **{f"library:{name}": version for name, version in closure.distributions if name not in IRRELEVANT},
    }


def _own_ingredients(roots: Sequence[str], digests: FileDigests) -> dict[str, str]:
    modules = own_modules(roots)
    files = digests.look_up(list(modules.values()))
    ingredients = {f"own:{name}": files[path] for name, path in modules.items()}
    installed = usercode.installed()
    for library in sorted({name for path in modules.values() for name in read_imports(path).libraries}):
        distribution = usercode.ALIASES.get(library, library)
        for candidate in (distribution, f"{distribution}_gpu"):
            if candidate in installed and candidate not in IRRELEVANT:
                ingredients[f"library:{candidate.replace('_', '-')}"] = installed[candidate]
    return ingredients | {"library:python": platform.python_version().rpartition(".")[0]}


def _root_modules(stage: str, recipe: RecipeSchema) -> list[str]:
    """The stage's module and the adapters of its ports; a port of several kinds has those that the recipe selects."""
    model = recipe.model
    kinds: dict[str, list[str]] = {"trainer": [model.kind], "runtime": ["ort"]}
    kinds["checker"] = ["", *sorted({check.kind for check in file_checks(recipe)})]
    kinds |= {"engines": _engine_kinds(recipe), "search": _search_kinds(recipe)}
    adapters = adapter_modules()
    factories = [f"{port}_{kind}" if kind else port for port in stage_ports(stage) for kind in kinds.get(port, [""])]
    roots = [f"stages.{stage}", *(module for factory in factories for module in adapters[factory])]
    if stage == "data" and isinstance(recipe.data.source, RemoteSource):
        roots.append(type(recipe.data.source).__module__.removeprefix("mlflowkit."))
    if stage == "train" and not isinstance(model, IMPORTED) and model.module.startswith("mlflowkit."):
        roots.append(model.module.partition(":")[0].removeprefix("mlflowkit."))
    return roots


def _engine_kinds(recipe: RecipeSchema) -> list[str]:
    plan = search_plan(recipe.optimize)
    runtimes = {candidate.engine.runtime for candidate in (*plan.listed, *plan.space)}
    return ["ort", *(kind for kind in ("tensorrt", "torch") if any(name.startswith(kind) for name in runtimes))]


def _search_kinds(recipe: RecipeSchema) -> list[str]:
    space = search_plan(recipe.optimize).space
    return ["optuna"] if space and method_of(recipe.optimize.search, len(space)) == "optuna" else []


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
