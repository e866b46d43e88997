"""mlkit retrain: what the retraining policy decides for a service, by which inputs, and a run on request."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, note, print_result, state_folder
from mlflowkit.cli.service_lookup import find_service
from mlflowkit.errors import MlkitError, UsageError
from mlflowkit.system.text import shell_word
from mlflowkit.values import Json

if TYPE_CHECKING:
    from mlflowkit.monitoring.monitor_settings import MonitorSettings
    from mlflowkit.monitoring.retrain.episodes import Episode
    from mlflowkit.monitoring.retrain.retrain_policy import DataFacts, RetrainDecision, RetrainFacts, RetrainTerms
    from mlflowkit.service_state.records import ServiceFiles

REPLY_SECONDS = 60.0
"""Timeout of the monitor's reply; a killed controller is restarted within it."""
POLL_SECONDS = 0.2
UNDECIDED = 4
"""Exit code where nothing is trained."""
ServiceArgument = Annotated[
    str | None, typer.Argument(metavar="[SERVICE]", help="The service; optional if there is only one.")
]


@app.command()
def retrain(
    service: ServiceArgument = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the decision, its inputs and what would run; start nothing.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the version is promoted or turned down.")] = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Ask for a retraining of a service now, without regard to cooldown, budget and alarms of drift.

    The data are looked at first: nothing is trained on the champion's data, nor on rows that are broken upstream.
    """
    files = find_service(state_folder(state), service)
    settings = _settings(files)
    if dry_run:
        preview = preview_retrain(files, settings)
        print_result(preview.to_json(), "\n".join(preview.lines()), json)
        return 0
    episode = _await_episode(files, _request_run(files), wait, quiet=json)
    run = episode.runs[-1] if episode.runs else None
    value = {
        "service": files.service, "episode": episode.id, "decision": episode.decision, "reason": episode.reason,
        "outcome": None if run is None else run.outcome, "message": None if run is None else run.message,
    }  # fmt: skip
    if json:
        emit_json(value)
    elif run is None:
        echo(f"{files.service}: {episode.decision}: {episode.reason}")
    else:
        echo(f"{files.service}: the run is {run.outcome}{f': {run.message}' if run.message else ''}")
    if run is None:
        return UNDECIDED
    return {"rejected": 1, "failed": 3}.get(run.outcome, 0)


@dataclass(frozen=True, slots=True)
class RetrainPreview:
    """The decision as the monitor would make it now, without looking at data that changed."""

    facts: RetrainFacts
    terms: RetrainTerms
    decision: RetrainDecision
    command: str
    data: str
    monitored: bool

    def to_json(self) -> dict[str, Json]:
        """The JSON of the command, whose keys are stable."""
        return {
            "service": self.facts.service,
            "decision": asdict(self.decision),
            "command": self.command,
            "data": self.data,
            "monitored": self.monitored,
            "facts": asdict(self.facts),
            "terms": asdict(self.terms),
        }

    def lines(self) -> Sequence[str]:
        """The decision and each input for a terminal."""
        from mlflowkit.monitoring.retrain import retrain_policy

        facts, terms = self.facts, self.terms
        alarms = [
            f"{alarm.kind} of {alarm.column or 'the requests'}" + _share(alarm.importance) for alarm in facts.alarms
        ]
        performance = [f"{item.kind} {item.metric} {item.outcome} {item.trust}" for item in facts.performance]
        runs = [f"{run.status} {run.age / 3600:.1f} h ago" for run in facts.runs[-5:]]
        left = retrain_policy.budget_left(facts.runs, terms)
        rows = [
            ("decision", f"{self.decision.kind}: {self.decision.reason}"),
            ("cause", self.decision.cause or "nothing asks for a new model"),
            ("champion", f"version {facts.version}, data version {facts.data.champion[:12] or 'not known'}"),
            ("data", self.data),
            ("alarms", "; ".join(alarms) or "none"),
            ("performance", "; ".join(performance) or "not judged"),
            ("under way", facts.under_way or "nothing"),
            ("probation", f"{facts.probation}: {facts.probation_message}" if facts.probation else "none"),
            ("runs", "; ".join(runs) or "none"),
            ("budget", f"{left} of {terms.budget_runs} left; cooldown {terms.cooldown / 3600:g} h"),
            ("episode", facts.episode or "none"),
            ("would run", self.command),
        ]
        unmonitored = [] if self.monitored else ["the monitor has judged no window of this version yet"]
        return [f"{name:<12} {text}" for name, text in rows] + unmonitored


def preview_retrain(files: ServiceFiles, settings: MonitorSettings) -> RetrainPreview:
    """The decision that the policy makes by what is on record, and by a plan of the data stage."""
    from mlflowkit.monitoring.monitor_view import MonitorView, read_view
    from mlflowkit.monitoring.retrain import retrain_inputs, retrain_policy
    from mlflowkit.monitoring.retrain.retrain_driver import RetrainDeps, RetrainDriver, RetrainPlan
    from mlflowkit.monitoring.retrain.runner import ProcessLauncher
    from mlflowkit.pipeline.storage.running_runs import describe_running_run
    from mlflowkit.wiring import Wiring

    assert settings.retrain is not None
    table, view = files.table(), read_view(files)
    if table is None:
        raise UsageError(f"{files.service} serves nothing yet", hint="mlkit run RECIPE")
    champion = table.champion
    terms = retrain_inputs.terms_of(settings.retrain)
    overrides = retrain_inputs.merged_overrides(settings.overrides, settings.retrain.overrides)
    driver = RetrainDriver(
        files, RetrainPlan(terms, settings.recipe, overrides),
        RetrainDeps(ProcessLauncher(), runs=lambda: describe_running_run(Wiring(files.state), settings.name)),
    )  # fmt: skip
    shown = view or MonitorView(files.service, champion.version, "LEARNING", 0.0)
    facts = driver.facts(retrain_inputs.situation_of(shown, champion))
    planned, text = _planned_data(files, settings.recipe, overrides, facts.data)
    facts = replace(facts, data=planned)
    command = " ".join(map(shell_word, ["mlkit", "run", settings.recipe, *overrides, "--state", str(files.state)]))
    monitored = view is not None and view.version == champion.version and bool(view.windows)
    return RetrainPreview(facts, terms, retrain_policy.decide_retrain(facts, terms), command, text, monitored)


def _planned_data(
    files: ServiceFiles, recipe: str, overrides: Sequence[str], known: DataFacts
) -> tuple[DataFacts, str]:
    """The data version by a plan, which reads no data: known where the data stage has been run on what is there now."""
    from mlflowkit.pipeline.plan import preview
    from mlflowkit.recipe.check import load
    from mlflowkit.stages.base import read_table_info
    from mlflowkit.wiring import Wiring

    wiring = Wiring(files.state)
    try:
        planned = preview(load(Path(recipe), tuple(overrides)), wiring, until="data")
    except MlkitError as error:
        problem = "; ".join(line.strip() for line in error.message.splitlines())
        return replace(known, problem=problem), problem
    step = planned.steps[0]
    result = planned.results.get("data")
    if step.action == "run" or result is None:
        return known, f"changed: {step.reason}; looked at before anything is trained"
    version = read_table_info(wiring.objects.path(result.published.digest)).data_version
    same = version == known.champion
    return replace(known, version=version), f"version {version[:12]}, {'the' if same else 'not the'} champion's"


def _settings(files: ServiceFiles) -> MonitorSettings:
    """The settings of a service that is retrained. Raises UsageError for another one."""
    from mlflowkit.monitoring.monitor_settings import read_settings

    settings = read_settings(files)
    if settings is None or settings.retrain is None:
        lacks = "monitor" if settings is None else "retrain"
        raise UsageError(
            f"{files.service} is not retrained: the recipe that it was deployed from has no section {lacks}",
            hint=f"add {lacks}: to the recipe, then mlkit run RECIPE",
        )
    if not settings.recipe:
        raise UsageError(f"{files.service} was deployed without a recipe", hint="mlkit run RECIPE")
    if not settings.written_in(files.state):
        raise UsageError(
            f"{files.service} is not retrained: {files.state} was copied or moved here, and a recipe is not run on the "
            "word of such a folder",
            hint=f"mlkit run {shell_word(settings.recipe)}",
        )
    return settings


def _request_run(files: ServiceFiles) -> str:
    """Ask the monitor for a retraining; returns the id of its episode. Raises ServiceError when it declines."""
    from mlflowkit.errors import ConflictError, ServiceError
    from mlflowkit.monitoring.retrain.retrain_driver import PERSON_REQUEST
    from mlflowkit.rollout import commands

    id = f"retrain-{time.time_ns():020d}-{secrets.token_hex(4)}"
    try:
        files.create_json(PERSON_REQUEST, {"id": id, "time": time.time()})
    except ConflictError as error:
        hint = f"mlkit retrain {files.service} --dry-run"
        raise ServiceError(f"a retraining of {files.service} is requested already", hint=hint) from error
    reply = commands.wait_for_reply(files, id, REPLY_SECONDS)
    if not reply.ok:
        raise ServiceError(reply.message, hint=reply.hint)
    return reply.message


def _await_episode(files: ServiceFiles, id: str, wait: bool, *, quiet: bool) -> Episode:
    """Wait until the run has begun or is refused; with ``wait`` until its version is promoted or turned down."""
    from mlflowkit.errors import ServiceError
    from mlflowkit.monitoring.retrain import episodes

    shown = ""
    while True:
        episode = episodes.read_episode(files, id)
        if episode is None:
            raise ServiceError(f"episode {id} of {files.service} is gone", hint="mlkit status")
        current = episode.current
        text = "the data are looked at" if current is not None and current.task == "look" else ""
        if current is None and episode.decision == "hold":
            text = f"waiting: {episode.reason}"
        if episode.runs:
            text = f"run {episode.runs[-1].number}: {episode.runs[-1].outcome}"
        if text and text != shown and not quiet:
            note(text)
        shown = text or shown
        if not episode.open or (episode.runs and not wait):
            return episode
        time.sleep(POLL_SECONDS)


def _share(importance: float | None) -> str:
    return "" if importance is None else f" ({importance:.0%} of the importance)"
