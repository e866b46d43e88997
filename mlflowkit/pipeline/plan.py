"""From a recipe, code, data and environment to ordered steps, each with the reason why it runs or is reused.

`decide` is pure; `make` reads the world once (`fingerprint.gather`), then decides stage by stage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mlflowkit.errors import UsageError, nearest
from mlflowkit.pipeline.fingerprint import FileDigests, fingerprint, gather, recipe_key
from mlflowkit.pipeline.journal import Journal, Result
from mlflowkit.pipeline.store import Store
from mlflowkit.recipe.schema import LoadedRecipe
from mlflowkit.values import STAGE_INPUTS, STAGES, ServiceStatus, Step

Services = Callable[[], Sequence[ServiceStatus]]
Action = Literal["run", "reuse"]

SHOWN = 3
"""How many changes a reason names."""


@dataclass(frozen=True, slots=True)
class Champion:
    """The bundle that evaluate judges against: identity and digest of its package folder, "" for none."""

    identity: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What the journal and the store know of a stage's fingerprint."""

    result: Result | None = None
    """Of exactly this fingerprint."""
    last: Result | None = None
    """The newest of this stage of this recipe."""
    intact: bool = True
    """Whether the result's folder is whole."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered steps, the results that are reused, and the champion that evaluate judges against."""

    steps: tuple[Step, ...]
    results: Mapping[str, Result]
    champion: Champion

    @property
    def done(self) -> bool:
        """Whether there is nothing to run."""
        return all(step.action == "reuse" for step in self.steps)


def make_plan(
    loaded: LoadedRecipe,
    state: Path,
    *,
    until: str | None = None,
    force: Sequence[str] = (),
    services: Services | None = None,
) -> tuple[Step, ...]:
    """The steps of a run of this recipe now. Writes nothing where there is no journal yet.

    ``services`` says what runs now (a Platform's ``status``); without it a deployed service counts as not running.
    """
    journal = Journal(state, create=False)
    try:
        return make(loaded, journal, Store(state), until=until, force=force, services=services).steps
    finally:
        journal.close()


def make(
    loaded: LoadedRecipe,
    journal: Journal,
    store: Store,
    *,
    until: str | None = None,
    force: Sequence[str] = (),
    services: Services | None = None,
) -> Plan:
    """As `make_plan`, with what a run needs besides the steps.

    Raises UsageError for a stage that the recipe has not, DataError and UserCodeError for what cannot be read.
    """
    stages = _stages(loaded, until, force)
    digests = FileDigests(journal)
    own = gather(loaded, digests)
    digests.save()
    planner = _Planner(loaded.recipe.name, journal, store, services, frozenset(force))
    for stage in stages:
        planner.add(stage, own[stage])
    return Plan(tuple(planner.steps.values()), planner.results, planner.champion)


def decide(
    stage: str,
    ingredients: Mapping[str, str],
    known: Known,
    *,
    forced: bool = False,
    stale: Sequence[str] = (),
    inputs: Mapping[str, str] | None = None,
) -> tuple[Action, str]:
    """("run" or "reuse", the reason). ``stale`` are inputs that run; ``inputs`` the digests of those that do not.

    >>> decide("data", {"seed": "7"}, Known())
    ('run', 'first run')
    """
    if forced:
        return "run", "--force"
    if known.last is None:
        return "run", "first run"
    result = known.result
    if result is None or stale:
        return "run", _why(stage, ingredients, known.last, stale)
    if not known.intact:
        return "run", "its published folder is missing or was altered"
    renewed = [name for name, digest in (inputs or {}).items() if result.inputs.get(name) != digest]
    if renewed:
        return "run", f"{_listed(renewed)} {_be(renewed, 'was', 'were')} made anew"
    return "reuse", f"unchanged since run {result.run}"


def changes(stage: str, before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two sets of ingredients, in words; inputs left out.

    >>> changes("train", {"spec:train.epochs": "20", "seed": "7"}, {"spec:train.epochs": "30", "seed": "8"})
    ['train.epochs 20 -> 30', 'seed 7 -> 8']
    """
    told: list[str] = []
    own = 0
    for name in sorted(set(before) | set(now), key=_rank):
        old, new = before.get(name), now.get(name)
        kind, _, rest = name.partition(":")
        if old == new or name == "spec" or kind == "input":
            continue
        if kind == "own":
            own += 1
            continue
        told.append(_change(stage, kind, rest, old, new))
    if own:
        told.append(f"mlflowkit's own code changed ({own} module{'s' if own > 1 else ''})")
    return told


# ------------------------------------------------------------------------------------------------------------- inside


@dataclass
class _Planner:
    name: str
    journal: Journal
    store: Store
    services: Services | None
    force: frozenset[str]
    steps: dict[str, Step] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    champion: Champion = field(default_factory=Champion)

    def add(self, stage: str, own: Mapping[str, str]) -> None:
        ingredients = dict(own)
        for name in STAGE_INPUTS[stage]:
            ingredients[f"input:{name}"] = self.steps[name].fingerprint
        if stage == "evaluate":
            self.champion = judged_against(self.journal, self.name, self.steps["optimize"].fingerprint)
            ingredients["champion"] = self.champion.identity
        mark = fingerprint(stage, ingredients)
        known = self._known(stage, mark)
        stale = [name for name in STAGE_INPUTS[stage] if self.steps[name].action == "run"]
        inputs = {name: self.results[name].published.digest for name in STAGE_INPUTS[stage] if name not in stale}
        action, reason = decide(stage, ingredients, known, forced=stage in self.force, stale=stale, inputs=inputs)
        self.steps[stage] = Step(stage, action, reason, mark, ingredients)
        if stage == "deploy" and action == "reuse":
            action, reason = self._deployed(reason)
            self.steps[stage] = Step(stage, action, reason, mark, ingredients)
        if action == "reuse" and known.result is not None:
            self.results[stage] = known.result

    def _known(self, stage: str, mark: str) -> Known:
        result = self.journal.result(mark)
        intact = result is not None and self.store.intact(result.published)
        return Known(result, self.journal.latest(self.name, stage), intact)

    def _deployed(self, reason: str) -> tuple[Action, str]:
        package = self.store.path(self.results["package"].published.digest)
        service = json.loads(self.steps["deploy"].ingredients["spec:serve.service"])
        problem = deploy_problem(self.journal, self.services, self.name, service, bundle_identity(package))
        if problem:
            return "run", problem
        return "reuse", rollout_of(self.journal.state, service, bundle_identity(package)) or reason


def judged_against(journal: Journal, name: str, optimize: str) -> Champion:
    """The champion that evaluate judges the graph of the fingerprint ``optimize`` against.

    It is the recipe's champion, unless that came from the same graph: then the one that *it* was judged against, so
    that a second run of a recipe finds the same question and the same answer.
    """
    alias = journal.alias(name, "champion")
    if alias is None:
        return Champion()
    if alias.optimize == optimize:
        return Champion(alias.judged_identity, alias.judged_digest)
    return Champion(alias.identity, alias.digest)


def deploy_problem(journal: Journal, services: Services | None, name: str, service: str, identity: str) -> str:
    """Why a service does not already answer with this version as its champion; "" when it does.

    Nor is anything wrong with a version whose rollout runs, or was turned down (see `rollout_of`).
    """
    statuses = services() if services is not None else ()
    found = next((status for status in statuses if status.service == service), None)
    if found is None:
        return f"service {service} is not running"
    if not found.ready:
        return f"service {service} is not ready"
    champion = next((variant for variant in found.variants if variant.role == "champion"), None)
    if champion is None or champion.digest != identity:
        return "" if rollout_of(journal.state, service, identity) else f"service {service} answers with another version"
    alias = journal.alias(name, "champion")
    if alias is None or alias.identity != identity:
        return "the champion alias names another version"
    return ""


def rollout_of(state: Path, service: str, identity: str) -> str:
    """What became of the rollout of a version that is not the champion, in words; "" when there was none.

    Such a version is not deployed again by a run: it is being rolled out, stays as a shadow, or was turned down, and
    then somebody has to say so (`mlkit rollout forget`).
    """
    from mlflowkit.rollout import commands, policy
    from mlflowkit.service_state import version_history
    from mlflowkit.service_state.records import ServiceFiles

    files = ServiceFiles(state / "services" / service)
    running = commands.running(files)
    if running is not None and running.candidate.digest == identity:
        return f"its rollout runs ({policy.where(running)})"
    failed = version_history.failures(files).get(identity)
    if failed is not None:
        how = "rolled back" if failed.ending == "rolled_back" else "aborted"
        return f"it was {how}: {failed.reason}; mlkit rollout forget {failed.version} lets it be tried again"
    table = files.table()
    if table is not None and any(one.role == "shadow" and one.digest == identity for one in table.variants):
        return "it stays as a shadow"
    return ""


def bundle_identity(folder: Path) -> str:
    """Identity of the bundle in a package stage's folder, as its manifest has it."""
    return str(json.loads((folder / "bundle" / "manifest.json").read_bytes())["identity"])


def _stages(loaded: LoadedRecipe, until: str | None, force: Sequence[str]) -> tuple[str, ...]:
    stages = STAGES if loaded.recipe.serve is not None else STAGES[:-1]
    for stage in (*force, *((until,) if until else ())):
        if stage not in stages:
            raise _no_stage(stage, stages)
    chosen = stages[: stages.index(until) + 1] if until else stages
    late = [stage for stage in force if stage not in chosen]
    if late:
        raise UsageError(f"--force {late[0]} comes after --until {until}", hint=f"--until {late[0]}")
    return chosen


def _no_stage(stage: str, stages: Sequence[str]) -> UsageError:
    if stage == "deploy":
        return UsageError("the recipe has no serve section: there is nothing to deploy", hint="add serve: {service: …}")
    near = nearest(stage, stages)
    hint = f"did you mean {near}?" if near else f"the stages are {', '.join(stages)}"
    return UsageError(f"no stage {stage!r}", hint=hint)


def _why(stage: str, ingredients: Mapping[str, str], last: Result, stale: Sequence[str]) -> str:
    told = changes(stage, last.ingredients, ingredients)
    if len(told) > SHOWN:
        told = [*told[:SHOWN], f"and {len(told) - SHOWN} more"]
    if stale:
        told.append(f"{_listed(stale)} {_be(stale, 'is', 'are')} stale")
    moved = [
        name for name in STAGE_INPUTS[stage] if last.ingredients.get(f"input:{name}") != ingredients[f"input:{name}"]
    ]
    if not told and moved:
        told.append(f"{_listed(moved)} changed")
    return ", ".join(told) or "no result is kept"


def _change(stage: str, kind: str, rest: str, old: str | None, new: str | None) -> str:
    fate = "added" if old is None else "removed" if new is None else "changed"
    if kind == "spec":
        key = recipe_key(stage, rest)
        return f"{key} {_short(old)} -> {_short(new)}" if fate == "changed" else f"{key} {fate}"
    if kind == "content":
        return f"{'model' if stage == 'train' else 'data.source'}: {rest} {fate}"
    if kind == "code":
        return f"code: {rest} {fate}"
    if kind == "library":
        return f"library {rest} {old or 'absent'} -> {new or 'absent'}"
    if kind == "champion":
        return f"the champion is another: {(old or 'none')[:12]} -> {(new or 'none')[:12]}"
    return f"{kind} {_short(old)} -> {_short(new)}"


def _rank(name: str) -> tuple[int, str]:
    order = ("spec", "seed", "content", "code", "library", "champion", "machine", "own", "input")
    return order.index(name.partition(":")[0]), name


def _short(text: str | None) -> str:
    shown = "nothing" if text is None else text
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _be(names: Sequence[str], one: str, many: str) -> str:
    return one if len(names) == 1 else many
