"""Plans a run: ordered steps, each with the reason why it runs or is reused.

`decide` is pure; `build_plan` collects the ingredients once, then decides stage by stage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mlflowkit.errors import UsageError, closest_match
from mlflowkit.pipeline.fingerprint import FileDigests, collect_ingredients, fingerprint, recipe_key
from mlflowkit.pipeline.lineage.data_snapshot import data_snapshot
from mlflowkit.ports import Journal, ObjectStore, StatePorts
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.system.text import join_words, truncate
from mlflowkit.values import STAGE_INPUTS, STAGES, DataSnapshot, ServiceStatus, Step, StepResult

ServiceQuery = Callable[[], Sequence[ServiceStatus]]
Action = Literal["run", "reuse"]

MAX_CHANGES = 3
"""Changes that a reason names."""
KINDS = ("spec", "seed", "content", "code", "library", "champion", "machine", "own", "input")
"""Kinds of ingredients, in the order in which a reason names their changes."""


@dataclass(frozen=True, slots=True)
class ChampionState:
    """The bundle that gates compare with: identity and digest of its package folder, "" for none.

    Where a pipeline judges (``in_pipeline``), gates that compare with it are INCONCLUSIVE when there is none, unless
    somebody said that this is the ``first_version``; else they pass, since it has nothing to be worse than.
    """

    identity: str = ""
    digest: str = ""
    in_pipeline: bool = False
    first_version: bool = False

    @property
    def ingredient(self) -> str:
        """What of it the result of the evaluation depends on."""
        none = "first version" if self.first_version else "none"
        return f"{self.identity or none} in a pipeline" if self.in_pipeline else self.identity


@dataclass(frozen=True, slots=True)
class PriorResults:
    """Earlier results of a stage in the journal and the store."""

    result: StepResult | None = None
    """The result of exactly this fingerprint."""
    last: StepResult | None = None
    """The newest result of this stage of this recipe."""
    intact: bool = True
    """Whether the folder of ``result`` is complete."""


@dataclass(frozen=True, slots=True)
class ExecutionPlan:
    """Ordered steps, the results to reuse, and the champion that gates compare with."""

    steps: tuple[Step, ...]
    results: Mapping[str, StepResult]
    champion: ChampionState
    snapshot: DataSnapshot | None = None
    """The version of the recipe's remote data; None where it is local."""

    @property
    def done(self) -> bool:
        """Whether there is nothing to run."""
        return all(step.action == "reuse" for step in self.steps)


def plan_steps(
    loaded: LoadedRecipe,
    storage: StatePorts,
    *,
    until: str | None = None,
    force: Sequence[str] = (),
    services: ServiceQuery | None = None,
) -> tuple[Step, ...]:
    """The steps of `preview`."""
    return preview(loaded, storage, until=until, force=force, services=services).steps


def preview(
    loaded: LoadedRecipe,
    storage: StatePorts,
    *,
    until: str | None = None,
    force: Sequence[str] = (),
    services: ServiceQuery | None = None,
) -> ExecutionPlan:
    """The plan of a run now. Does not create a journal.

    ``services`` lists the running services (a Platform's ``status``); without it none is considered running.
    """
    with storage.open_journal(create=False) as journal:
        return build_plan(loaded, journal, storage.objects, until=until, force=force, services=services)


def build_plan(
    loaded: LoadedRecipe,
    journal: Journal,
    store: ObjectStore,
    *,
    until: str | None = None,
    force: Sequence[str] = (),
    services: ServiceQuery | None = None,
    champion: ChampionState | None = None,
) -> ExecutionPlan:
    """Plan a run. ``champion`` is compared with instead of the journal's.

    Raises UsageError for an unknown stage, DataError and UserCodeError for unreadable data or code.
    """
    stages = _select_stages(loaded, until, force)
    digests = FileDigests(journal)
    snapshot = data_snapshot(loaded, journal.state)
    ingredients = collect_ingredients(loaded, digests, snapshot)
    digests.save()
    planner = _Planner(loaded, journal, store, services, frozenset(force), champion)
    for stage in stages:
        planner.add(stage, ingredients[stage])
    return ExecutionPlan(tuple(planner.steps.values()), planner.results, planner.champion, snapshot)


def decide(
    stage: str,
    ingredients: Mapping[str, str],
    prior: PriorResults,
    *,
    forced: bool = False,
    stale: Sequence[str] = (),
    inputs: Mapping[str, str] | None = None,
) -> tuple[Action, str]:
    """Decide whether a stage runs, and why. ``stale`` are the inputs that run, ``inputs`` the digests of the others.

    >>> decide("data", {"seed": "7"}, PriorResults())
    ('run', 'first run')
    """
    if forced:
        return "run", "--force"
    if prior.last is None:
        return "run", "first run"
    result = prior.result
    if result is None or stale:
        return "run", _stale_reason(stage, ingredients, prior.last, stale)
    if not prior.intact:
        return "run", "its published folder is missing or was altered"
    if result.result.remeasure:
        return "run", "its latency evidence was inconclusive"
    remade = [name for name, digest in (inputs or {}).items() if result.inputs.get(name) != digest]
    if remade:
        return "run", f"{join_words(remade)} {_verb(remade, 'was', 'were')} made anew"
    return "reuse", f"unchanged since run {result.run}"


def describe_changes(stage: str, before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Describe the differences between two sets of ingredients, inputs excluded.

    >>> describe_changes("train", {"spec:train.epochs": "20", "seed": "7"}, {"spec:train.epochs": "30", "seed": "8"})
    ['train.epochs 20 -> 30', 'seed 7 -> 8']
    >>> describe_changes("data", {"spec:decimal": "null"}, {"spec:decimal.price": ","})
    ['data.decimal.price added']
    """
    descriptions: list[str] = []
    own_modules = 0
    for name in sorted(set(before) | set(now), key=lambda name: (KINDS.index(name.partition(":")[0]), name)):
        old, new = before.get(name), now.get(name)
        kind, _, rest = name.partition(":")
        if old == new or name == "spec" or kind == "input" or _is_spelled_out(name, now if new is None else before):
            continue
        if kind == "own":
            own_modules += 1
            continue
        descriptions.append(_describe_change(stage, kind, rest, old, new))
    if own_modules:
        descriptions.append(f"mlflowkit's own code changed ({own_modules} module{'s' if own_modules > 1 else ''})")
    return descriptions


@dataclass
class _Planner:
    """A plan under construction."""

    loaded: LoadedRecipe
    journal: Journal
    store: ObjectStore
    services: ServiceQuery | None
    force: frozenset[str]
    given: ChampionState | None = None
    """The champion to compare with, instead of the journal's."""
    steps: dict[str, Step] = field(default_factory=dict)
    results: dict[str, StepResult] = field(default_factory=dict)
    champion: ChampionState = field(default_factory=ChampionState)

    @property
    def name(self) -> str:
        return self.loaded.recipe.name

    def add(self, stage: str, own: Mapping[str, str]) -> None:
        """Add the next stage, given its ingredients without inputs and champion."""
        ingredients = dict(own)
        for name in STAGE_INPUTS[stage]:
            ingredients[f"input:{name}"] = self.steps[name].fingerprint
        if stage == "evaluate":
            optimize = self.steps["optimize"].fingerprint
            self.champion = self.given or evaluation_champion(self.journal, self.name, optimize)
            ingredients["champion"] = self.champion.ingredient
        key = fingerprint(stage, ingredients)
        result = self.journal.result(key)
        intact = result is not None and self.store.intact(result.published)
        prior = PriorResults(result, self.journal.latest(self.name, stage), intact)
        stale = [name for name in STAGE_INPUTS[stage] if self.steps[name].action == "run"]
        inputs = {name: self.results[name].published.digest for name in STAGE_INPUTS[stage] if name not in stale}
        action, reason = decide(stage, ingredients, prior, forced=stage in self.force, stale=stale, inputs=inputs)
        if stage == "deploy" and action == "reuse":
            action, reason = self._check_deployment(json.loads(ingredients["spec:serve.service"]), reason)
        self.steps[stage] = Step(stage, action, reason, key, ingredients)
        if action == "reuse" and result is not None:
            self.results[stage] = result

    def _check_deployment(self, service: str, reason: str) -> tuple[Action, str]:
        identity = bundle_identity(self.store.path(self.results["package"].published.digest))
        if problem := deploy_problem(self.journal, self.services, self.name, service, identity):
            return "run", problem
        status = rollout_status(self.journal.state, service, identity)
        if not status and (problem := monitor_problem(self.journal.state, self.loaded)):
            return "run", problem
        return "reuse", status or reason


def monitor_problem(state: Path, loaded: LoadedRecipe) -> str:
    """Why the recipe's monitor and retrain sections must be deployed: the service goes by others. "" if it does not."""
    from mlflowkit.monitoring import monitor_settings
    from mlflowkit.service_state.records import ServiceFiles

    recipe = loaded.recipe
    if recipe.serve is None:
        return ""
    settings = monitor_settings.deployed_settings(
        recipe.name, recipe.monitor, recipe.retrain, loaded.path, loaded.overrides
    )
    files = ServiceFiles(state / "services" / recipe.serve.service)
    return (
        ""
        if monitor_settings.are_current(files, settings)
        else f"service {recipe.serve.service} is monitored by other settings"
    )


def evaluation_champion(journal: Journal, name: str, optimize: str) -> ChampionState:
    """The champion that gates compare the graph of the fingerprint ``optimize`` with.

    The recipe's champion; or, if that came from this graph, the champion it was compared with itself, so that running
    a recipe again changes nothing.
    """
    alias = journal.alias(name, "champion")
    if alias is None:
        return ChampionState()
    if alias.optimize == optimize:
        return ChampionState(alias.judged_identity, alias.judged_digest)
    return ChampionState(alias.identity, alias.digest)


def deploy_problem(journal: Journal, services: ServiceQuery | None, name: str, service: str, identity: str) -> str:
    """Why this version must be deployed: it is not the service's champion. "" when it is, or has a `rollout_status`."""
    statuses = services() if services is not None else ()
    status = next((status for status in statuses if status.service == service), None)
    if status is None:
        return f"service {service} is not running"
    if not status.ready:
        return f"service {service} is not ready"
    champion = next((variant for variant in status.variants if variant.role == "champion"), None)
    if champion is None or champion.digest != identity:
        known = rollout_status(journal.state, service, identity)
        return "" if known else f"service {service} answers with another version"
    alias = journal.alias(name, "champion")
    if alias is None or alias.identity != identity:
        return "the champion alias names another version"
    return ""


def rollout_status(state: Path, service: str, identity: str) -> str:
    """The state of the rollout of a version that is not the champion; "" when it never had one.

    A run does not deploy such a version again: it is in rollout, stays as a shadow, or was rejected and is blocked
    until ``mlkit rollout forget``.
    """
    from mlflowkit.rollout import commands, policy
    from mlflowkit.service_state import version_history
    from mlflowkit.service_state.records import ServiceFiles

    files = ServiceFiles(state / "services" / service)
    running = commands.running_rollout(files)
    if running is not None and running.candidate.digest == identity:
        return f"its rollout runs ({policy.describe(running)})"
    failed = version_history.rejections(files).get(identity)
    if failed is not None:
        ending = "rolled back" if failed.ending == "rolled_back" else "aborted"
        return (
            f"it was {ending}: {failed.reason}; mlkit rollout forget {service} {failed.version} lets it be tried again"
        )
    table = files.table()
    if table is not None and any(variant.role == "shadow" and variant.digest == identity for variant in table.variants):
        return "it stays as a shadow"
    return ""


def bundle_identity(folder: Path) -> str:
    """Identity of the bundle in a package stage's folder, from its manifest."""
    return str(json.loads((folder / "bundle" / "manifest.json").read_bytes())["identity"])


def _select_stages(loaded: LoadedRecipe, until: str | None, force: Sequence[str]) -> tuple[str, ...]:
    stages = STAGES if loaded.recipe.serve is not None else STAGES[:-1]
    for stage in (*force, *((until,) if until else ())):
        if stage == "deploy" and stage not in stages:
            hint = "add serve: {service: …}"
            raise UsageError("the recipe has no serve section: there is nothing to deploy", hint=hint)
        if stage not in stages:
            near = closest_match(stage, stages)
            hint = f"did you mean {near}?" if near else f"the stages are {', '.join(stages)}"
            raise UsageError(f"no stage {stage!r}", hint=hint)
    chosen = stages[: stages.index(until) + 1] if until else stages
    late = [stage for stage in force if stage not in chosen]
    if late:
        raise UsageError(f"--force {late[0]} comes after --until {until}", hint=f"--until {late[0]}")
    return chosen


def _stale_reason(stage: str, ingredients: Mapping[str, str], last: StepResult, stale: Sequence[str]) -> str:
    reasons = describe_changes(stage, last.ingredients, ingredients)
    if len(reasons) > MAX_CHANGES:
        reasons = [*reasons[:MAX_CHANGES], f"and {len(reasons) - MAX_CHANGES} more"]
    if stale:
        reasons.append(f"{join_words(stale)} {_verb(stale, 'is', 'are')} stale")
    keys = {name: f"input:{name}" for name in STAGE_INPUTS[stage]}
    changed = [name for name, key in keys.items() if last.ingredients.get(key) != ingredients[key]]
    if not reasons and changed:
        reasons.append(f"{join_words(changed)} changed")
    return ", ".join(reasons) or "no result is kept"


def _describe_change(stage: str, kind: str, rest: str, old: str | None, new: str | None) -> str:
    change = "added" if old is None else "removed" if new is None else "changed"
    if kind == "spec":
        key = recipe_key(stage, rest)
        return f"{key} {_short(old)} -> {_short(new)}" if change == "changed" else f"{key} {change}"
    if kind == "content":
        return f"{'model' if stage == 'train' else 'data.source'}: {rest} {change}"
    if kind == "code":
        return f"code: {rest} {change}"
    if kind == "library":
        return f"library {rest} {old or 'absent'} -> {new or 'absent'}"
    if kind == "champion":
        return f"the champion is another: {(old or 'none')[:12]} -> {(new or 'none')[:12]}"
    return f"{kind} {_short(old)} -> {_short(new)}"


def _is_spelled_out(name: str, others: Mapping[str, str]) -> bool:
    """Whether the other side has keys below this one: a value became a section, which is what is described."""
    return name not in others and any(other.startswith((f"{name}.", f"{name}[")) for other in others)


def _short(text: str | None) -> str:
    return truncate("nothing" if text is None else text)


def _verb(names: Sequence[str], singular: str, plural: str) -> str:
    return singular if len(names) == 1 else plural
