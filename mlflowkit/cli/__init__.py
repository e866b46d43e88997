"""mlkit: one small module a command."""

from __future__ import annotations


def main() -> None:
    """Entry point of ``mlkit``; exits with the code of the error tree."""
    from mlflowkit.cli.app import main as run

    run()
