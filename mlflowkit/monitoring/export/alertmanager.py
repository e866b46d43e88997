"""Sends a monitor's alerts to Alertmanager (``POST /api/v2/alerts``), for those who run it without Prometheus's rules.

Alertmanager ends an alert that is not sent again before its ``endsAt``. So each that fires is sent again every
REFRESH_SECONDS, with an end HOLD_SECONDS ahead: a controller that is down, or a monitor without data, resolves nothing.
An alert ends when the monitor says so, with its own time. All that is sent of one alert has the same labels, its id
among them: one episode is one alert, and one notification.

What was sent is in the record ``monitor/alertmanager.json``, so that an end is sent although a restart or a failure
lies between. No value of the data is a label; the message, which may name a segment, is an annotation.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mlflowkit.errors import ServiceError
from mlflowkit.rollout import outbound
from mlflowkit.rollout.webhooks import mask_url
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.values import Json

RECORD = "monitor/alertmanager.json"
SETTINGS, VIEW = "monitor/settings.json", "monitor/view.json"
REFRESH_SECONDS = 60.0
HOLD_SECONDS = 7 * 86_400.0
SEND_SECONDS = 10.0
MAX_ALERTS = 500
"""Alerts of a service that are sent; the first by time."""
NAMES: Mapping[str, str] = {
    "drift": "MlkitDriftSustained",
    "predictions": "MlkitDriftSustained",
    "new_values": "MlkitDriftSustained",
    "range": "MlkitDriftSustained",
    "type": "MlkitDriftSustained",
    "missing": "MlkitNullsUp",
    "schema": "MlkitSchemaRefusals",
    "performance": "MlkitPerformanceDrop",
    "latency": "MlkitLatencyBurn",
    "errors": "MlkitLatencyBurn",
    "labels": "MlkitLabelsLate",
    "no_data": "MlkitNoData",
    "profile_loss": "MlkitProfileLoss",
    "blind": "MlkitBlind",
}
"""Alert names by kind: those of the rules, so that inhibitions and routes hold for both."""


@dataclass(frozen=True, slots=True)
class PushState:
    """What Alertmanager was sent: alerts by id as they were sent last, and the time of the last refresh."""

    url: str = ""
    refreshed: float = 0.0
    sent: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> Json:
        return {"url": self.url, "refreshed": self.refreshed, "sent": dict(self.sent)}

    @classmethod
    def from_json(cls, value: Json) -> PushState:
        """The state that `to_json` returned; nothing was sent where there is none, or it is damaged."""
        try:
            return cls(str(value["url"]), float(value["refreshed"]), dict(value["sent"]))
        except (TypeError, KeyError, ValueError):
            return cls()


@dataclass(frozen=True, slots=True)
class AlertPush:
    """The alerts to send now, and the state once they are sent. Without alerts there is nothing to do."""

    alerts: tuple[Json, ...]
    state: PushState


def decide_push(view: Mapping[str, Json], state: PushState, url: str, now: float, page: str = "") -> AlertPush:
    """What to send to ``url`` at ``now``: begun and ended alerts at once, those that fire at each refresh.

    An alert that a person acknowledged or silenced, or that another one inhibits, is kept up if it was sent, and is not
    begun. An alert that was sent and is no longer in the view is over.
    """
    sent = dict(state.sent) if state.url == url else {}
    alerts = {str(alert["id"]): alert for alert in _alerts(view)}
    begun = {
        id: _payload(view, alert, page)
        for id, alert in alerts.items()
        if id not in sent and alert["state"] == "firing" and not alert.get("inhibited_by")
    }
    kept = {id: value for id, value in sent.items() if id in alerts and alerts[id]["state"] != "resolved"}
    ended = {id: value for id, value in sent.items() if id not in kept}
    is_due = not 0 <= now - state.refreshed < REFRESH_SECONDS
    if not begun and not ended and not (kept and is_due):
        return AlertPush((), state)
    firing = kept | begun
    payloads = [{**value, "endsAt": _time(now + HOLD_SECONDS)} for value in firing.values()]
    for id, value in ended.items():
        until = alerts[id].get("resolved") if id in alerts else None
        payloads.append({**value, "endsAt": _time(now if not isinstance(until, int | float) else min(until, now))})
    return AlertPush(tuple(payloads), PushState(url, now, firing))


class AlertmanagerExporter:
    """Keeps the Alertmanager of each service's settings in step with its monitor's alerts."""

    name = "alertmanager"

    def export(self, files: ServiceFiles, now: float) -> None:
        """Send what is to be sent. Raises ServiceError when Alertmanager does not take it."""
        url = _url(files)
        state = PushState.from_json(files.read_json(RECORD))
        view = files.read_json(VIEW)
        if not url or not isinstance(view, dict):
            return
        push = decide_push(view, state, url, now, files.admin_url())
        if push.alerts:
            _send(url, push.alerts)
            files.write_json(RECORD, push.state.to_json())


def _send(url: str, alerts: Sequence[Json]) -> None:
    address = f"{url.rstrip('/')}/api/v2/alerts"
    headers = {"content-type": "application/json", "user-agent": "mlflowkit"}
    place = mask_url(url)
    hint = f"amtool check-config, and curl {place} from this machine"
    try:
        body = json.dumps(list(alerts), allow_nan=False).encode()
        status, reply = outbound.request("POST", address, body, headers, seconds=SEND_SECONDS, limit=500)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = str(error).replace(address, place).replace(url, place)
        raise ServiceError(f"{place} takes no alerts: {type(error).__name__}: {reason}", hint=hint) from None
    if not 200 <= status < 300:
        text = reply.decode("utf-8", "replace").strip()
        raise ServiceError(f"{place} refused alerts: HTTP {status}: {text}", hint=hint)


def _payload(view: Mapping[str, Json], alert: Mapping[str, Json], page: str) -> Json:
    """An alert in Alertmanager's format, without its end."""
    kind = str(alert.get("kind", ""))
    labels = {
        "alertname": NAMES.get(kind, "MlkitMonitorAlert"),
        "service": str(view.get("service", "")),
        "version": str(view.get("version", "")),
        "kind": kind,
        "column": str(alert.get("column") or ""),
        "severity": str(alert.get("severity", "")),
        "alert_id": str(alert["id"]),
    }
    since = alert.get("since")
    payload = {
        "labels": {name: _clean(value) for name, value in labels.items() if value},
        "annotations": {"summary": _clean(str(alert.get("message", "")))},
        "startsAt": _time(float(since) if isinstance(since, int | float) else 0.0),
    }
    return payload | ({"generatorURL": page} if page else {})


def _alerts(view: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    alerts = view.get("alerts")
    valid: list[Mapping[str, Json]] = [
        alert
        for alert in (alerts if isinstance(alerts, list) else [])
        if isinstance(alert, dict) and alert.get("id") and isinstance(alert.get("state"), str)
    ]
    return valid[:MAX_ALERTS]


def _url(files: ServiceFiles) -> str:
    settings = files.read_json(SETTINGS)
    try:
        return str(settings["monitor"]["alerts"]["alertmanager"] or "")
    except (TypeError, KeyError):
        return ""


def _clean(text: str) -> str:
    """Valid UTF-8 of bounded length."""
    return text.encode("utf-8", "replace").decode()[:1000]


def _time(seconds: float) -> str:
    """A time in RFC 3339.

    >>> _time(0.5)
    '1970-01-01T00:00:00.500000+00:00'
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
