"""What Alertmanager is sent of a monitor's alerts: each once, refreshed, ended only by the monitor."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.errors import ServiceError
from mlflowkit.monitoring.export import alertmanager
from mlflowkit.monitoring.export.alertmanager import (
    HOLD_SECONDS,
    REFRESH_SECONDS,
    AlertmanagerExporter,
    PushState,
    decide_push,
)
from mlflowkit.service_state.records import ServiceFiles
from tests.support.monitor_views import START, view, write_view

URL = "http://127.0.0.1:9093"


def alert(id: str = "a1", state: str = "firing", **values: Any) -> dict[str, Any]:
    return {
        "id": id, "kind": "drift", "column": "age", "severity": "warning", "since": START, "state": state,
        "message": "age has moved", **values,
    }  # fmt: skip


def ends(push: Any) -> dict[str, float]:
    """The end of each sent alert, in seconds after START."""
    return {
        value["labels"]["alert_id"]: datetime.fromisoformat(value["endsAt"]).timestamp() - START
        for value in push.alerts
    }


def test_alert_is_begun_refreshed_and_ended_with_the_same_labels() -> None:
    begun = decide_push(view(alerts=[alert()]), PushState(), URL, START)
    assert ends(begun) == {"a1": HOLD_SECONDS}
    assert begun.alerts[0]["labels"]["alertname"] == "MlkitDriftSustained"
    early = decide_push(view(alerts=[alert()]), begun.state, URL, START + REFRESH_SECONDS - 1)
    assert early.alerts == ()
    later = view(alerts=[alert(message="age has moved further", severity="critical")], version="other")
    again = decide_push(later, begun.state, URL, START + REFRESH_SECONDS)
    assert again.alerts[0]["labels"] == begun.alerts[0]["labels"]
    assert ends(again) == {"a1": REFRESH_SECONDS + HOLD_SECONDS}
    over = decide_push(view(alerts=[alert(state="resolved", resolved=START + 100)]), again.state, URL, START + 200)
    assert ends(over) == {"a1": 100}
    assert decide_push(view(alerts=[alert(state="resolved")]), over.state, URL, START + 900).alerts == ()


@pytest.mark.parametrize("state", ["acked", "silenced"])
def test_alert_that_a_person_knows_is_kept_up_and_not_begun(state: str) -> None:
    assert decide_push(view(alerts=[alert(state=state)]), PushState(), URL, START).alerts == ()
    begun = decide_push(view(alerts=[alert()]), PushState(), URL, START)
    kept = decide_push(view(alerts=[alert(state=state)]), begun.state, URL, START + REFRESH_SECONDS)
    assert ends(kept) == {"a1": REFRESH_SECONDS + HOLD_SECONDS}


@pytest.mark.parametrize(("kind", "name"), [("labels", "MlkitLabelsLate"), ("latency", "MlkitLatencyBurn")])
def test_alerts_have_the_names_of_the_rules(kind: str, name: str) -> None:
    push = decide_push(view(alerts=[alert(kind=kind)]), PushState(), URL, START)
    assert push.alerts[0]["labels"]["alertname"] == name


def test_inhibited_alert_is_not_begun() -> None:
    assert decide_push(view(alerts=[alert(inhibited_by="schema")]), PushState(), URL, START).alerts == ()


def test_alert_that_left_the_view_is_over() -> None:
    begun = decide_push(view(alerts=[alert(), alert("a2")]), PushState(), URL, START)
    assert ends(decide_push(view(alerts=[alert()]), begun.state, URL, START + 5)) == {"a1": 5 + HOLD_SECONDS, "a2": 5}


def test_monitor_without_data_ends_nothing() -> None:
    begun = decide_push(view(alerts=[alert()]), PushState(), URL, START)
    silent = decide_push(view(state="NO_DATA", alerts=[alert()]), begun.state, URL, START + 900)
    assert ends(silent) == {"a1": 900 + HOLD_SECONDS}


def test_clock_that_was_set_back_refreshes() -> None:
    begun = decide_push(view(alerts=[alert()]), PushState(), URL, START)
    assert decide_push(view(alerts=[alert()]), begun.state, URL, START - 5000).alerts


def test_another_alertmanager_gets_everything() -> None:
    begun = decide_push(view(alerts=[alert()]), PushState(), URL, START)
    assert ends(decide_push(view(alerts=[alert()]), begun.state, "http://other", START + 1)) == {"a1": 1 + HOLD_SECONDS}


@pytest.mark.parametrize("alerts", [None, 3, [None, {"id": 1}, {"state": "firing"}], "x"])
def test_damaged_alerts_are_left_out(alerts: Any) -> None:
    assert decide_push(view(alerts=alerts), PushState(), URL, START).alerts == ()


def test_what_is_sent_has_no_value_of_the_data_but_in_its_message() -> None:
    sent = decide_push(view(alerts=[alert(segment="country=Utopia")]), PushState(), URL, START).alerts
    assert "Utopia" not in json.dumps(sent)


def _service(state: Path, url: str) -> ServiceFiles:
    files = ServiceFiles(state / "services" / "lending")
    files.write_json("monitor/settings.json", {"monitor": {"alerts": {"alertmanager": url}}})
    write_view(state, view(alerts=[alert()]))
    return files


def test_refused_alerts_are_sent_again_and_no_password_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    files = _service(tmp_path, "http://me:geheim@127.0.0.1:9093/prefix/")
    requests: list[tuple[str, Any]] = []
    replies: list[Any] = [OSError("no route to http://me:geheim@127.0.0.1:9093/prefix/api/v2/alerts"), 503, 200]

    def answered(method: str, url: str, body: bytes, headers: Any, **options: Any) -> tuple[int, bytes]:
        requests.append((url, json.loads(body)))
        reply = replies.pop(0)
        if isinstance(reply, OSError):
            raise reply
        return reply, b"busy"

    monkeypatch.setattr(alertmanager.outbound, "request", answered)
    exporter = AlertmanagerExporter()
    for word in ("no route", "HTTP 503: busy"):
        with pytest.raises(ServiceError, match=word) as raised:
            exporter.export(files, START)
        assert "geheim" not in f"{raised.value.message} {raised.value.hint}"
    exporter.export(files, START)
    exporter.export(files, START + 1)
    assert [url for url, _ in requests] == ["http://me:geheim@127.0.0.1:9093/prefix/api/v2/alerts"] * 3
    assert requests[0] == requests[2]


def test_service_without_alertmanager_sends_nothing(tmp_path: Path) -> None:
    files = _service(tmp_path, "")
    AlertmanagerExporter().export(files, START)
    assert not files.exists("monitor/alertmanager.json")
