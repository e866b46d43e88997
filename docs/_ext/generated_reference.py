"""Writes the generated pages of the reference before Sphinx reads its sources.

Each page is made from the code itself (the JSON Schema of recipes, the typer application, the metric families, the
error tree), so the reference cannot disagree with what is installed. The pages are not in git.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "mlflowkit"
Schema = Mapping[str, Any]


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir) / "reference" / "generated"))
    return {"parallel_read_safe": True}


def write_pages(folder: Path) -> None:
    """Write every generated page; a page that did not change keeps its time, so Sphinx does not read it again."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "recipe.md": recipe_page(),
        "cli.md": cli_page(),
        "metrics.md": metrics_page(),
        "errors.md": errors_page(),
        "files.md": files_page(),
        "http.md": http_page(),
    }
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------- recipe


def recipe_page() -> str:
    """Every section and key of a recipe, from its JSON Schema."""
    from mlflowkit.recipe.jsonschema import schema as recipe_schema

    schema = recipe_schema()
    definitions: Schema = schema["$defs"]
    lines = [
        "# Recipe keys",
        "",
        "Generated from the JSON Schema that `mlkit schema` prints. A key without a default is required. Unknown keys",
        "are refused with the nearest valid name.",
        "",
        "## Top level",
        "",
        *_keys(schema),
    ]
    for name in sorted(definitions):
        definition = definitions[name]
        if "properties" not in definition:
            continue
        lines += ["", f"## {name}", "", _one_paragraph(definition.get("description", "")), "", *_keys(definition)]
    return "\n".join(lines) + "\n"


def _keys(definition: Schema) -> Iterator[str]:
    required = set(definition.get("required", ()))
    yield "| key | type | default | description |"
    yield "|---|---|---|---|"
    for key, value in definition["properties"].items():
        default = "*required*" if key in required else f"`{json.dumps(value['default'])}`" if "default" in value else ""
        text = _cell(_one_paragraph(value.get("description", "")))
        yield f"| `{key}` | {_cell(_type(value))} | {_cell(default)} | {text} |"


def _type(value: Schema) -> str:
    """A JSON Schema type in words, with links to the sections that it names."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return ", ".join(f"`{json.dumps(item)}`" for item in value["enum"])
    for key in ("anyOf", "oneOf"):
        if key in value:
            return " or ".join(dict.fromkeys(_type(item) for item in value[key]))
    if value.get("type") == "array":
        return f"list of {_type(value.get('items', {})) or 'anything'}"
    bounds = [
        f"{sign} {value[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in value
    ]
    return " ".join([str(value.get("type", "anything")), *bounds])


# ------------------------------------------------------------------------------------------------------- command line


def cli_page() -> str:
    """Every command with its arguments and options, from the typer application."""
    import importlib

    import typer.main

    from mlflowkit.cli.app import COMMANDS, app

    for command in COMMANDS:
        importlib.import_module(f"mlflowkit.cli.commands.{command}")
    group = typer.main.get_command(app)
    lines = [
        "# Command line",
        "",
        "Generated from the commands themselves. Every reading command takes `--json`: one document on stdout with",
        "stable keys, progress and warnings on stderr. Exit codes: see [Errors and exit codes](errors.md).",
    ]
    for name in COMMANDS:
        lines += _command(group.commands[name], f"mlkit {name}", 2)  # type: ignore[attr-defined]
    return "\n".join(lines) + "\n"


def _command(command: Any, path: str, level: int) -> list[str]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [
        parameter
        for parameter in command.params
        if parameter.param_type_name == "option" and "--help" not in parameter.opts and not parameter.hidden
    ]
    usage = " ".join([path, *(_usage(parameter) for parameter in arguments), *(["[OPTIONS]"] if options else [])])
    summary = inspect.cleandoc(command.help or "").split("\f")[0]
    lines = ["", f"{'#' * level} {path}", "", "```", usage, "```", "", summary, ""]
    if options:
        lines += ["| option | description |", "|---|---|"]
        lines += [f"| {_cell(_option(option))} | {_cell(option.help or '')} |" for option in options]
    for name, child in getattr(command, "commands", {}).items():
        lines += _command(child, f"{path} {name}", level + 1)
    return lines


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()).replace("...", "").strip("[]{}")
    text = f"{name}..." if argument.nargs == -1 else name
    return text if argument.required else f"[{text}]"


def _option(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    return f"`{', '.join(option.opts)}{value}`"


# ------------------------------------------------------------------------------------------------------------ metrics


def metrics_page() -> str:
    """The Prometheus metrics of gateways, rollouts and monitoring, read from the code that makes their families."""
    from mlflowkit.monitoring.export.monitor_metrics import COUNTERS, GAUGES

    lines = ["# Prometheus metrics", "", "Counters are exposed with the suffix `_total`.", ""]
    for title, relative in (
        ("Gateway (`GET /metrics` of the service)", "serving/inference/gateway_metrics.py"),
        ("Rollouts (`GET /metrics` of the admin server)", "rollout/admin/rollout_metrics.py"),
    ):
        lines += [f"## {title}", "", "| metric | description |", "|---|---|"]
        lines += [f"| `{name}` | {_cell(text)} |" for name, text in _families(PACKAGE / relative)]
        lines.append("")
    lines += [
        "## Monitoring (`GET /metrics` of the admin server)",
        "",
        "| metric | labels | description |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {', '.join(labels)} | {_cell(text)} |"
        for name, (labels, text) in sorted({**GAUGES, **COUNTERS}.items())
    ]
    lines.append("")
    return "\n".join(lines)


def _families(path: Path) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        texts = [
            argument.value
            for argument in (node.args if isinstance(node, ast.Call) else [])
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        ]
        if texts and texts[0].startswith("mlkit_"):
            found.setdefault(texts[0], texts[1] if len(texts) > 1 else "")
    return sorted(found.items())


# ------------------------------------------------------------------------------------------------- errors, files, HTTP


def errors_page() -> str:
    """The error tree with its exit codes, from the docstring of mlflowkit.errors."""
    import mlflowkit.errors

    text = inspect.cleandoc(mlflowkit.errors.__doc__ or "")
    tree = text.split("::\n", 1)[1]
    block = inspect.cleandoc(tree).split("\n\n")[0]
    return "\n".join(
        [
            "# Errors and exit codes",
            "",
            "Every error has a message (what is wrong, where, what is allowed), a hint (the next command to type) and",
            'an exit code. With `--json` it is printed as `{"error": {"code", "kind", "message", "hint"}}`.',
            "",
            "| code | meaning |",
            "|---|---|",
            "| 0 | done |",
            "| 1 | a gate FAILED |",
            "| 2 | the recipe or the command is wrong |",
            "| 3 | an environment failure: data, engine, network, disk |",
            "| 4 | a gate was INCONCLUSIVE and blocks |",
            "| 130 | interrupted; the same command resumes |",
            "",
            "```text",
            block,
            "```",
            "",
        ]
    )


def files_page() -> str:
    """The files of a service, from the docstring of mlflowkit.service_state.records."""
    import mlflowkit.service_state.records as records

    return "# Files of a service\n\n```text\n" + inspect.cleandoc(records.__doc__ or "") + "\n```\n"


def http_page() -> str:
    """The HTTP interface, from the OpenAPI document of a gateway."""
    from mlflowkit.service_state.records import GatewaySettings
    from mlflowkit.serving.http.openapi import openapi

    document = openapi("lending", None, GatewaySettings(service="lending"))
    lines = [
        "# HTTP interface",
        "",
        "Generated from the routes of the gateway. `GET /openapi.json` of a running service is",
        "the same in full, with the signature of its champion.",
        "",
    ]
    lines += ["| method | path | what it does |", "|---|---|---|"]
    lines += [
        f"| {method.upper()} | `{path}` | {_cell(operation.get('summary', ''))} |"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method in ("get", "post")
    ]
    return "\n".join(lines) + "\n"


def _one_paragraph(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
