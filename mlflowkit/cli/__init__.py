"""mlkit: one small module a command."""

from __future__ import annotations

import os


def main() -> None:
    """Entry point of ``mlkit``; exits with the code of the error tree."""
    # pydantic looks through every installed distribution for plugins when its first model is made: 30 ms for none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from mlflowkit.cli.app import main as run

    run()
