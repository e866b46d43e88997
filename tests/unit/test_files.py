"""Files are replaced atomically, and errors of the disk name the file itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflowkit.cli.output_file import write_text
from mlflowkit.errors import MlkitError, ServiceError, StoreError, UsageError
from mlflowkit.service_state.records import ServiceFiles, write_json
from mlflowkit.system.files import replace_file
from tests.support.file_limit import failing_writes


@pytest.mark.parametrize("durable", [True, False])
def test_a_refused_file_leaves_the_old_one(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "page.html"
    replace_file(path, b"old")
    with failing_writes(), pytest.raises(StoreError, match=r"/page\.html cannot be written: File too large"):
        replace_file(path, b"new" * 1000, durable=durable)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_each_package_raises_its_own_error(tmp_path: Path) -> None:
    service = ServiceFiles(tmp_path)
    raised: list[type[MlkitError]] = []
    for write in (
        lambda: write_text(tmp_path / "schema.json", "x" * 3000),
        lambda: write_json(tmp_path / "table.json", "x" * 3000),
        lambda: service.write_metrics_page("one", b"x" * 3000),
    ):
        with failing_writes(), pytest.raises(MlkitError, match="cannot be written") as caught:
            write()
        raised.append(type(caught.value))
    assert raised == [UsageError, ServiceError, ServiceError]


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(StoreError, match="notes is a file where a folder is needed"):
        replace_file(tmp_path / "notes" / "a.txt", b"a")
    assert (tmp_path / "notes").read_text() == "mine"
