"""The pins of generated files: their form, and that none is of a runtime that runners no longer have."""

from __future__ import annotations

import re
import warnings
from datetime import date, timedelta

from mlflowkit.delivery import pins

COMPROMISED = {
    "0e58ed8671d6b60d0890c21b07f8835ace038e67",  # tj-actions/changed-files, March 2025 (CVE-2025-30066)
}
OLD = timedelta(days=180)


def test_every_action_is_a_commit_with_a_tag_and_a_runtime_that_is_supported() -> None:
    assert len(pins.actions()) >= 5
    for pin in pins.actions():
        assert re.fullmatch(r"[0-9a-f]{40}", pin.sha), pin.name
        assert re.fullmatch(r"v\d+\.\d+\.\d+", pin.tag), pin.name
        assert pin.runtime == "node24", pin.name
        assert pin.sha not in COMPROMISED
        assert pin.uses == f"{pin.name}@{pin.sha}"


def test_the_base_image_is_a_digest() -> None:
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}", pins.python_image())


def test_pins_are_looked_at_again_in_time() -> None:
    for pin in pins.actions():
        if date.today() - pin.date > OLD:
            warnings.warn(f"{pin.name} {pin.tag} was verified on {pin.date}: look for a newer one", stacklevel=1)
