"""mlkit: one small module a command."""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Entry point of ``mlkit``; exits with the code of the error tree."""
    try:
        _main()
    except KeyboardInterrupt:  # before the commands are there to see it: nothing was begun
        from mlflowkit.errors import InterruptedRunError

        error = InterruptedRunError("interrupted", hint="run the same command again")
        if "--json" in sys.argv:
            sys.stdout.write(json.dumps({"error": error.to_json()}) + "\n")
        else:
            sys.stderr.write(f"error: {error.message}\nhint: {error.hint}\n")
        raise SystemExit(error.exit_code) from None


def _main() -> None:
    from mlflowkit.cli.quick import nothing_to_do

    code = nothing_to_do(sys.argv[1:])
    if code is not None:
        raise SystemExit(code)
    # pydantic looks through every installed distribution for plugins when its first model is made: 30 ms for none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from mlflowkit.cli.app import main as run

    run()
