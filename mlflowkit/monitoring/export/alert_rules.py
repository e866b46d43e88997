"""Alerting rules for Prometheus, from the monitor's settings of each service, and Alertmanager's inhibitions.

The rules read the metrics of the admin page (`monitor_metrics`) and of the gateway; both are to be scraped.

Prometheus takes a sample that is gone for an alert that is over (prometheus#17482). Here it is not: the rules that
judge data hold an alert that fires, by ``ALERTS``, until the service is heard again with data that contradict it (see
`held`). A scrape target that is down, a controller that was killed and traffic that stopped thus resolve nothing, and
MlkitMonitorStale or MlkitNoData fires beside. What no rule can hold is an alert over a restart of Prometheus that lasts
longer than Prometheus looks back (5 minutes). Alerts of a service that was removed end when its rules are written anew.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlflowkit.monitoring.monitor_settings import seconds_of
from mlflowkit.serving.inference.gateway_metrics import BUCKET_SECONDS
from mlflowkit.values import Json

Severity = Literal["page", "ticket", "info"]
DOORS = 'door=~"infer|predict|grpc"'
"""The doors whose requests are predictions."""
FAST_BURN, SLOW_BURN = 14.4, 6.0
"""Budgets of 30 days a time: 2 % of the budget in an hour, 5 % in 6 hours (Beyer et al., The Site Reliability Workbook,
2018, chapter 5)."""
SLOW_SHARE = 0.01
"""Of requests, may be slower than the p99."""
REFUSED_SHARE = 0.05
LOST_SHARE = 0.001
STUCK_SECONDS = 6 * 3600.0
LATE_SHARE = 0.5
"""Labels are late when the labelled share is below this part of its maximum of 30 days."""
SERVICE, COLUMN = "{{ $labels.service }}", "{{ $labels.column }}"
"""Labels in the texts of alerts."""
RUNNING_PHASES = "preparing|running|paused|awaiting_approval|promoting|rolling_back"


@dataclass(frozen=True, slots=True)
class RuleTarget:
    """A service with what its rules depend on: the window in seconds, and latency goals where the recipe has any."""

    service: str
    window_seconds: float = 86_400.0
    p99_ms: float | None = None
    error_rate: float | None = None

    @classmethod
    def from_settings(cls, service: str, settings: Mapping[str, Json]) -> RuleTarget:
        """The target from the record ``monitor/settings.json``.

        >>> RuleTarget.from_settings("a", {"monitor": {"window": "1h", "latency": {"p99_ms": 20}}})
        RuleTarget(service='a', window_seconds=3600.0, p99_ms=20.0, error_rate=None)
        """
        monitor = settings.get("monitor") or {}
        latency = monitor.get("latency") or {}
        p99, errors = latency.get("p99_ms"), latency.get("error_rate")
        return cls(
            service,
            seconds_of(monitor.get("window") or "1d"),
            None if p99 is None else float(p99),
            None if errors is None else float(errors),
        )


@dataclass(frozen=True, slots=True)
class AlertRule:
    """One rule. ``seconds`` is how long the expression must hold; ``keep`` how long the alert outlives it."""

    name: str
    severity: Severity
    expression: str
    summary: str
    description: str
    seconds: float = 0.0
    keep: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> Json:
        """The rule in Prometheus's format."""
        rule: dict[str, Json] = {"alert": self.name, "expr": self.expression}
        if self.seconds:
            rule["for"] = duration(self.seconds)
        if self.keep:
            rule["keep_firing_for"] = duration(self.keep)
        rule["labels"] = {"severity": self.severity, **self.labels}
        rule["annotations"] = {"summary": self.summary, "description": self.description}
        return rule


def rule_groups(targets: Sequence[RuleTarget]) -> Json:
    """The content of a rule file: a group for each service."""
    return {"groups": [{"name": f"mlkit-{target.service}", "rules": _rules(target)} for target in targets]}


def _rules(target: RuleTarget) -> list[Json]:
    rules = (*_data_rules(target), *_latency_rules(target), *_loop_rules(target), *_retrain_rules(target))
    return [rule.to_json() for rule in rules]


def held(rule: AlertRule, service: str, unless: str) -> str:
    """The rule's expression, or the alert as it fires already unless a series of ``unless`` tells of new data.

    Rules that share a name must have labels that tell them apart, each of them: their alerts are selected by these.
    """
    labels = {"alertname": rule.name, "alertstate": "firing", "service": service, **rule.labels}
    matchers = ",".join(f"{name}={quote(value)}" for name, value in labels.items())
    ignored = ", ".join(("alertname", "severity", *rule.labels))
    return (
        f"({rule.expression})\n"
        f"or ignoring ({ignored})\n"
        f'(label_replace(ALERTS{{{matchers}}}, "alertstate", "", "", "") unless on (service) ({unless}))'
    )


def _hold(rule: AlertRule, service: str, unless: str) -> AlertRule:
    expression = held(rule, service, unless)
    return AlertRule(
        rule.name, rule.severity, expression, rule.summary, rule.description, rule.seconds, rule.keep, rule.labels
    )


def _data_rules(target: RuleTarget) -> list[AlertRule]:
    """Rules about what is in the windows; they hold while the monitor is silent or has no data."""
    service, window = quote(target.service), target.window_seconds
    heard = f'mlkit_monitor_state{{service={service},state!~"NO_DATA|BLIND"}} == 1'
    columns = f"max by (service, version, column) (mlkit_drift_evidence{{service={service},"
    failed = f"max by (service, version, metric) (mlkit_performance_failed{{service={service},kind="
    explain, monitor = f"mlkit monitor explain {SERVICE} {COLUMN}", f"mlkit monitor {SERVICE}"
    rules = [
        AlertRule(
            "MlkitDriftSustained", "ticket", f'{columns}kind!="missing"}}) >= 1',
            "{{ $labels.column }} of {{ $labels.service }} has moved",
            f"The shift is surely beyond its margin, over several windows. {explain}", keep=window,
        ),
        AlertRule(
            "MlkitNullsUp", "ticket", f'{columns}kind="missing"}}) >= 1',
            "More values of {{ $labels.column }} of {{ $labels.service }} are missing",
            f"Mend the source first: a model trained on such rows is worse. {explain}", keep=window,
        ),
        AlertRule(
            "MlkitPerformanceDrop", "page", f'{failed}"realised"}}) == 1',
            "{{ $labels.metric }} of {{ $labels.service }} is below its limit, by labels",
            f"The whole interval is beyond the limit. {monitor}", keep=window,
        ),
        AlertRule(
            "MlkitEstimatedDrop", "ticket", f'{failed}"estimated"}}) == 1',
            "{{ $labels.metric }} of {{ $labels.service }} is estimated to be below its limit",
            f"Without labels, from the scores alone. {monitor}", keep=window,
        ),
        AlertRule(
            "MlkitProfileLoss", "ticket",
            f"max by (service) (mlkit_window_lost_rows{{service={service}}}) "
            f"/ (max by (service) (mlkit_window_answered_rows{{service={service}}}) > 0) > {LOST_SHARE}",
            "Rows of {{ $labels.service }} are missing from its profiles",
            "{{ $value | humanizePercentage }} of the rows answered in the last window are in no profile: the observer "
            "was restarted or cannot keep up. mlkit status",
        ),
    ]  # fmt: skip
    return [_hold(rule, target.service, heard) for rule in rules]


def _latency_rules(target: RuleTarget) -> list[AlertRule]:
    """Rules about requests, from the gateway's own metrics; they hold while nothing is answered.

    That of the schema also reads the monitor's own alert, and needs no scraped gateway.
    """
    service = quote(target.service)
    answered = f"sum by (service) (rate(mlkit_requests_total{{service={service},{DOORS}}}[5m])) > 0"
    heard = f'mlkit_monitor_state{{service={service},state!~"NO_DATA|BLIND"}} == 1'
    either = f"({answered}) or (({heard}) unless on (service) mlkit_requests_total{{service={service}}})"
    refused = f'sum by (service) (rate(mlkit_requests_total{{service={service},{DOORS},code=~"400|422"}}[5m]))'
    total = f"sum by (service) (rate(mlkit_requests_total{{service={service},{DOORS}}}[5m]))"
    schema = AlertRule(
        "MlkitSchemaRefusals", "page",
        f'{refused} / {total} > {REFUSED_SHARE}\nor sum by (service) '
        f'(mlkit_alerts{{service={service},kind="schema",state!="resolved"}}) > 0',
        "Requests to {{ $labels.service }} do not fit the model's columns",
        "A column was renamed, dropped or changed its type upstream: such requests are refused and are in no profile. "
        f"mlkit monitor {SERVICE}",
        seconds=min(120.0, target.window_seconds), keep=min(300.0, target.window_seconds),
    )  # fmt: skip
    burns = [_hold(rule, target.service, answered) for rule in _burn_rules(target)]
    return [_hold(schema, target.service, either), *burns]


def _burn_rules(target: RuleTarget) -> list[AlertRule]:
    budgets: list[tuple[str, str, float, str]] = []
    limit = None if target.p99_ms is None else bucket_above(target.p99_ms / 1000)
    service = quote(target.service)
    if limit is not None:
        requests = f"service={service},{DOORS}"
        slow = (
            f'1 - sum by (service) (rate(mlkit_request_seconds_bucket{{{requests},le="{limit}"}}[%s]))'
            f" / sum by (service) (rate(mlkit_request_seconds_count{{{requests}}}[%s]))"
        )
        what = f"answers slower than {limit * 1000:g} ms"
        budgets.append(("latency", slow, SLOW_SHARE, what))
    if target.error_rate is not None:
        errors = (
            f'sum by (service) (rate(mlkit_requests_total{{service={service},{DOORS},code=~"5.."}}[%s]))'
            f" / sum by (service) (rate(mlkit_requests_total{{service={service},{DOORS}}}[%s]))"
        )
        budgets.append(("errors", errors, target.error_rate, "failed requests"))
    rules = []
    for budget, share, allowed, what in budgets:
        for burn, factor, spans, severity in _BURNS:
            bound = f"{factor * allowed:.6g}"
            long, short = (f"({share % (span, span)}) > {bound}" for span in spans)
            rules.append(
                AlertRule(
                    "MlkitLatencyBurn", severity, f"{long}\nand on (service) {short}",
                    f"{{{{ $labels.service }}}} spends its budget of {what} {factor:g} times too fast",
                    f"Over the last {spans[0]}, {{{{ $value | humanizePercentage }}}} were {what}; "
                    f"{allowed:g} are allowed. mlkit status",
                    labels={"burn": burn, "budget": budget},
                )
            )  # fmt: skip
    return rules


_BURNS: tuple[tuple[str, float, tuple[str, str], Severity], ...] = (
    ("fast", FAST_BURN, ("1h", "5m"), "page"),
    ("slow", SLOW_BURN, ("6h", "30m"), "ticket"),
)


def _loop_rules(target: RuleTarget) -> list[AlertRule]:
    """Rules about the monitor itself. That of stale windows needs no holding: its other half fires without a sample."""
    service, window = quote(target.service), target.window_seconds
    monitor = f"mlkit monitor {SERVICE}"
    ages = (f"max by (service) (mlkit_{name}_age_seconds{{service={service}}})" for name in ("window", "monitor"))
    state = f"max by (service, version) (mlkit_monitor_state{{service={service},state="
    nothing = AlertRule(
        "MlkitNoData", "ticket", f'{state}"NO_DATA"}}) == 1', "{{ $labels.service }} has no data to judge",
        f"Too few rows came in the last windows: nothing is known, good or bad. {monitor}",
    )  # fmt: skip
    labels = f'max by (service) (mlkit_labelled_share{{service={service},age="mature"}})'
    late = AlertRule(
        "MlkitLabelsLate", "ticket",
        f"{labels} == 0\nor {labels} < {LATE_SHARE} * "
        f'max by (service) (max_over_time(mlkit_labelled_share{{service={service},age="mature"}}[30d]))',
        "Labels of {{ $labels.service }} are late",
        "{{ $value | humanizePercentage }} of the answers that should have a label by now have one: the realised "
        f"performance is not known. {monitor}",
        seconds=min(3600.0, window),
    )  # fmt: skip
    heard = f"mlkit_monitor_state{{service={service}}} == 1"
    return [
        AlertRule(
            "MlkitMonitorStale", "page",
            "\nor ".join(f"{age} > {duration_seconds(3 * window)}" for age in ages)
            + f"\nor absent(mlkit_monitor_state{{service={service}}})",
            "Nobody watches {{ $labels.service }}",
            "No window was judged for three windows, or the admin page cannot be scraped. mlkit status",
            seconds=min(600.0, 3 * window),
        ),
        _hold(nothing, target.service, heard),
        _hold(late, target.service, heard),
        AlertRule(
            "MlkitRolloutRunning", "info",
            f'max by (service) (mlkit_rollout_phase{{service={service},phase=~"{RUNNING_PHASES}"}}) == 1',
            "A rollout of {{ $labels.service }} is under way",
            "Shifts of its predictions are expected and are not sent (see the inhibitions).",
        ),
    ]  # fmt: skip


def _retrain_rules(target: RuleTarget) -> list[AlertRule]:
    service = quote(target.service)
    heard = f"mlkit_monitor_state{{service={service}}} == 1"
    stuck = AlertRule(
        "MlkitRetrainStuck", "ticket",
        f'max by (service) (mlkit_monitor_state{{service={service},state="RETRAINING"}}) == 1',
        "Retraining of {{ $labels.service }} does not end", f"Its run is named by: mlkit monitor {SERVICE}",
        seconds=STUCK_SECONDS, labels={"reason": "running"},
    )  # fmt: skip
    spent = AlertRule(
        "MlkitBudgetSpent", "ticket", f"max by (service) (mlkit_retrain_budget_left{{service={service}}}) == 0",
        "{{ $labels.service }} has used its budget of retraining runs",
        f"A further shift will retrain nothing. mlkit monitor {SERVICE}",
    )  # fmt: skip
    asking = AlertRule(
        "MlkitRetrainStuck", "ticket",
        f'max by (service) (mlkit_retrain_state{{service={service},state="asking"}}) == 1',
        "Retraining of {{ $labels.service }} waits for a person",
        f"Too many runs failed, so that no further one starts by itself. mlkit monitor {SERVICE}",
        labels={"reason": "asking"},
    )  # fmt: skip
    return [_hold(rule, target.service, heard) for rule in (stuck, asking, spent)]


def bucket_above(seconds: float) -> float | None:
    """The smallest bound of the gateway's histogram that is not below a time; None when there is none.

    >>> bucket_above(0.02), bucket_above(0.025), bucket_above(60)
    (0.025, 0.025, None)
    """
    index = bisect_left(BUCKET_SECONDS, seconds)
    return BUCKET_SECONDS[index] if index < len(BUCKET_SECONDS) else None


def duration(seconds: float) -> str:
    """A duration in Prometheus's format, whole milliseconds.

    >>> duration(90), duration(0.25), duration(86400.0)
    ('90s', '250ms', '86400s')
    """
    return f"{seconds:.0f}s" if seconds == int(seconds) else f"{seconds * 1000:.0f}ms"


def duration_seconds(seconds: float) -> str:
    """A number of seconds in an expression."""
    return f"{seconds:.12g}"


def quote(text: str) -> str:
    """A string literal of PromQL.

    >>> print(quote('a"b'))
    "a\\\"b"
    """
    return json.dumps(text, ensure_ascii=False)


def alertmanager_config(webhook: str) -> Json:
    """A configuration of Alertmanager that sends to a webhook, with the inhibitions that belong to the rules.

    A refused schema or missing values explain a shift and silence it; a rollout under way silences shifts of the
    predictions; what spends the budget fast silences that it is also spent slowly.
    """
    return {
        "route": {
            "receiver": "default",
            "group_by": ["alertname", "service"],
            "group_wait": "5s",
            "group_interval": "1m",
            "repeat_interval": "24h",
            "routes": [{"receiver": "nobody", "matchers": ['severity="info"']}],
        },
        "receivers": [
            {"name": "nobody"},
            {"name": "default", "webhook_configs": [{"url": webhook, "send_resolved": True}]},
        ],
        "inhibit_rules": [
            {
                "source_matchers": ['alertname="MlkitSchemaRefusals"'],
                "target_matchers": ['alertname="MlkitDriftSustained"'],
                "equal": ["service"],
            },
            {
                "source_matchers": ['alertname="MlkitNullsUp"'],
                "target_matchers": ['alertname="MlkitDriftSustained"'],
                "equal": ["service", "column"],
            },
            {
                "source_matchers": ['alertname="MlkitRolloutRunning"'],
                "target_matchers": ['alertname="MlkitDriftSustained"', 'column=~"output[.].*"'],
                "equal": ["service"],
            },
            {
                "source_matchers": ['alertname="MlkitLatencyBurn"', 'burn="fast"'],
                "target_matchers": ['alertname="MlkitLatencyBurn"', 'burn="slow"'],
                "equal": ["service", "budget"],
            },
        ],
    }
