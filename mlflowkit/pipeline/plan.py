"""Plans a run: ordered steps, each with the reason why it runs or is reused.

`decide` is pure; `build_plan` collects the ingredients once, then decides stage by stage. A step counts by what its
inputs published, so one whose input runs is decided again after that (`StepPlanner.settle`), and is reused where the
content is the same as before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mlflowkit.errors import UsageError, closest_match
from mlflowkit.pipeline.change_reasons import be, change_reason, is_unchanged
from mlflowkit.pipeline.fingerprint import FileDigests, collect_ingredients, fingerprint, origins
from mlflowkit.pipeline.lineage.data_snapshot import commit_note, data_snapshot
from mlflowkit.ports import Journal, ObjectStore, StatePorts
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.system.text import join_words
from mlflowkit.values import STAGE_INPUTS, STAGES, DataSnapshot, ServiceStatus, Step, StepResult

ServiceQuery = Callable[[], Sequence[ServiceStatus]]
Action = Literal["run", "reuse"]


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
    """Whether the folder of ``result`` is complete; that of ``last`` where inputs are awaited."""


@dataclass(frozen=True, slots=True)
class StepDecision:
    """Whether a stage runs, and why; ``conditional`` if only where an input publishes another content than before."""

    action: Action
    reason: str
    conditional: bool = False


@dataclass(frozen=True, slots=True)
class ExecutionPlan:
    """Ordered steps, the results to reuse, and the champion that gates compare with."""

    steps: tuple[Step, ...]
    planner: StepPlanner
    """Decides the steps that await others, in the run."""
    snapshot: DataSnapshot | None = None
    """The version of the recipe's remote data; None where it is local."""

    @property
    def results(self) -> Mapping[str, StepResult]:
        return self.planner.results

    @property
    def champion(self) -> ChampionState:
        return self.planner.champion

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
    planner = StepPlanner(loaded, journal, store, services, frozenset(force), ingredients, champion)
    for stage in stages:
        planner.add(stage)
    if snapshot is not None and (last := planner.results.get("data") or journal.latest(planner.name, "data")):
        data = planner.steps["data"]
        note = commit_note(snapshot, last, journal, reused=data.action == "reuse")
        planner.steps["data"] = replace(data, reason=data.reason + note)
    return ExecutionPlan(tuple(planner.steps.values()), planner, snapshot)


def decide(
    stage: str,
    ingredients: Mapping[str, str],
    prior: PriorResults,
    *,
    forced: bool = False,
    awaits: Sequence[str] = (),
    remade: Sequence[str] = (),
) -> StepDecision:
    """Decide whether a stage runs, and why.

    Of the inputs, ``awaits`` are those that run first, so that their content is not among the ``ingredients`` yet, and
    ``remade`` those that ran.

    >>> decide("data", {"seed": "7"}, PriorResults()).reason
    'first run'
    """
    if forced:
        return StepDecision("run", "--force")
    if prior.last is None:
        return StepDecision("run", "first run")
    conditional = bool(awaits) and is_unchanged(prior.last, ingredients)
    result = prior.last if conditional else prior.result
    if result is None or (awaits and not conditional):
        return StepDecision("run", change_reason(stage, ingredients, prior.last, awaits))
    if not prior.intact:
        return StepDecision("run", "its published folder is missing or was altered")
    if result.result.remeasure:
        return StepDecision("run", "its latency evidence was inconclusive")
    if conditional:
        return StepDecision("run", change_reason(stage, ingredients, prior.last, awaits), conditional=True)
    if remade:
        return StepDecision("reuse", f"{join_words(remade)} {be(remade)} made anew with the same content")
    return StepDecision("reuse", f"unchanged since run {result.run}")


@dataclass
class StepPlanner:
    """Decides step by step. ``ingredients`` are those of each stage without inputs and champion."""

    loaded: LoadedRecipe
    journal: Journal
    store: ObjectStore
    services: ServiceQuery | None
    force: frozenset[str]
    ingredients: Mapping[str, Mapping[str, str]]
    given: ChampionState | None = None
    """The champion to compare with, instead of the journal's."""
    steps: dict[str, Step] = field(default_factory=dict)
    results: dict[str, StepResult] = field(default_factory=dict)
    champion: ChampionState = field(default_factory=ChampionState)
    origins: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.origins = origins(self.ingredients)

    @property
    def name(self) -> str:
        return self.loaded.recipe.name

    def add(self, stage: str) -> None:
        """Add the next stage. What an input that runs will publish is not known: the stage runs, or awaits that."""
        self._decide(stage, [name for name in STAGE_INPUTS[stage] if self.steps[name].action == "run"])

    def settle(self, stage: str, results: Mapping[str, StepResult], ran: Set[str]) -> Step:
        """Decide a stage again by what its inputs published; ``ran`` are the stages that this run executed."""
        self.results |= results
        return self._decide(stage, [], [name for name in STAGE_INPUTS[stage] if name in ran])

    def _decide(self, stage: str, awaits: Sequence[str], remade: Sequence[str] = ()) -> Step:
        ingredients = dict(self.ingredients[stage])
        for name in STAGE_INPUTS[stage]:
            known = name not in awaits
            ingredients[f"input:{name}"] = self.results[name].published.digest if known else f"of {self.origins[name]}"
        if stage == "evaluate" and "optimize" not in awaits:
            optimize = self.results["optimize"].fingerprint
            self.champion = self.given or evaluation_champion(self.journal, self.name, optimize)
            ingredients["champion"] = self.champion.ingredient
        last = self.journal.latest(self.name, stage)
        result = None if awaits else self._result(fingerprint(stage, ingredients), ingredients, last)
        earlier = last if awaits else result
        intact = earlier is not None and self.store.intact(earlier.published)
        prior = PriorResults(result, last, intact)
        decision = decide(stage, ingredients, prior, forced=stage in self.force, awaits=awaits, remade=remade)
        if stage == "deploy" and decision.action == "reuse":
            decision = self._check_deployment(json.loads(ingredients["spec:serve.service"]), decision)
        reused = result if decision.action == "reuse" else None
        key = fingerprint(stage, ingredients) if reused is None else reused.fingerprint
        step = Step(
            stage, decision.action, decision.reason, key, ingredients, self.origins[stage], tuple(awaits),
            decision.conditional,
        )  # fmt: skip
        self.steps[stage] = step
        if reused is not None:
            self.results[stage] = reused
        return step

    def _result(self, key: str, ingredients: Mapping[str, str], last: StepResult | None) -> StepResult | None:
        """The result of a fingerprint; or the last one, if an earlier version, which named inputs by fingerprint, made
        it from the same ingredients and content."""
        result = self.journal.result(key)
        if result is None and last is not None and is_unchanged(last, ingredients):
            inputs = {name: ingredients[f"input:{name}"] for name in STAGE_INPUTS[last.stage]}
            return last if dict(last.inputs) == inputs else None
        return result

    def _check_deployment(self, service: str, decision: StepDecision) -> StepDecision:
        identity = bundle_identity(self.store.path(self.results["package"].published.digest))
        if problem := deploy_problem(self.journal, self.services, self.name, service, identity):
            return StepDecision("run", problem)
        status = rollout_status(self.journal.state, service, identity)
        if not status and (problem := monitor_problem(self.journal.state, self.loaded)):
            return StepDecision("run", problem)
        return StepDecision("reuse", status or decision.reason)


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
