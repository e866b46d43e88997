"""Compose a recipe with Hydra: defaults list, config groups, overrides. Nothing is instantiated."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parent / "conf"
_LOCK = threading.Lock()


def compose(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The composed recipe as plain values."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    beside = [folder for folder in (path.parent / "conf", SHIPPED) if folder.is_dir()]
    places = ",".join(f"'file://{folder}'" for folder in beside)
    with _LOCK, initialize_config_dir(str(path.parent), version_base="1.3"):
        config = hydra_compose(path.stem, [*overrides, f"hydra.searchpath=[{places}]"])
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)
    return values
