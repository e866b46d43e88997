"""The commands of a delivery plan as shell text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from mlflowkit.delivery.delivery_plan import DeliveryStep

_VARIABLE = re.compile(r"^\$[A-Z_]+(?:/[A-Za-z0-9._/-]+)?$")
WORLD_FAILED = 3
"""The exit code after which a step may be run again."""


def command_line(command: Sequence[str]) -> str:
    """A command as one line of a POSIX shell. A word that begins with a variable keeps it, in double quotes.

    >>> command_line(("mlkit", "ci", "comment", "--from", "$MLKIT_OUT/report.json", "a b"))
    'mlkit ci comment --from "$MLKIT_OUT/report.json" \\'a b\\''
    """
    return " ".join(f'"{word}"' if _VARIABLE.match(word) else shlex.quote(word) for word in command)


def step_script(step: DeliveryStep, *, record: str = "") -> str:
    """A step as a script of a POSIX shell: its command, run again after failures of the world as often as it may be.

    ``record`` is a line that is run with the exit code in ``$code``. The script ends with 0 for the exit codes that do
    not fail the pipeline, else with the command's.
    """
    line = command_line(step.command)
    if not step.retries and not record and step.exit_codes == (0,):
        return f"{line}\n"
    lines = ["code=0", f"{line} || code=$?"]
    if step.retries:
        delays = " ".join(str(10 * 3**attempt) for attempt in range(step.retries))
        lines = [
            f"for delay in {delays} last; do",
            "  code=0",
            f"  {line} || code=$?",
            f'  if [ "$code" -ne {WORLD_FAILED} ] || [ "$delay" = last ]; then break; fi',
            '  sleep "$delay"',
            "done",
        ]
    lines += [record] if record else []
    neutral = [str(code) for code in step.exit_codes if code]
    if neutral:
        lines.append(f'case "$code" in {"|".join(neutral)}) exit 0 ;; esac  # INCONCLUSIVE: this job stays green')
    return "\n".join([*lines, 'exit "$code"', ""])
