"""A judgement in the formats that forges read: JUnit, SARIF, workflow annotations, GitLab's metrics report. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from mlflowkit import __version__
from mlflowkit.ci.judge_report import JudgeReport, ReportedVerdict
from mlflowkit.errors import Fault
from mlflowkit.system.text import printable

MAX_ANNOTATIONS = 10
"""GitHub shows ten annotations of a kind in a step."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: JudgeReport) -> bytes:
    """One test case a gate. INCONCLUSIVE is a failure where it blocks, else skipped with its reason."""
    failed = [verdict for verdict in report.verdicts if _fails(verdict)]
    skipped = [verdict for verdict in report.verdicts if verdict.verdict != "PASSED" and not _fails(verdict)]
    suite = ElementTree.Element(
        "testsuite",
        name=_xml(f"gates of {report.recipe}"),
        tests=str(len(report.verdicts) + bool(report.error)),
        failures=str(len(failed)),
        errors=str(int(bool(report.error))),
        skipped=str(len(skipped)),
    )
    for verdict in report.verdicts:
        name = f"{verdict.gate} where {verdict.slice}" if verdict.slice else verdict.gate
        case = ElementTree.SubElement(suite, "testcase", classname=_xml(report.path), name=_xml(name))
        if verdict.verdict == "PASSED":
            ElementTree.SubElement(case, "system-out").text = _xml(verdict.message)
            continue
        message = _xml(f"{verdict.verdict}: {verdict.message}")
        child = ElementTree.SubElement(case, "failure" if _fails(verdict) else "skipped", message=message)
        if _fails(verdict):
            child.set("type", verdict.verdict)
    if report.error:
        case = ElementTree.SubElement(suite, "testcase", classname=_xml(report.path), name="the run")
        ElementTree.SubElement(case, "error", message=_xml(report.error)).text = _xml(report.hint)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root, " ")
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _fails(verdict: ReportedVerdict) -> bool:
    return verdict.blocking and verdict.verdict != "PASSED"


def _xml(text: str) -> str:
    """A text without characters that XML 1.0 cannot hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", printable(text))


def sarif(faults: Sequence[Fault]) -> dict[str, Any]:
    """SARIF 2.1.0 of a recipe's faults; files are relative to the repository's root."""
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "mlkit",
                        "version": __version__,
                        "rules": [
                            {
                                "id": "recipe-fault",
                                "shortDescription": {"text": "A recipe that cannot be run"},
                                "defaultConfiguration": {"level": "error"},
                            }
                        ],
                    }
                },
                "originalUriBaseIds": {"SRCROOT": {"description": {"text": "The repository's root"}}},
                "results": [_result(fault) for fault in faults],
            }
        ],
    }


def _result(fault: Fault) -> dict[str, Any]:
    text = f"{fault.key}: {fault.message}" if fault.key else fault.message
    result: dict[str, Any] = {
        "ruleId": "recipe-fault",
        "level": "error",
        "message": {"text": printable(f"{text}\n{fault.hint}" if fault.hint else text)},
    }
    if not fault.file.startswith("<"):
        region = {"startLine": max(fault.line, 1), "startColumn": max(fault.column, 1)}
        artifact = {"uri": fault.file, "uriBaseId": "SRCROOT"}
        result["locations"] = [{"physicalLocation": {"artifactLocation": artifact, "region": region}}]
    return result


def workflow_commands(report: JudgeReport, faults: Sequence[Fault]) -> Iterator[str]:
    """GitHub workflow commands: an error or a warning for each gate that did not pass, and for each fault."""
    lines = [
        _command("error", f"{fault.key}: {fault.message}", file=fault.file, line=fault.line, col=fault.column)
        for fault in faults
    ]
    lines += [
        _command("error" if _fails(verdict) else "warning", _sentence(verdict), file=report.path, title=verdict.verdict)
        for verdict in sorted(report.verdicts, key=lambda verdict: not _fails(verdict))
        if verdict.verdict != "PASSED"
    ]
    if report.error and not faults:
        lines.insert(0, _command("error", f"{report.error} {report.hint}".strip(), file=report.path))
    yield from lines[:MAX_ANNOTATIONS]
    if len(lines) > MAX_ANNOTATIONS:
        more = len(lines) - MAX_ANNOTATIONS
        yield _command("notice", f"{more} more are in the report", file=report.path)


def warning(message: str) -> str:
    """A warning as a GitHub workflow command."""
    return _command("warning", message, title="mlkit")


def _sentence(verdict: ReportedVerdict) -> str:
    where = f" where {verdict.slice}" if verdict.slice else ""
    return f"{verdict.gate}{where}: {verdict.message}"


def _command(kind: str, message: str, **properties: object) -> str:
    """A workflow command; what would end it or begin another is escaped as GitHub's toolkit does."""
    pairs = ",".join(f"{name}={_property(str(value))}" for name, value in properties.items())
    return f"::{kind} {pairs}::{_data(message)}"


def _data(text: str) -> str:
    """
    >>> _data("50 %\\n::error::x")
    '50 %25%0A::error::x'
    """
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def gitlab_metrics(report: JudgeReport) -> str:
    """GitLab's metrics report (OpenMetrics text): it shows each figure beside that of the target branch.

    >>> gitlab_metrics(JudgeReport(recipe="a", path="a.yaml", status="done", exit_code=0))
    ''
    """
    lines = []
    for name, measurement in report.metrics.items():
        metric = re.sub(r"[^a-zA-Z0-9_]", "_", name)
        lines.append(f"{metric} {measurement.value:.6g}")
        lines.append(f"{metric}_low {measurement.low:.6g}")
        lines.append(f"{metric}_high {measurement.high:.6g}")
    return "".join(f"{line}\n" for line in lines)
