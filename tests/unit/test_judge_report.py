"""A judgement's file, and what forges are given of it."""

from __future__ import annotations

import json
import string
import unicodedata
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflowkit.ci import comment_text, forge_formats, job_summary
from mlflowkit.ci.judge_report import (
    MAX_BYTES,
    JudgeReport,
    ReportedChampion,
    ReportedMeasurement,
    ReportedVerdict,
    parse_report,
    read_report,
    report_bytes,
)
from mlflowkit.errors import Fault, UsageError

TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Marks that turn the direction of the text after them."""
HOSTILE = "a|b`c` @all #1 <img src=x onerror=alert(1)> [x](javascript:1) \u202etxt\x1b[31m\r\n::error::x"
MEASURED = ReportedMeasurement(value=0.74, low=0.71, high=0.77, samples=1000)


def verdict(gate: str = "roc_auc >= 0.7", word: str = "PASSED", **changes: Any) -> ReportedVerdict:
    values: dict[str, Any] = {"message": "0.74 [0.71, 0.77]", "measurement": MEASURED, "threshold": 0.7}
    return ReportedVerdict(gate=gate, verdict=word, **{**values, **changes})


def report(*verdicts: ReportedVerdict, **changes: Any) -> JudgeReport:
    worst = next((item.verdict for item in verdicts if item.blocking and item.verdict != "PASSED"), "PASSED")
    status = {"PASSED": ("done", 0), "INCONCLUSIVE": ("inconclusive", 4)}.get(worst, ("gate-failed", 1))
    values: dict[str, Any] = {"recipe": "lending", "path": "recipes/lending.yaml", "environment": "prod"}
    values |= {"status": status[0], "exit_code": status[1], "identity": "ab" * 32, "blessed": not status[1]}
    return JudgeReport(verdicts=verdicts, **{**values, **changes})


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = report(verdict(), verdict(word="FAILED"), champion=ReportedChampion(identity="cd" * 32, version="v"))
    (tmp_path / "report.json").write_bytes(report_bytes(written))
    assert read_report(tmp_path / "report.json") == written


def test_a_report_of_a_later_version_is_read_where_its_schema_is_the_same() -> None:
    value = {**report(verdict()).to_json(), "added_later": 1}
    assert parse_report(json.dumps(value).encode(), "r").recipe == "lending"
    with pytest.raises(UsageError, match="schema"):
        parse_report(json.dumps({**value, "schema": 2}).encode(), "r")


@pytest.mark.parametrize(
    "change",
    [
        {"exit_code": 0.5},
        {"exit_code": 77},
        {"identity": "../../etc"},
        {"head": "$(touch x)"},
        {"verdicts": [{"gate": "g", "verdict": "GREAT", "message": ""}]},
        {"verdicts": "PASSED"},
        {"metrics": {"a": {"value": "NaN", "low": 0, "high": 0}}},
        {"recipe": ["a"]},
        {"recipe": "x" * 3000},
    ],
)
def test_a_forged_report_is_refused_by_its_key(change: dict[str, Any]) -> None:
    content = json.dumps({**report(verdict()).to_json(), **change}).encode()
    with pytest.raises(UsageError, match=f"r is no report of mlkit ci judge RECIPE: {next(iter(change))}"):
        parse_report(content, "r")


def test_large_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(UsageError, match="cannot be read"):
        read_report(path)
    path.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(UsageError, match="larger than a report may be"):
        read_report(path)


def test_a_report_within_the_limit_keeps_every_gate_that_failed() -> None:
    failed = [verdict(f"gate {number}", "FAILED") for number in range(100)]
    passed = [verdict(f"slice {number}") for number in range(1900)]
    content = report_bytes(report(*passed, *failed))
    assert len(content) <= MAX_BYTES
    kept = parse_report(content, "r")
    assert len(kept.counted("FAILED")) == 100
    assert len(kept.verdicts) + kept.verdicts_left_out == 2000


# ------------------------------------------------------------------------------------------------------------ Markdown


@given(st.text(max_size=80))
def test_a_name_is_one_code_span_and_one_cell(text: str) -> None:
    span = comment_text.code(text)
    assert span == "" or (span[0] == span[-1] == "`" and "`" not in span[1:-1])
    assert span.replace("\\|", "").count("|") == 0
    assert not [
        mark for mark in span if unicodedata.category(mark) == "Cc" or unicodedata.bidirectional(mark) in TURNING
    ]


def test_hostile_names_are_inert() -> None:
    hostile = report(verdict(HOSTILE, "FAILED", message=HOSTILE, slice=HOSTILE), recipe=HOSTILE, environment=HOSTILE)
    text = comment_text.render(hostile)
    marker, _, visible = text.split("\n", 2)
    assert set(marker) <= set("<!-> =:._/" + string.ascii_letters + string.digits)
    outside = "".join(part for index, part in enumerate(_without_blocks(visible).split("`")) if index % 2 == 0)
    assert not [word for word in ("@all", "<img", "javascript", "#1", "\u202e", "\x1b") if word in outside]
    assert "\u202e" not in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {5}


def _without_blocks(text: str) -> str:
    return "".join(part for index, part in enumerate(text.split("```")) if index % 2 == 0)


def test_a_long_comment_loses_sections_and_no_gate_that_failed() -> None:
    verdicts = [verdict(f"gate {n} by region", slice=f"region={n}") for n in range(1500)]
    verdicts[700:720] = [verdict(f"bad {n}", "FAILED", message="m" * 1900) for n in range(20)]
    text = comment_text.render(report(*verdicts))
    assert len(text) <= comment_text.LIMIT
    assert all(f"`bad {number}`" in text for number in range(20))
    assert "Not shown: 1,480 PASSED" in text
    assert text.count("```") % 2 == 0
    every = [verdict(f"bad {n} " + "x" * 100, "FAILED", message="m" * 1900) for n in range(2000)]
    crowded = comment_text.render(report(*every))
    assert len(crowded) <= comment_text.LIMIT
    assert "FAILED." in crowded  # those not shown are counted


def test_the_comment_of_a_failed_run(golden: Any) -> None:
    champion = ReportedChampion(identity="cd" * 32, version="cdcdcdcdcdcd", source="prod")
    ms = ReportedMeasurement(value=4.2, low=3.9, high=4.8, unit="ms")
    golden(
        "ci_comment.md",
        comment_text.render(
            report(
                verdict(),
                verdict("roc_auc against champion, margin 0.01", "FAILED", change=True, threshold=-0.01,
                        measurement=ReportedMeasurement(value=-0.03, low=-0.05, high=-0.012),
                        message="upper bound -0.012 < -0.01 (the margin)"),
                verdict("latency_p99_ms <= 5", "INCONCLUSIVE", direction="max", threshold=5.0, measurement=ms,
                        blocking=False, message="on a disturbed machine decides nothing"),
                champion=champion, hint="train.epochs=20", git_commit="12" * 20,
            )
        ),
    )  # fmt: skip


def test_the_comment_names_head_merge_commit_tree_and_what_no_commit_holds() -> None:
    names = ("models/a.py (modified)", "models/<img onerror> @all `x` (untracked)")
    text = comment_text.render(
        report(verdict(), head="ab" * 20, git_commit="cd" * 20, tree="ef" * 20, git_dirty=True, git_changes=names)
    )
    line = next(line for line in text.splitlines() if "commit" in line)
    assert "commit `abababababab` merged with its target as `cdcdcdcdcdcd`, tree `efefefefefef`, with changes" in line
    assert "`models/a.py (modified)`" in line
    assert comment_text.code(names[1]) in line
    clean = comment_text.render(report(verdict(), head="ab" * 20, git_commit="ab" * 20))
    assert "merged" not in clean
    assert "changes that are not committed" not in clean


def test_a_run_without_gates_is_not_called_good() -> None:
    assert "nothing was judged" in comment_text.render(report())
    error = report(status="error", exit_code=3, error="the table cannot be read", identity="", blessed=False)
    assert "the run did not end" in comment_text.render(error)
    assert "the table cannot be read" in comment_text.render(error)


# ------------------------------------------------------------------------------------------------------------- formats


def test_junit_has_a_case_for_each_gate() -> None:
    verdicts = (verdict(), verdict(HOSTILE, "FAILED"), verdict("x", "INCONCLUSIVE", blocking=False))
    suite = ET.fromstring(forge_formats.junit(report(*verdicts)))[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    assert [child.tag for case in suite for child in case] == ["system-out", "failure", "skipped"]


def test_sarif_locates_faults() -> None:
    faults = [Fault("recipes/a.yaml", 3, 7, "train.lr", "fast", "not a number", "write 0.001"),
              Fault("<override>", 1, 1, "seed", "x", "not a number")]  # fmt: skip
    first, second = forge_formats.sarif(faults)["runs"][0]["results"]
    place = first["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "recipes/a.yaml"
    assert place["region"] == {"startLine": 3, "startColumn": 7}
    assert "locations" not in second


def test_annotations_are_one_line_each_and_bounded() -> None:
    verdicts = [verdict(HOSTILE, "FAILED", message=HOSTILE) for _ in range(30)]
    lines = list(forge_formats.workflow_commands(report(*verdicts), []))
    assert len(lines) == forge_formats.MAX_ANNOTATIONS + 1
    assert all(line.startswith(("::error file=recipes/lending.yaml", "::notice")) for line in lines)
    assert not any("\n" in line or "\r" in line for line in lines)


def test_a_job_outside_of_github_is_left_alone(tmp_path: Path) -> None:
    summary, outputs = tmp_path / "summary.md", tmp_path / "outputs.txt"
    files = {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(outputs)}
    assert job_summary.publish(report(verdict()), (), files) == []
    assert not summary.exists()
    job_summary.publish(report(verdict()), (), {**files, "GITHUB_ACTIONS": "true"})
    assert "roc_auc >= 0.7" in summary.read_text()
    assert outputs.read_text() == f"identity={'ab' * 32}\nexit_code=0\nblessed=true\n"


def test_gitlab_metrics_are_openmetrics_lines() -> None:
    text = forge_formats.gitlab_metrics(report(metrics={"p99 (ms)": MEASURED}))
    assert text.splitlines() == ["p99__ms_ 0.74", "p99__ms__low 0.71", "p99__ms__high 0.77"]
