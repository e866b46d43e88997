"""The docker target: what an image is made of, and what never goes into one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from mlflowkit.delivery.targets import target
from mlflowkit.testing import delivery_plans
from tests.support.tools import require_tool

PLANS = delivery_plans()


@pytest.mark.parametrize("plan", PLANS)
def test_images_are_pinned_unprivileged_and_start_without_a_shell(plan: str) -> None:
    files = target("docker").render(PLANS[plan])
    texts = [text for path, text in files.items() if path.endswith(".Dockerfile")]
    assert len(texts) == 3
    for text in texts:
        stages = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
        assert len(stages) == 2
        assert all(re.fullmatch(r"[^@\s]+@sha256:[0-9a-f]{64}", base) for base in stages)
        final = text.rpartition("\nFROM ")[2]
        assert re.findall(r"^USER (.*)$", final, re.MULTILINE) == ["65532:0"]
        forms = re.findall(r"^(?:RUN|CMD|ENTRYPOINT) (.*)$", text, re.MULTILINE)
        assert forms
        assert all(form.startswith("[") for form in forms)
        assert '"install", "--no-cache-dir"' not in final
        assert "ADD " not in text
        assert "http" not in final


def test_only_the_lock_goes_to_the_builder_and_the_recipe_for_training() -> None:
    files = target("docker").render(PLANS["pipeline"])
    for role in ("train", "serve", "monitor"):
        lines = files[f"deploy/docker/{role}.Dockerfile.dockerignore"].splitlines()
        assert lines[1] == "*"
        included = [line for line in lines if line.startswith("!")]
        assert len(included) == (1 if role != "train" else len(included))
        assert lines.index("**/.env*") > max(map(lines.index, included))
        copied = re.findall(r"^COPY (?!--from)(\S+)", files[f"deploy/docker/{role}.Dockerfile"], re.MULTILINE)
        assert len(copied) == (2 if role == "train" else 1)


@pytest.mark.delivery
@pytest.mark.parametrize("plan", PLANS)
def test_hadolint_has_no_finding(plan: str, tmp_path: Path) -> None:
    hadolint = require_tool("hadolint")
    for path, text in target("docker").render(PLANS[plan]).items():
        if path.endswith(".Dockerfile"):
            file = tmp_path / Path(path).name
            file.write_text(text)
            process = subprocess.run([hadolint, str(file)], capture_output=True, text=True, timeout=120, check=False)
            assert (process.returncode, process.stdout) == (0, "")
