"""mlkit engines: build inference engines ahead of time, and list what a store has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mlflowkit.cli.app import JsonOption, app, echo, emit_json
from mlflowkit.errors import UsageError

ShapeRange = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

StoreOption = Annotated[
    Path | None,
    typer.Option(envvar="MLKIT_ENGINES", metavar="DIR", help="Engine store [default: ~/.cache/mlflowkit/engines]."),
]
_commands = typer.Typer(
    name="engines",
    help="Build inference engines ahead of time, and list the existing ones.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.add_typer(_commands)


@_commands.command()
def build(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file, or the folder of a bundle.")],
    target: Annotated[
        list[str], typer.Option(metavar="CAPABILITY", help="Compute capability, such as 89; repeatable.")
    ],
    rows: Annotated[
        str, typer.Option(metavar="LEAST,USUAL,MOST", help="Rows of a request, where they are not fixed.")
    ] = "1,32,1024",
    shape: Annotated[
        list[str] | None, typer.Option(metavar="INPUT=A,B,C", help="An input's shapes, such as ids=1x8,8x64,32x128.")
    ] = None,
    runtime: Annotated[
        Literal["tensorrt", "tensorrt-rtx"],
        typer.Option(help="tensorrt-rtx needs no GPU to build; tensorrt builds on the GPU that runs it."),
    ] = "tensorrt-rtx",
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="For later versions of TensorRT too (tensorrt only).")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Build a model's engine for each target that the store lacks.

    Precision is the graph's own: export it as FP16 or INT8 first.
    """
    from mlflowkit.graphs.engine_store import default_store
    from mlflowkit.wiring import Wiring

    folder = store or default_store()
    file = model / "model.onnx" if model.is_dir() else model
    shapes = dict(_shape(text) for text in shape or ())
    builder = Wiring(folder).engine_builder(_numbers(rows, ","), shapes, version_compatible=version_compatible)
    engines = [
        _row(file, capability, *builder.build(file, runtime, capability, folder))
        for capability in dict.fromkeys(target)
    ]
    if json:
        emit_json({"store": str(folder), "engines": engines})
    for row in engines if not json else ():
        echo(f"sm{row['target']:<4} {'built' if row['built'] else 'exists'} {row['bytes']:>12,} bytes  {row['path']}")


@_commands.command("list")
def list_(store: StoreOption = None, json: JsonOption = False) -> int:
    """Show the engines of a store with their faults (exit code 3); each is verified."""
    from dataclasses import asdict

    from mlflowkit.graphs.engine_store import EngineStore, default_store

    folder = store or default_store()
    entries = list(EngineStore(folder).entries())
    code = 3 if any(entry.fault for entry in entries) else 0
    if json:
        rows: list[dict[str, Any]] = [
            {"path": str(entry.path), "bytes": entry.size, "fault": entry.fault, "key": entry.key and asdict(entry.key)}
            for entry in entries
        ]
        emit_json({"store": str(folder), "engines": rows})
        return code
    for entry in entries:
        key = entry.key
        label = f"{key.runtime} sm{key.target} graph {key.graph[:12]}" if key else "unknown"
        echo(f"{entry.path.parent.name[:12]}  {label}  {entry.size:,} bytes  {entry.fault}".rstrip())
    if not entries:
        echo(f"no engines in {folder}; `mlkit engines build MODEL.onnx --target 89` makes one")
    return code


def _row(model: Path, target: str, path: Path, built: bool) -> dict[str, Any]:
    return {"model": str(model), "target": target, "built": built, "path": str(path), "bytes": path.stat().st_size}


def _shape(text: str) -> tuple[str, ShapeRange]:
    """Parse ``INPUT=1x8`` or ``INPUT=1x8,8x64,32x128``. Raises UsageError."""
    name, _, ranges = text.partition("=")
    shapes = [tuple(_numbers(shape, "x")) for shape in ranges.split(",")] if name and ranges else []
    if len(shapes) == 1:
        shapes *= 3
    if len(shapes) != 3:
        raise UsageError(f"--shape {text}: not an input and its shapes", hint="--shape ids=1x8,8x64,32x128")
    return name, (shapes[0], shapes[1], shapes[2])


def _numbers(text: str, separator: str) -> list[int]:
    try:
        return [int(part) for part in text.split(separator)]
    except ValueError:
        raise UsageError(
            f"{text!r} are not whole numbers", hint="--rows 1,32,128; --shape ids=1x8,8x64,32x128"
        ) from None
