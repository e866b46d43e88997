"""mlkit down: stop services."""

from __future__ import annotations

from typing import Annotated

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, print_result, state_folder


@app.command()
def down(
    service: Annotated[
        str | None, typer.Argument(metavar="[SERVICE]", help="One service [default: all, and the local Ray].")
    ] = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Stop one service, or all and the local Ray."""
    from mlflowkit.wiring import Wiring

    stopped = list(Wiring(state_folder(state)).platform.down(service))
    print_result({"stopped": stopped}, f"stopped {', '.join(stopped)}" if stopped else "nothing was up", json)
