"""A state folder that was copied or moved points at what lies in it, not at the place where it was made."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mlflowkit.cli.app import main
from mlflowkit.service_state.records import Desired, GatewaySettings, Proposal, ServiceFiles
from mlflowkit.values import RoutingTable, Variant
from tests.support.pipeline_world import PipelineWorld, lay_out


def table_of(*bundles: Path) -> RoutingTable:
    variants = [Variant(f"v{number}", "1", "d" * 64, str(path)) for number, path in enumerate(bundles)]
    return RoutingTable("lending", 1, tuple(variants))


def test_a_copied_table_names_the_bundles_beside_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    inside, elsewhere = first / "objects" / ("a" * 64) / "bundle", tmp_path / "elsewhere" / ("b" * 64) / "bundle"
    for folder in (inside, elsewhere):
        folder.mkdir(parents=True)
    files = ServiceFiles(first / "services" / "lending")
    files.write_desired(Desired(1, True, GatewaySettings("lending")))
    files.write_table(table_of(inside, elsewhere))
    files.write_proposal(Proposal("ticket", table_of(inside)))
    assert files.table() == table_of(inside, elsewhere)
    shutil.copytree(first, second)
    own = second / "objects" / ("a" * 64) / "bundle"
    copy = ServiceFiles(second / "services" / "lending")
    assert copy.table() == table_of(own, elsewhere), "a bundle outside the folder stays where it is"
    assert copy.proposal() == Proposal("ticket", table_of(own))
    shutil.rmtree(own)
    assert copy.table() == table_of(inside, elsewhere), "what the copy lacks is not invented"


def test_a_copied_state_reports_its_own_bundle_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(tmp_path)
    world, state = PipelineWorld(tmp_path), tmp_path / ".mlkit"
    run = world.run().run
    copy = tmp_path / "copy"
    shutil.copytree(state, copy)
    report = copy / "runs" / run / "report.html"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("<html>")
    original = state / "runs" / run / "report.html"
    with world.open_journal() as journal:
        record = replace(journal.run(run), report=str(original))
    from mlflowkit.pipeline.run_summary import summarize

    assert summarize(record, copy)["report"] == str(report)
    assert str(summarize(record, copy)["bundle"] or copy).startswith(str(copy))
    with pytest.raises(SystemExit):
        main(["runs", "--state", str(copy), "--json"])
    assert json.loads(capsys.readouterr().out)


def test_no_receipt_of_the_original_counts_in_a_copy(tmp_path: Path) -> None:
    from mlflowkit.pipeline.noop_cache import NoopKey

    def receipt(state: Path) -> str:
        return NoopKey(tmp_path / "recipe.yaml", (), "deploy", state).path.name

    (tmp_path / "link").symlink_to(tmp_path / "state")
    assert receipt(tmp_path / "copy") != receipt(tmp_path / "state")
    assert receipt(tmp_path / "link") == receipt(tmp_path / "state")
