"""mlkit: one small module a command."""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Entry point of ``mlkit``; exits with the code of the error tree."""
    _open_closed()
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


def _open_closed() -> None:
    """Where a caller has closed stdin, stdout or stderr (``2>&-``), nothing: else Python has no such stream, and the
    next file that is opened gets its number, and with it what native libraries say.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115  (for as long as we run)


def _main() -> None:
    from mlflowkit.cli.fast_path import nothing_to_do

    code = nothing_to_do(sys.argv[1:])
    if code is not None:
        raise SystemExit(code)
    # pydantic looks through every installed distribution for plugins when its first model is made: 30 ms for none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from mlflowkit.cli.app import main as run

    run()
