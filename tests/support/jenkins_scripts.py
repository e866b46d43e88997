"""The shell scripts of a Jenkinsfile, as Jenkins hands them to the shell."""

from __future__ import annotations

import re

_STAGE_OR_SCRIPT = re.compile(r"stage\('([^']*)'\)|'''((?:\\.|[^\\])*?)'''", re.S)
_ESCAPE = re.compile(r"\\(.)", re.S)


def jenkins_scripts(text: str) -> dict[str, str]:
    """Scripts in order, by the stage that runs each."""
    scripts: dict[str, str] = {}
    stage = ""
    for match in _STAGE_OR_SCRIPT.finditer(text):
        if match[2] is None:
            stage = match[1]
        else:
            assert stage not in scripts, f"two scripts in {stage}"
            scripts[stage] = _ESCAPE.sub(r"\1", match[2])
    return scripts
