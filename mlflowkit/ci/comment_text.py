"""A judgement as Markdown, for a comment on a pull request and a job's summary. Pure.

Names, messages and labels come from data and code that anybody may have written: each stands in a code span, in which
no forge reads Markdown, HTML, mentions or references. What is ours is plain.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from mlflowkit.ci.judge_report import JudgeReport, ReportedMeasurement, ReportedStep, ReportedVerdict
from mlflowkit.system.text import printable_line, shell_word, truncate

LIMIT = 60_000
"""Characters of a comment; GitHub takes 65,536."""
WIDTH = 40
"""Characters of an interval strip."""
MARKER_VERSION = 1
_ORDER = {"FAILED": 0, "ERROR": 1, "INCONCLUSIVE": 2, "PASSED": 3}
_CELL, _LONG = 160, 600


def marker(report: JudgeReport) -> str:
    """The hidden first line by which a comment is known: one for each recipe and environment.

    >>> marker(JudgeReport(recipe="a", path="recipes/a.yaml", environment="prod", status="done", exit_code=0))
    '<!-- mlkit:comment recipe=recipes/a.yaml env=prod v1 -->'
    """
    names = (re.sub(r"[^A-Za-z0-9._/-]", "_", name).replace("--", "-_") for name in (report.path, report.environment))
    path, environment = names
    return f"<!-- mlkit:comment recipe={path} env={environment or '-'} v{MARKER_VERSION} -->"


def head_line(report: JudgeReport) -> str:
    """The hidden line with the commit that a comment is about."""
    return f"<!-- mlkit:head {report.head or '-'} -->"


def render(report: JudgeReport, *, limit: int = LIMIT, page: str = "") -> str:
    """The comment. Sections are left out from the last of `_DROPPED` on until it fits, and then verdicts.

    ``page`` is the address of the run's page, "" where it is not known.
    """
    dropped: list[str] = []
    text = _compose(report, dropped, page, None)
    for name in _DROPPED:
        if len(text) <= limit:
            return text
        dropped.append(name)
        text = _compose(report, dropped, page, None)
    rows = len(report.verdicts)
    while len(text) > limit and rows:
        rows = rows * limit // (len(text) + 1) if rows > 1 else 0
        text = _compose(report, dropped, page, rows)
    return text if len(text) <= limit else f"{marker(report)}\n{head_line(report)}\n{_headline(report)}\n"


def _compose(report: JudgeReport, dropped: Sequence[str], page: str, rows: int | None) -> str:
    parts = [marker(report), head_line(report), _headline(report)]
    for name, section in _SECTIONS.items():
        text = section(report) if name not in dropped else ""
        if name == "gates":
            text = _gates(report, passed="passed" not in dropped, rows=rows)
        parts += ["", text] if text else []
    if dropped:
        left_out = [name for name in dropped if name in _SECTIONS or name == "passed"]
        parts += ["", f"Left out, since a comment has a limit: {', '.join(left_out)}."]
    if page:
        parts += ["", f"[The run's page]({page})"]
    return "\n".join([*parts, ""])


def _headline(report: JudgeReport) -> str:
    where = f" for {code(report.environment)}" if report.environment else ""
    title = f"### {code(report.recipe)}{where}: {verdict_words(report)}"
    version = f"version {code(report.identity[:12])}, " if report.identity else ""
    changes = "".join(f"{sign} {code(change)}" for sign, change in zip(":,,", report.git_changes, strict=False))
    dirty = f", with changes that are not committed{changes}" if report.git_dirty else ""
    head = report.head or report.git_commit
    merged = f" merged with its target as {code(report.git_commit[:12])}" if report.git_commit not in ("", head) else ""
    tree = f", tree {code(report.tree[:12])}" if report.tree else ""
    commit = f"commit {code(head[:12])}{merged}{tree}{dirty}" if head else ""
    return f"{title}\n\n{version}{commit}".rstrip(", ")


def verdict_words(report: JudgeReport) -> str:
    """The verdict in a few words.

    >>> verdict_words(JudgeReport(recipe="a", path="a", status="gate-failed", exit_code=1))
    'FAILED, not blessed'
    """
    if report.status == "error":
        return "the run did not end" if report.exit_code == 3 else "the recipe is wrong"
    if report.exit_code:
        word = {1: "FAILED", 4: "INCONCLUSIVE"}.get(report.exit_code, "ERROR")
        return f"{word}, not blessed"
    allowed = len([verdict for verdict in report.verdicts if verdict.verdict != "PASSED"])
    if not report.verdicts:
        return "blessed without any gate: nothing was judged"
    return f"blessed, {allowed} of {len(report.verdicts)} gates not PASSED but allowed" if allowed else "blessed"


# ----------------------------------------------------------------------------------------------------------- sections


def _error(report: JudgeReport) -> str:
    if not report.error or report.verdicts:
        return ""
    lines = [f"> {code(line)}" for line in truncate(report.error, _LONG).splitlines()]
    return "\n".join(lines)


def _gates(report: JudgeReport, *, passed: bool = True, rows: int | None = None) -> str:
    verdicts = sorted(report.verdicts, key=lambda verdict: _ORDER[verdict.verdict])
    shown = [verdict for verdict in verdicts if passed or verdict.verdict != "PASSED"][:rows]
    if not report.verdicts:
        return "" if report.status == "error" else "The recipe has no gates: **nothing was judged**."
    lines = ["| gate | verdict | measured | wanted |", "|---|---|---|---|", *(_row(verdict) for verdict in shown)]
    counts = {word: len(report.counted(word)) - sum(v.verdict == word for v in shown) for word in _ORDER}  # type: ignore[arg-type]
    counts["PASSED"] += report.verdicts_left_out
    rest = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
    return "\n".join(lines) + (f"\n\nNot shown: {rest}." if rest else "")


def _row(verdict: ReportedVerdict) -> str:
    name = f"{verdict.gate} where {verdict.slice}" if verdict.slice else verdict.gate
    word = f"**{verdict.verdict}**" if verdict.verdict in ("FAILED", "ERROR") else verdict.verdict
    if verdict.verdict != "PASSED" and not verdict.blocking:
        word += " (allowed)"
    measured = "" if verdict.measurement is None else interval(verdict.measurement)
    if verdict.verdict != "PASSED":
        measured = (
            f"{measured}<br>{code(truncate(verdict.message, _CELL))}" if measured else code(verdict.message, _LONG)
        )
    sign = "≥" if verdict.direction == "min" else "≤"
    bound = "" if verdict.threshold is None else f"{'difference ' * verdict.change}{sign} {verdict.threshold:.4g}"
    return f"| {code(name)} | {word} | {measured} | {bound} |"


def _strips(report: JudgeReport) -> str:
    """Intervals drawn as text, which every forge shows: what was measured, and the bound it had to clear."""
    verdicts = [verdict for verdict in report.verdicts if verdict.measurement and verdict.threshold is not None]
    if not verdicts:
        return ""
    names = [_plain(verdict.gate + (f" where {verdict.slice}" if verdict.slice else "")) for verdict in verdicts]
    width = min(44, max(len(name) for name in names))
    lines = [
        f"{truncate(name, 44):<{width}}  {strip(verdict.measurement, verdict.threshold)}  {verdict.verdict}"
        for name, verdict in zip(names, verdicts, strict=True)
        if verdict.measurement and verdict.threshold is not None
    ]
    legend = "o measured  [==] interval  | bound"
    return "\n".join(["```text", *lines, legend, "```"])


def strip(measurement: ReportedMeasurement, bound: float, width: int = WIDTH) -> str:
    """An interval beside its bound.

    >>> strip(ReportedMeasurement(value=0.74, low=0.71, high=0.77), 0.7, width=24)
    '-|--[=======o========]--'
    """
    low, high = min(measurement.low, bound), max(measurement.high, bound)
    margin = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
    start, end = low - margin / 2, high + 2 * margin / 2

    def place(value: float) -> int:
        return min(width - 1, max(0, round((value - start) / (end - start) * (width - 1))))

    marks = ["-"] * width
    for index in range(place(measurement.low), place(measurement.high) + 1):
        marks[index] = "="
    for value, mark in ((measurement.low, "["), (measurement.high, "]"), (measurement.value, "o"), (bound, "|")):
        marks[place(value)] = mark
    return "".join(marks)


def _comparisons(report: JudgeReport) -> str:
    if report.champion is None:
        return "No champion was compared with." if any(verdict.change for verdict in report.verdicts) else ""
    champion = f"champion {code(report.champion.version)}"
    if not report.comparisons:
        return f"The {champion} could not be compared with, see the gates."
    lines = [
        f"Beside the {champion}, on {report.compared_rows:,} test rows:",
        "",
        "| metric | champion | candidate | difference, paired |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {code(name)} | {item.champion.value:.4g} | {item.candidate.value:.4g} | {interval(item.difference)} |"
        for name, item in report.comparisons.items()
    ]
    return "\n".join(lines)


def _metrics(report: JudgeReport) -> str:
    if report.comparisons or not report.metrics:
        return ""
    lines = ["| metric | on the test rows |", "|---|---|"]
    lines += [f"| {code(name)} | {interval(item)} |" for name, item in report.metrics.items()]
    return "\n".join(lines)


def _changes(report: JudgeReport) -> str:
    if report.champion is None:
        return ""
    if not report.changes:
        return "Nothing differs from the champion: the same code, data and recipe."
    items = [f"- {change.kind}: {code(change.before)} → {code(change.after)}" for change in report.changes]
    return "\n".join(["What differs from the champion:", "", *items])


def _steps(report: JudgeReport) -> str:
    if not report.steps:
        return ""
    ran = [f"{step.stage} ({step.seconds:.1f} s)" for step in report.steps if step.action == "run"]
    reused = [step.stage for step in report.steps if step.action != "run"]
    parts = [f"ran {', '.join(ran)}" if ran else "", f"reused {', '.join(reused)}" if reused else ""]
    machine = f" Machine: {code(report.machine)}." if report.machine else ""
    causes = [f"{step.stage}: {code(step.reason)}" for step in report.steps if _is_cause(step)]
    why = f" Why, compared with the last run of this pipeline's state: {'; '.join(causes)}." if causes else ""
    return f"Steps: {'; '.join(filter(None, parts))}.{why}{machine}"


def _is_cause(step: ReportedStep) -> bool:
    """Whether a step ran for a reason of its own, and not because a step before it did."""
    derived = re.fullmatch(r"(\w+, )*(\w+ and )?\w+ (changed|(is|are) stale)", step.reason)
    return step.action == "run" and derived is None and step.reason not in ("first run", "")


def _warnings(report: JudgeReport) -> str:
    return "\n".join(f"- {code(truncate(warning, _LONG))}" for warning in report.warnings)


def _next(report: JudgeReport) -> str:
    if report.exit_code == 0:
        return ""
    command = f"mlkit ci judge {shell_word(report.path)} --out /tmp/mlkit-out"
    return f"On your machine: {code(command)}" + (f"\n\nTo do: {code(report.hint, _LONG)}" if report.hint else "")


_SECTIONS: dict[str, Callable[[JudgeReport], str]] = {
    "error": _error,
    "gates": lambda report: "",  # composed with what was dropped
    "intervals": _strips,
    "champion": _comparisons,
    "metrics": _metrics,
    "changes": _changes,
    "steps": _steps,
    "warnings": _warnings,
    "next": _next,
}
_DROPPED = ("steps", "warnings", "intervals", "metrics", "passed", "changes", "champion")
"""What a comment that is too long loses, first to last. Gates that FAILED are never among them."""


def interval(measurement: ReportedMeasurement) -> str:
    """A number with its interval.

    >>> interval(ReportedMeasurement(value=0.7412, low=0.7101, high=0.7703))
    '0.7412 [0.7101, 0.7703]'
    """
    unit = f" {_plain(measurement.unit)}" if measurement.unit in ("ms", "us", "µs", "s", "%") else ""
    return f"{measurement.value:.4g}{unit} [{measurement.low:.4g}, {measurement.high:.4g}]"


def code(text: str, limit: int = _CELL) -> str:
    """A text as a code span for a table's cell: nothing in it is Markdown, HTML, a mention or a cell's end.

    >>> code("a|b `c` @all <img>")
    "`a\\\\|b 'c' @all <img>`"
    >>> code("")
    ''
    """
    plain = truncate(_plain(text), limit).strip()
    return "`" + plain.replace("\\", "/").replace("|", "\\|") + "`" if plain else ""


def _plain(text: str) -> str:
    """A text on one line, without backticks, control characters and marks that turn the direction of text."""
    return printable_line(text).replace("`", "'")
