"""The recipe sections ``monitor`` and ``retrain``, and the record by which a service's monitor learns them.

The deploy stage writes ``services/<service>/monitor/settings.json`` (`MonitorSettings`); the monitor reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError

from mlflowkit.errors import ServiceError
from mlflowkit.sections import Section
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.files import folder_identity, make_folder
from mlflowkit.system.text import shell_word
from mlflowkit.values import Json

SETTINGS = "monitor/settings.json"
"""The record of a service that holds its `MonitorSettings`."""
DURATION = r"^[0-9]+(\.[0-9]+)?(s|m|h|d|w)$"
"""Durations in recipes: a number and its unit."""
PANE_SECONDS = 300.0
"""Longest pane of live counts; a longer window is a multiple of it."""
MIN_WINDOW, MAX_WINDOW = 5.0, 7 * 86_400.0
"""Shortest and longest window, in seconds."""
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}

Duration = Annotated[str, Field(pattern=DURATION)]
"""A duration such as 30s, 5m, 12h, 1d or 2w."""
Url = Annotated[str, Field(pattern=r"^https?://")]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
RollbackReason = Literal["performance"]
RetrainReason = Literal["performance", "drift"]
Share = Annotated[float, Field(gt=0, lt=1)]


def seconds_of(duration: str) -> float:
    """The seconds of a duration. Raises ValueError for a text that is none.

    >>> seconds_of("90s"), seconds_of("1.5h"), seconds_of("2w")
    (90.0, 5400.0, 1209600.0)
    """
    if not re.fullmatch(DURATION, duration):
        raise ValueError(f"{duration!r} is no duration, such as 30s, 5m, 12h or 1d")
    return float(duration[:-1]) * _UNITS[duration[-1]]


class LiveBaseline(Section):
    """The version's own first windows."""

    kind: Literal["live"]
    windows: int = Field(default=14, ge=1, le=400)
    """Windows that make the baseline; it is then fixed for as long as the version is champion."""


class TrainingBaseline(Section):
    """The training rows."""

    kind: Literal["training"]


class SeasonBaseline(Section):
    """The windows at the same time of earlier periods, such as the same weekday of the weeks before."""

    kind: Literal["season"]
    period: Duration = "7d"
    """Length of the season, a multiple of the window."""
    count: int = Field(default=4, ge=1, le=60)
    """Earlier periods that are compared with."""


BaselineKind = Literal["live", "training", "season"]
Baseline = Annotated[LiveBaseline | TrainingBaseline | SeasonBaseline, Field(discriminator="kind")]


class ColumnMonitor(Section):
    """How one column is judged, where it differs from the others."""

    margin: float | None = Field(default=None, ge=0, lt=1)
    """Largest distance from the baseline that is no harm; the monitor's by default."""
    missing: float | None = Field(default=None, ge=0, lt=1)
    """Largest share of missing values that is no harm, whatever the baseline's is."""
    new_values: float | None = Field(default=None, ge=0, lt=1)
    """Largest share of values that the training rows do not have."""


class PredictionMonitor(Section):
    """How the model's answers are judged."""

    margin: float = Field(default=0.05, ge=0, lt=1)
    """Largest distance of predictions from the baseline that is no harm."""


class OutlierMonitor(Section):
    """Rows unlike any of the training data."""

    kind: Literal["isolation_forest"]
    """The model that scores rows."""
    max_share: Share = 0.01
    """Largest share of outliers among live rows that is no harm."""


class EstimateLimits(Section):
    """Performance estimated without labels, from calibrated scores or from a model of the error."""

    metric: str = Field(min_length=1)
    """The metric of the task."""
    max_drop: float = Field(gt=0)
    """Largest acceptable loss against the test rows, in the metric's unit."""


class RealisedLimits(Section):
    """Performance on answers whose ground truth has arrived."""

    metric: str = Field(min_length=1)
    """The metric of the task."""
    min: float | None = None
    """Smallest acceptable value."""
    max: float | None = None
    """Largest acceptable value."""
    mature: Duration = "1d"
    """Age of an answer at which its label is expected to have come; younger answers are not judged."""
    min_labels: int = Field(default=300, ge=1)
    """Labels below which a period is not judged."""


class PerformanceMonitor(Section):
    """How good the answers are."""

    estimated: EstimateLimits | None = None
    """Without labels."""
    realised: RealisedLimits | None = None
    """By labels that clients send as feedback."""


class LatencyMonitor(Section):
    """Latency and errors, as an error budget that is used up at some rate."""

    p99_ms: float | None = Field(default=None, gt=0)
    """Latency that 99 % of the requests keep, in milliseconds."""
    error_rate: float | None = Field(default=None, gt=0, lt=1)
    """Share of requests that may fail."""
    budget: Duration = "30d"
    """Period in which these shares may be used up."""


class PerformanceRollback(Section):
    """Return to the former champion when the new one is shown to be worse."""

    probation: Duration = "7d"
    """Time after a promotion in which the former champion answers mirrored requests."""
    on: list[RollbackReason] = Field(default_factory=lambda: list(get_args(RollbackReason)), min_length=1)
    """What a rollback is decided by: paired evidence on the same rows."""


class AlertWebhook(Section):
    """A URL that receives alerts; the body has a ``text``, as Slack expects. Signed when there is a key."""

    url: Url | None = None
    """Where alerts are POSTed. It lies in the state folder: where it is itself a secret, give url_env instead."""
    url_env: EnvironmentName | None = None
    """Environment variable with the URL, set where services are started (mlkit up or run)."""
    secret_env: EnvironmentName | None = None
    """Environment variable with the signing key, set where services are started (mlkit up or run)."""


class Alerts(Section):
    """Receivers of alerts."""

    alertmanager: Url | None = None
    """URL of a Prometheus Alertmanager."""
    webhooks: list[AlertWebhook] = Field(default_factory=list, max_length=20)
    """URLs that receive one event when an alert begins and one when it is over."""


class WhylabsExport(Section):
    """Profiles written to WhyLabs."""

    dataset: str = Field(min_length=1)
    """The dataset's id, such as model-3."""
    key_env: EnvironmentName
    """Environment variable with the API key, set where services are started (mlkit up or run)."""


class MonitorExport(Section):
    """Copies of what is monitored for other tools."""

    evidently: Duration | None = None
    """Period of Evidently's report, on a sample of the prediction log."""
    whylabs: WhylabsExport | None = None
    """WhyLabs."""


ColumnInput = ColumnMonitor | Literal["ignore"]


def _expand_baseline(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


class MonitorSection(Section):
    """What is watched in live traffic, and with which margins."""

    window: Duration = "1d"
    """Length of a window, from 5s to 7d; above 5m a multiple of 5m. A window is one observation."""
    grace: Duration | None = None
    """Time after a window's end in which its last rows may still arrive; by default 5m, or the window if that is
    shorter."""
    min_rows: int = Field(default=300, ge=1)
    """Effective rows of a judged window; a window with fewer is joined with the next, up to 7."""
    baseline: Annotated[Baseline, BeforeValidator(_expand_baseline, json_schema_input_type=Baseline | BaselineKind)] = (
        LiveBaseline(kind="live")
    )
    """What windows are compared with."""
    level: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of false alarms among the alarms, over all columns and a version's whole life."""
    margin: float = Field(default=0.1, ge=0, lt=1)
    """Largest distance from the baseline that is no harm: Kolmogorov and Smirnov's for numbers, total variation for
    text."""
    sustained: int = Field(default=3, ge=2, le=50)
    """Windows at least before an alarm: none decides alone."""
    columns: dict[str, ColumnInput] = Field(default_factory=dict)
    """Columns with limits of their own, or ``ignore``."""
    importance: Literal["permutation", "none"] = "permutation"
    """How columns are weighted: by permutation importance on the test rows, or all alike."""
    segments: list[str] = Field(default_factory=list, max_length=5)
    """Categorical columns by whose values traffic is also judged in parts."""
    predictions: PredictionMonitor = Field(default_factory=PredictionMonitor)
    """The model's answers."""
    outliers: OutlierMonitor | None = None
    """Rows unlike any of the training data; not judged by default."""
    performance: PerformanceMonitor = Field(default_factory=PerformanceMonitor)
    """How good the answers are."""
    latency: LatencyMonitor | None = None
    """Latency and errors; not judged by default."""
    rollback: PerformanceRollback | None = None
    """When a promoted version is replaced by the one before it; never by default."""
    alerts: Alerts = Field(default_factory=Alerts)
    """Receivers of alerts."""
    export: MonitorExport = Field(default_factory=MonitorExport)
    """Copies for other tools."""

    @property
    def window_seconds(self) -> float:
        return seconds_of(self.window)

    @property
    def grace_seconds(self) -> float:
        return min(PANE_SECONDS, self.window_seconds) if self.grace is None else seconds_of(self.grace)

    @property
    def pane_seconds(self) -> float:
        """Length of the panes in which gateways count, of which a window is a multiple."""
        return min(PANE_SECONDS, self.window_seconds)

    def limits(self, column: str) -> ColumnMonitor | None:
        """The column's own limits, with the monitor's margin filled in; None for a column that is ignored.

        >>> section = MonitorSection(columns={"age": ColumnMonitor(missing=0.1), "id": "ignore"})
        >>> section.limits("age").margin, section.limits("id"), section.limits("pay").missing
        (0.1, None, None)
        """
        own = self.columns.get(column, ColumnMonitor())
        if not isinstance(own, ColumnMonitor):
            return None
        return own if own.margin is not None else own.model_copy(update={"margin": self.margin})


class RetrainBudget(Section):
    """How often a retraining may be started."""

    runs: int = Field(default=2, ge=1)
    """Runs at most."""
    per: Duration = "7d"
    """In this time."""


class RetrainSection(Section):
    """When the recipe is run again on new data."""

    on: list[RetrainReason] = Field(default_factory=lambda: list(get_args(RetrainReason)), min_length=1)
    """What asks for a retraining: performance that was lost, or drift in columns that matter."""
    importance: float = Field(default=0.1, ge=0, le=1)
    """Importance that the drifted columns must carry together."""
    data: Literal["changed", "any"] = "changed"
    """changed: only with another data version than the champion's."""
    helps: bool = True
    """Whether new data are fetched and checked first, and used only if they are nearer to live traffic than the
    champion's training rows."""
    budget: RetrainBudget = Field(default_factory=RetrainBudget)
    """How often."""
    cooldown: Duration = "24h"
    """Time between two runs at least."""
    rearm: int = Field(default=2, ge=1, le=100)
    """Healthy windows in a row, or a new champion, before another episode may begin; an alert is over after as many."""
    failures: int = Field(default=2, ge=1, le=20)
    """Failed runs after which a person is asked."""
    overrides: list[str] = Field(default_factory=list, max_length=50)
    """Overrides of the run, such as +rollout=canary, besides those that the recipe was run with."""


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """What a service's monitor goes by.

    recipe     absolute path of the recipe that was deployed, "" for a bundle without one; ``overrides`` are those of
               its run
    name       the recipe's name, under which its champion is registered
    folder     identity of the state folder in which a run wrote them; "" before they are written
    """

    monitor: MonitorSection
    retrain: RetrainSection | None = None
    recipe: str = ""
    overrides: tuple[str, ...] = ()
    name: str = ""
    folder: str = field(default="", compare=False)

    def written_in(self, state: Path) -> bool:
        """Whether a run on this machine wrote them in this state folder.

        A recipe is run on the word of no other: who hands over a state folder must not choose what it executes.
        """
        return self.folder == folder_identity(state)

    def to_json(self) -> Json:
        """The content of ``monitor/settings.json``."""
        return {
            "monitor": self.monitor.model_dump(mode="json"),
            "retrain": None if self.retrain is None else self.retrain.model_dump(mode="json"),
            "recipe": self.recipe,
            "overrides": list(self.overrides),
            "name": self.name,
            "folder": self.folder,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> MonitorSettings:
        """The settings that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else.

        >>> settings = MonitorSettings(MonitorSection(window="10s"), RetrainSection(), "/r.yaml", ("seed=1",), "loans")
        >>> MonitorSettings.from_json(settings.to_json()) == settings
        True
        """
        retrain = value.get("retrain")
        return cls(
            MonitorSection.model_validate(value["monitor"]),
            None if retrain is None else RetrainSection.model_validate(retrain),
            str(value.get("recipe", "")),
            tuple(map(str, value.get("overrides", ()))),
            str(value.get("name", "")),
            str(value.get("folder", "")),
        )


def read_settings(files: ServiceFiles) -> MonitorSettings | None:
    """A service's settings; None when it is not monitored. Raises ServiceError when the record is damaged."""
    value = files.read_json(SETTINGS)
    try:
        return None if value is None else MonitorSettings.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
        place = files.location(SETTINGS)
        raise ServiceError(
            f"{place} is damaged: {type(error).__name__}", hint=f"rm {shell_word(place)}; mlkit run RECIPE writes it"
        ) from error


def write_settings(files: ServiceFiles, settings: MonitorSettings | None) -> None:
    """Write a service's settings, if they are other ones; without any, the service is no longer monitored."""
    if settings is None:
        if files.exists(SETTINGS):
            files.delete(SETTINGS)
        return
    make_folder(files.state)
    value = _as_written(files, settings)
    if _stored(files) != value:
        files.write_json(SETTINGS, value)


def are_current(files: ServiceFiles, settings: MonitorSettings | None) -> bool:
    """Whether a service's stored settings are these."""
    stored = _stored(files)
    if settings is None or stored is None:
        return settings is None and stored is None
    return bool(stored == _as_written(files, settings))


def _as_written(files: ServiceFiles, settings: MonitorSettings) -> Json:
    """The record of settings in a service's state folder."""
    return replace(settings, folder=folder_identity(files.state)).to_json()


def deployed_settings(
    name: str,
    monitor: MonitorSection | None,
    retrain: RetrainSection | None,
    recipe: Path | None,
    overrides: tuple[str, ...],
) -> MonitorSettings | None:
    """The settings of a recipe; None for one that has no ``monitor``."""
    if monitor is None:
        return None
    return MonitorSettings(monitor, retrain, "" if recipe is None else str(recipe), tuple(overrides), name)


def _stored(files: ServiceFiles) -> Json:
    """The record, as it is; {} for a damaged one."""
    try:
        return files.read_json(SETTINGS)
    except ServiceError:
        return {}
