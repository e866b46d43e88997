"""mlkit down: stop services."""

from __future__ import annotations

from typing import Annotated

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, state_folder


@app.command()
def down(
    service: Annotated[
        str | None, typer.Argument(metavar="[SERVICE]", help="One service; without it all, and the local Ray.")
    ] = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Stop one service, or all and the local Ray that was started for them."""
    from mlflowkit.wiring import Wiring

    stopped = list(Wiring(state_folder(state)).platform.down(service))
    if json:
        emit_json({"stopped": stopped})
    else:
        echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was up")
    return 0
