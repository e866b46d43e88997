"""mlkit: one small module a command."""

from __future__ import annotations

import json
import os
import sys

from mlflowkit.system.files import use_private_umask


def main() -> None:
    """Entry point of ``mlkit``; exits with the code of the error tree."""
    _open_missing_streams()
    use_private_umask()
    try:
        _main()
    except KeyboardInterrupt:  # before a command could handle it: nothing has started
        from mlflowkit.errors import InterruptedRunError

        error = InterruptedRunError("interrupted", hint="run the same command again")
        if "--json" in sys.argv:
            sys.stdout.write(json.dumps({"error": error.to_json()}) + "\n")
        else:
            sys.stderr.write(f"error: {error.message}\nhint: {error.hint}\n")
        raise SystemExit(error.exit_code) from None


def _open_missing_streams() -> None:
    """Open /dev/null for each standard stream that the caller closed (``2>&-``).

    Otherwise the next opened file would get its descriptor, and with it the output of native libraries.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115  (open until exit)


def _main() -> None:
    from mlflowkit.cli.fast_path import nothing_to_do

    code = nothing_to_do(sys.argv[1:])
    if code is not None:
        raise SystemExit(code)
    # Without this, pydantic searches all installed distributions for plugins: 30 ms.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from mlflowkit.cli.app import main as run

    run()
