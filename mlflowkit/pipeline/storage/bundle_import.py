"""A blessed bundle from outside of the state folder, as the champion that gates compare with."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from mlflowkit.bundle import open_bundle
from mlflowkit.ports import ObjectStore
from mlflowkit.system.files import make_folder


def import_bundle(state: Path, store: ObjectStore, bundle: Path) -> tuple[str, str]:
    """Copy a blessed bundle into the state's store, verified before and after. Returns its identity and the digest of
    its folder in the store.

    Raises BundleError when the bundle is altered or not blessed, and StoreError when the store cannot be written.
    """
    open_bundle(bundle, blessed=True)
    make_folder(state)
    with tempfile.TemporaryDirectory(dir=state, prefix="bundle-") as folder:
        package = Path(folder) / "package"
        shutil.copytree(bundle, package / "bundle", symlinks=True)
        imported = open_bundle(package / "bundle", blessed=True)  # what is compared with is what was verified
        published = store.publish(package)
    return imported.manifest.identity, published.digest
