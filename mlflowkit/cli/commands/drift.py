"""mlkit drift: how far two tables are apart, or a file from what a model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, note, state_folder
from mlflowkit.errors import UsageError

if TYPE_CHECKING:
    from mlflowkit.bundle import Bundle
    from mlflowkit.scoring.table_drift import DriftReport

TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json", ".gz", ".bz2", ".zst")
MAX_PASSED = 12
"""Findings that passed that are printed; more are counted."""


@app.command()
def drift(
    first: Annotated[str, typer.Argument(metavar="A", help="A table (.csv, .parquet, .jsonl), a recipe or a service.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The table to compare with it.")],
    by: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Compare by its values, too.")] = None,
    unit: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Rows with one value are one observation: a day, a user.")
    ] = None,
    margin: Annotated[float, typer.Option(min=0, max=1, help="A distance that is no harm.")] = 0.1,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page (.html).")] = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Compare two tables column by column, or a table with what a model was trained on.

    Exits with 0 where every column is surely within the margin, 1 where one is surely beyond it or cannot be compared,
    4 where the rows are too few to tell.
    """
    from mlflowkit import api

    if out is not None and out.suffix != ".html":
        raise UsageError(f"--out {out}: the page is HTML", hint=f"--out {out.with_suffix('.html')}")
    table = Path(first).suffix in TABLES
    reference = first if table else _bundle(first, state)
    report = api.drift(reference, second, by=by or (), unit=unit, margin=margin)
    if out is not None:
        from mlflowkit.cli.output_file import write_text
        from mlflowkit.report.drift_page import render

        write_text(out, render(report))
    if json:
        emit_json(report.to_json())
    else:
        _print(report)
        if out is not None:
            note(f"page: {out}")
    return report.exit_code


def _bundle(name: str, state: Path | None) -> Bundle:
    """The bundle of a service's champion, or of a recipe by its file or name."""
    from mlflowkit.bundle import open_bundle
    from mlflowkit.cli.score_file import resolve_bundle
    from mlflowkit.cli.service_lookup import services_of

    recipe = Path(name) if Path(name).suffix in (".yaml", ".yml") else None
    folder = state_folder(state, recipe)
    if recipe is not None:
        from mlflowkit import api

        return resolve_bundle(folder, api.load(recipe).name)
    for files in services_of(folder):
        table = files.table() if files.service == name else None
        if table is not None:
            return open_bundle(Path(table.champion.bundle))
    return resolve_bundle(folder, name)


def _print(report: DriftReport) -> None:
    rows = [f"{count:,} rows" for count in report.rows]
    if report.unit is not None:
        rows = [f"{row}, {units:,} of {report.unit}" for row, units in zip(rows, report.units, strict=True)]
    echo(f"{report.first} ({rows[0]}) -> {report.second} ({rows[1]}): {report.outcome}")
    for problem in report.shift.problems:
        echo(f"  not compared  {problem.column}: {problem.message}")
    for outcome in ("FAILED", "INCONCLUSIVE"):
        for finding in report.findings:
            if finding.outcome == outcome:
                echo(f"  {outcome:<12}  {finding.message}")
    passed = [finding for finding in report.findings if finding.outcome == "PASSED"]
    shown = [finding for finding in passed if finding.aspect == "distribution"][:MAX_PASSED]
    for finding in shown:
        echo(f"  {'PASSED':<12}  {finding.message}")
    if len(passed) > len(shown):
        echo(f"  and {len(passed) - len(shown)} more PASSED (--json lists them)")
    note(report.assumption)
