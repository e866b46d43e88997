"""A run and a plan as small HTML fragments, for notebooks: ``_repr_html_`` of what the library returns.

Styled inline and with the notebook's own text colour, so that light and dark themes both read well. No vendor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from mlflowkit.report import wording
from mlflowkit.values import Outcome, RunRecord, Step, Verdict

CELL = "text-align:left;padding:2px 12px 2px 0;vertical-align:top"
NUMBER = "text-align:right;padding:2px 12px 2px 0;vertical-align:top;font-variant-numeric:tabular-nums"
MARKS = {Outcome.PASSED: "✓", Outcome.FAILED: "✕", Outcome.INCONCLUSIVE: "?", Outcome.ERROR: "!"}


def render_summary(record: RunRecord) -> str:
    """A run in a few lines: status, steps, verdicts, metrics, and where bundle, service and report are.

    >>> from mlflowkit.values import Lineage
    >>> lineage = Lineage("", False, "", "")
    >>> run = RunRecord("r1", "lending", "lending.yaml", "failed", 0.0, 1.5, lineage, {}, error="no <rows>")
    >>> render_summary(run)
    '<div class="mlkit-run"><p><b>lending</b> · run <code>r1</code> · failed · 1.5 s</p><p>no &lt;rows&gt;</p></div>'
    """
    took = wording.seconds(None if record.finished is None else record.finished - record.started)
    run = f"<b>{escape(record.name)}</b> · run <code>{escape(record.run)}</code>"
    parts = [f"<p>{run} · {escape(record.status)} · {took}</p>"]
    if record.error:
        parts.append(f"<p>{escape(record.error)}</p>")
    parts += [_steps_line(record), _verdicts(record), _metrics(record), _places(record)]
    return f'<div class="mlkit-run">{"".join(parts)}</div>'


def render_plan(steps: Sequence[Step]) -> str:
    """A plan as a table: stage, action, reason, fingerprint.

    >>> render_plan(())
    '<div class="mlkit-plan"><p>0 of 0 steps to run</p></div>'
    """
    to_run = sum(step.action == "run" for step in steps)
    rows = [
        (_cell(step.stage), _cell(step.action), _cell(step.reason), _code(wording.short(step.fingerprint)))
        for step in steps
    ]
    head = f"<p>{to_run} of {len(steps)} steps to run</p>"
    return f'<div class="mlkit-plan">{head}{_table(("Step", "Action", "Why", "Fingerprint"), rows)}</div>'


def _steps_line(record: RunRecord) -> str:
    if not record.steps:
        return ""
    words = [f"{escape(step.stage)} {_step_word(step.action, step.status)}" for step in record.steps]
    return f"<p>{' · '.join(words)}</p>"


def _step_word(action: str, status: str) -> str:
    if status != "done":
        return f"<b>{escape(status)}</b>"
    return "ran" if action == "run" else "reused"


def _verdicts(record: RunRecord) -> str:
    found = [verdict for step in record.steps if step.result is not None for verdict in step.result.verdicts]
    rows = [(_cell(_gate(one)), _cell(f"{MARKS[one.outcome]} {one.outcome}"), _cell(one.message)) for one in found]
    return _table(("Gate", "Verdict", "In words"), rows)


def _gate(verdict: Verdict) -> str:
    words = f"{verdict.gate} ({verdict.slice})" if verdict.slice and verdict.slice not in verdict.gate else verdict.gate
    return words if verdict.blocking else f"{words}, does not block"


def _metrics(record: RunRecord) -> str:
    rows = [
        (_cell(step.stage), _cell(name), _cell(wording.number(value), NUMBER))
        for step in record.steps
        if step.result is not None
        for name, value in step.result.metrics.items()
    ]
    return _table(("Step", "Metric", "Value"), rows)


def _places(record: RunRecord) -> str:
    blessed = "blessed" if record.blessed else "not blessed"
    places = [
        f"bundle <code>{escape(wording.short(record.bundle))}</code> ({blessed})" if record.bundle else "",
        f"endpoint <code>{escape(record.endpoint)}</code>" if record.endpoint else "",
        f"report <code>{escape(record.report)}</code>" if record.report else "",
    ]
    said = " · ".join(place for place in places if place)
    return f"<p>{said}</p>" if said else ""


def _cell(text: str, style: str = CELL) -> str:
    return f'<td style="{style}">{escape(text)}</td>'


def _code(text: str) -> str:
    return f'<td style="{CELL}"><code>{escape(text)}</code></td>'


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    if not body:
        return ""
    head = "".join(f'<th scope="col" style="{CELL}">{escape(name)}</th>' for name in names)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
