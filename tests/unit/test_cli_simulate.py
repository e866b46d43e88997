"""mlkit simulate and mlkit replay from the command line: tables, stable JSON, and errors that say what to type."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.cli import app as cli
from mlflowkit.cli.commands import simulate
from tests.support.simulation_log import Challenger, write_service

RECIPE = """\
name: loans
task: classification
data:
  source: {kind: csv, path: loans.csv}
  target: y
  split: {kind: stratified}
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
serve:
  service: loans
  rollout:
    strategy: canary
    steps: [10, 50]
    min_samples: 200
    metrics: [{metric: error_rate, margin: 0.01}]
"""
SCENARIO_KEYS = {
    "scenario", "harmful", "rollouts", "promoted", "failed", "deadline", "undecided", "share", "low", "high", "by",
    "found_tried", "found_requests", "found_seconds", "exposed", "promoted_seconds", "stuck", "looks",
}  # fmt: skip


@pytest.fixture
def mlkit(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command line in a folder with a recipe; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    Path("loans.csv").write_text("x,y\n1,a\n2,b\n")
    Path("r.yaml").write_text(RECIPE)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(list(arguments))
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


def test_simulate_prints_a_table_with_what_comes_of_each_scenario(mlkit: Any) -> None:
    arguments = ("simulate", "r.yaml", "--rollouts", "3", "--scenario", "aa", "--error-increase", "0.1")
    code, out, err = mlkit(*arguments)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "canary by 10, 50 %, judged by error_rate, level 5 %"
    assert lines[1].startswith("50 requests a second; the champion fails 1 % of them, answers in 5 ms (p99 20 ms)")
    assert lines[2] == "  step 1: at 50 requests a second and 10 %, 200 of each variant take 40 s"
    assert lines[4].startswith("  step 2: error_rate passes after ")
    rows = {line[:22].strip(): line[22:].split() for line in lines[6:9]}
    assert rows["A/A"][:2] == ["within", "3"]
    assert rows["error rate +10 points"][:6] == ["beyond", "0", "3", "=", "100", "%"]
    assert "error rate +10 points: 3 of 3" in err
    assert mlkit(*arguments)[1] == out


def test_simulate_json_has_its_keys(mlkit: Any) -> None:
    code, out, _ = mlkit(
        "simulate", "r.yaml", "--rollouts", "2", "--scenario", "error-rate=0.2", "--rate", "80", "--json"
    )
    assert code == 0
    value = json.loads(out)
    assert set(value) == {
        "recipe", "service", "strategy", "level", "seed", "rollouts", "base", "steps", "proof", "scenarios",
        "conclusions", "notes",
    }  # fmt: skip
    assert value["base"]["rate"] == 80
    assert set(value["base"]) >= {"rate", "error_rate", "p50_ms", "p99_ms", "accuracy", "feedback", "delay", "latency"}
    assert set(value["steps"][0]) == {
        "step", "weight", "min_samples", "samples_seconds", "bake_seconds", "max_seconds", "feasible", "sentence",
    }  # fmt: skip
    assert set(value["proof"]) == {"metric", "tried", "seconds", "in_time", "sentence"}
    (scenario,) = value["scenarios"]
    assert set(scenario) == SCENARIO_KEYS
    assert (scenario["failed"], scenario["by"]) == (2, {"error_rate": 2})
    assert set(scenario["found_tried"]) == {"median", "p90"}
    assert scenario["promoted_seconds"] is None


def test_simulate_writes_a_page_that_loads_nothing(mlkit: Any) -> None:
    arguments = ("--rollouts", "2", "--scenario", "error-rate=0.2", "--scenario", "aa", "--out", "page.html", "--json")
    code, out, err = mlkit("simulate", "r.yaml", *arguments)
    assert code == 0
    assert json.loads(out)["rollouts"] == 2
    assert err.endswith("page: page.html\n")
    page = Path("page.html").read_text()
    assert page.count("<figure>") == 2
    assert "error rate +20 points (beyond its limits)" in page
    assert page.count("rollout 2: failed") == page.count("rollout 2: promoted") == 1
    assert "default-src 'none'" in page
    assert not any(word in page for word in ("<script", "src=", "http:", "https:"))
    code, _, err = mlkit("simulate", "r.yaml", "--scenario", "aa", "--rollouts", "1", "--out", "r.yaml/page.html")
    assert code == 2
    assert "r.yaml" in err


def test_a_plan_that_cannot_end_well_says_so(mlkit: Any) -> None:
    rare = ("--rate", "0.2", "--rollouts", "2", "--scenario", "aa")
    _, out, _ = mlkit("simulate", "r.yaml", "serve.rollout.max_seconds=3600", *rare)
    assert "take 2 h 46 min, and max_seconds is 3600: every rollout ends at its deadline; write min_samples: 57" in out
    assert "A/A: 2 of 2 end at the deadline of step 1" in out


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("~serve.rollout",), "direct", "+rollout=canary"),
        (("serve=null",), "serves nothing", "serve: {service: NAME"),
        (("--scenario", "latency=fast"), "'fast' is no size", "--scenario latency=1.2"),
        (("--latency-ms", "5"), "'5' is not two latencies", "--latency-ms 5,20"),
        (("--latency-ms", "20,5"), "do not exist", "--latency-ms 5,20"),
        (("--error-rate", "1.5"), "error rate 1.5 is no share", "--error-rate 0.01"),
        (("--rate", "-1"), "a rate is above 0", "--rate 50"),
        (("--from-log", "nowhere"), "no prediction log in nowhere", ".mlkit/services/NAME"),
    ],
)
def test_simulate_says_what_is_wrong_and_what_to_type(
    mlkit: Any, arguments: tuple[str, ...], message: str, hint: str
) -> None:
    code, out, err = mlkit("simulate", "r.yaml", *arguments)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[0]
    assert hint in err.splitlines()[-1]
    error = json.loads(mlkit("simulate", "r.yaml", *arguments, "--json")[1])["error"]
    assert error["code"] == 2


def test_simulate_takes_its_figures_from_a_log(mlkit: Any) -> None:
    write_service(Path(".mlkit/services/loans"), 2000, rate=25.0)
    more = ("--from-log", ".mlkit/services/loans", "--rollouts", "1", "--scenario", "aa", "--json")
    base = json.loads(mlkit("simulate", "r.yaml", *more)[1])["base"]
    assert (base["rate"], base["latency"]) == (25.0, "measured")
    assert base["error_rate"] == pytest.approx(0.01)
    base = json.loads(mlkit("simulate", "r.yaml", *more, "--latency-ms", "3,9", "--rate", "50")[1])["base"]
    assert (base["rate"], base["p99_ms"], base["latency"]) == (50.0, 9.0, "log-normal")


def test_replay_says_what_the_plan_would_have_decided(mlkit: Any) -> None:
    write_service(Path(".mlkit/services/loans"), 3000, challenger=Challenger(more_errors=0.1), experiment="loans-e1")
    code, out, _ = mlkit("replay", "r.yaml")
    assert code == 0
    assert "challenger of experiment loans-e1: this plan rolls it back" in out
    assert "because    error_rate" in out
    value = json.loads(mlkit("replay", "r.yaml", "--json")[1])
    assert set(value) == {
        "recipe", "service", "log", "requests", "seconds", "rate", "begun", "feedback", "mode", "experiment",
        "candidate", "end", "by", "step", "time", "after_seconds", "challenger_requests", "all_requests", "reason",
        "waiting", "looks",
    }  # fmt: skip
    assert (value["mode"], value["end"], value["by"], value["requests"]) == ("recorded", "failed", "error_rate", 3000)
    assert value["looks"][-1]["evidence"]["error_rate"]["harm"] >= 1
    quick = ("serve.rollout.bake_seconds=5",)
    wide = json.loads(mlkit("replay", "r.yaml", "serve.rollout.metrics.0.margin=0.3", *quick, "--json")[1])
    assert wide["end"] == "promoted"


def test_replay_that_has_not_decided_says_what_the_step_waits_for(mlkit: Any) -> None:
    """Every metric is shown, and the step goes on for another reason."""
    write_service(Path(".mlkit/services/loans"), 3000, challenger=Challenger(), experiment="loans-e1")
    few = ("serve.rollout.min_samples=1000000", "serve.rollout.max_seconds=1e9", "serve.rollout.metrics.0.margin=0.3")
    code, out, err = mlkit("replay", "r.yaml", *few)
    assert code == 0
    assert "this plan has not decided when the log ends" in out
    assert " of 1000000 requests of the challenger" in out.partition("waits for")[2].partition("\n")[0]
    assert re.search(r"error_rate +PASSED +evidence: worse 0%, not worse 100% of what decides", out)
    assert "reading the log in" in err
    assert json.loads(mlkit("replay", "r.yaml", *few, "--json")[1])["waiting"]
    mirrored = ("serve.rollout.steps=[0,10]", "serve.rollout.max_seconds=1e9")
    assert "the log has none that were mirrored" in mlkit("replay", "r.yaml", *mirrored)[1]


def test_simulate_answers_first_and_then_refines(mlkit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("simulate", "r.yaml", "--rollouts", "3", "--scenario", "aa", "--error-increase", "0.1")
    _, whole, err = mlkit(*arguments)
    assert "first answer" not in err or "A/A (within limits)" in err
    clock = iter(range(1_000_000))
    monkeypatch.setattr(simulate, "FIRST_SECONDS", 5.0)
    monkeypatch.setattr(simulate.time, "monotonic", lambda: float(next(clock)))  # a second a look at it
    _, out, err = mlkit(*arguments)
    first = err.partition("first answer, from a few of the 3 rollouts")[2].splitlines()[1:]
    assert re.match(r"  A/A \(within limits\): 0 of 3 rolled back by a metric \[0, 56.1\] %, 3 promoted", first[0])
    assert re.match(r"  error rate \+10 points \(beyond a limit\): 2 of 2 rolled back", first[1])
    assert out == whole  # the result does not depend on how much was ready
    monkeypatch.setattr(simulate, "FIRST_SECONDS", 1.0)
    _, out, err = mlkit(*arguments)
    assert "not yet: error rate +10 points" in err
    assert out == whole


def test_replay_plants_harm_where_the_log_holds_no_experiment(mlkit: Any) -> None:
    write_service(Path("svc"), 3000)
    code, out, _ = mlkit("replay", "r.yaml", "--log", "svc", "--rollouts", "2", "--plant", "error-rate=0.2")
    assert code == 0
    assert "error rate +20 points  beyond         0  2 = 100 %" in out
    more = ("--log", "svc", "--rollouts", "1", "--plant", "aa", "--json")
    value = json.loads(mlkit("replay", "r.yaml", *more)[1])
    assert value["mode"] == "planted"
    assert [set(one) for one in value["scenarios"]] == [SCENARIO_KEYS]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "no prediction log"),
        (("--log", "svc", "--experiment", "e9"), 2, "no challenger in experiment 'e9'"),
        (("--log", "svc", "--plant", "low-traffic"), 2, "cannot be injected"),
        (("--log", "svc", "--plant", "accuracy=0.1"), 2, "not measured for this task"),
        (("--log", "few", "--plant", "aa"), 3, "10 requests of the champion"),
    ],
)
def test_replay_says_what_is_wrong(mlkit: Any, arguments: tuple[str, ...], code: int, message: str) -> None:
    write_service(Path("svc"), 200)
    write_service(Path("few"), 10)
    found, _, err = mlkit("replay", "r.yaml", *arguments)
    assert found == code
    assert message in err
    assert "hint: " in err
