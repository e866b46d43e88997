"""mlkit: one small module a command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of ``mlkit``; exits with the code of the error tree."""
    from mlflowkit.cli.quick import nothing_to_do

    code = nothing_to_do(sys.argv[1:])
    if code is not None:
        raise SystemExit(code)
    # pydantic looks through every installed distribution for plugins when its first model is made: 30 ms for none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from mlflowkit.cli.app import main as run

    run()
