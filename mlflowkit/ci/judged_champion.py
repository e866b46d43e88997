"""The champion that a pipeline's gates compare with: a blessed bundle from outside of the state folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from mlflowkit.bundle import open_bundle
from mlflowkit.pipeline.plan import ChampionState
from mlflowkit.system.files import make_folder
from mlflowkit.wiring import Wiring


def import_champion(state: Path, bundle: str | os.PathLike[str] | None, required: bool) -> ChampionState:
    """Copy a blessed bundle into the state's store, verified before and after; without one, the state of having none.

    Raises BundleError when the bundle is altered or not blessed, and StoreError when the store cannot be written.
    """
    if bundle is None:
        return ChampionState(required=required)
    source = Path(bundle).expanduser().resolve()
    open_bundle(source, blessed=True)
    make_folder(state)
    with tempfile.TemporaryDirectory(dir=state, prefix="champion-") as folder:
        copied = Path(folder) / "package"
        shutil.copytree(source, copied / "bundle", symlinks=True)
        opened = open_bundle(copied / "bundle", blessed=True)  # what is compared with is what was verified
        published = Wiring(state).objects.publish(copied)
    return ChampionState(opened.manifest.identity, published.digest, required)
