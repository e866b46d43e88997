"""The card of a bundle on the Hugging Face Hub: README.md with a header in YAML, the same for the same bundle."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from mlflowkit.bundle import Bundle
from mlflowkit.errors import BundleError
from mlflowkit.system.text import parse_json
from mlflowkit.values import Json, Verdict

MARK = "<!-- Written by mlkit: the next push replaces this file. -->"
EVALUATION, VERDICTS = "evidence/evaluation.json", "evidence/verdicts.json"
_DATASET = re.compile(r"hf://datasets/([\w.-]+(?:/[\w.-]+)?)")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~])")


def model_card(bundle: Bundle, reference: str, *, license: str | None, withheld: Sequence[str]) -> str:
    """The card of a verified bundle that is pulled by ``reference``. Raises BundleError for evidence that is damaged.

    ``withheld`` are the files of evidence that are not published.
    """
    try:
        metrics = parse_json(bundle.read(EVALUATION))["metrics"] if bundle.has(EVALUATION) else {}
        verdicts = [
            Verdict.from_json(item) for item in (parse_json(bundle.read(VERDICTS)) if bundle.has(VERDICTS) else ())
        ]
        rows = [_metric_row(name, measured) for name, measured in metrics.items()]
        header = _header(bundle, license, metrics)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"{bundle.path}: its evidence cannot be read: {type(error).__name__}: {error}"
        raise BundleError(message, hint="mlkit run RECIPE --force evaluate") from error
    name, version = _plain(bundle.manifest.name), bundle.manifest.version
    parts = [
        f"---\n{header}---\n{MARK}\n\n# {name} {version}\n",
        "One ONNX graph with its preprocessing, which passed its gates; a bundle of "
        "[mlflowkit](https://pypi.org/project/mlflowkit/).\n",
        f"```bash\nmlkit deploy {reference}\n```\n",
        "## Metrics\n",
        _table(("metric", "value", "interval", "rows", "method"), rows) if rows else "None are published.\n",
        "## Gates\n",
        _table(("verdict", "gate", "measured"), [(str(item.outcome), item.gate, item.message) for item in verdicts])
        if verdicts
        else "The recipe has none.\n",
        "## Lineage\n",
        _table(("", ""), _lineage(bundle)),
    ]
    if withheld:
        listed = ", ".join(f"`{item}`" for item in withheld)
        parts += [
            "## Not published\n",
            f"Evidence that holds values of the data's rows: {listed}. Its digests are part of the manifest.\n",
        ]
    return "\n".join(parts)


def _header(bundle: Bundle, license: str | None, metrics: Json) -> str:
    task = f"tabular-{bundle.signature.task}"
    manifest = bundle.manifest
    dataset = _DATASET.match(manifest.data_source)
    source = {"type": dataset[1] if dataset else "tabular", "name": manifest.data_source or manifest.data_version[:12]}
    results = [{"type": name, "value": float(item["value"]), "name": name} for name, item in metrics.items()]
    header: dict[str, Any] = {
        **({"license": license} if license else {}),
        "library_name": "mlflowkit",
        "pipeline_tag": task,
        "tags": ["mlflowkit", "onnx", task],
        **({"datasets": [dataset[1]]} if dataset else {}),
    }
    if results:
        result = {"task": {"type": task}, "dataset": source, "metrics": results}
        header["model-index"] = [{"name": manifest.name, "results": [result]}]
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=1000)
    if yaml.safe_load(text) != json.loads(json.dumps(header, allow_nan=False)):
        raise ValueError("the header of the card is not what YAML reads")
    return text


def _metric_row(name: str, measured: Json) -> Sequence[str]:
    unit = f" {measured['unit']}" if measured.get("unit") else ""
    interval = f"{measured['low']:.4g} to {measured['high']:.4g} ({100 * measured['confidence']:g} %)"
    return name, f"{measured['value']:.4g}{unit}", interval, f"{measured['samples']:,}", measured.get("method") or ""


def _lineage(bundle: Bundle) -> list[Sequence[str]]:
    manifest, blessing = bundle.manifest, bundle.blessing
    commit = manifest.git_commit + (" (with uncommitted changes)" if manifest.git_dirty else "")
    values = {
        "identity": manifest.identity,
        "git commit": commit,
        "git tree": manifest.git_tree,
        "data source": manifest.data_source,
        "data commit": manifest.data_commit,
        "data version": manifest.data_version,
        "recipe": manifest.recipe_digest,
        "policy": manifest.policy,
        "blessed by run": blessing.run if blessing is not None else "",
    }
    return [(name, value) for name, value in values.items() if value]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_plain(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _plain(text: str) -> str:
    """Text as Markdown that shows it, in one line.

    >>> _plain("a|b <img>")
    'a\\\\|b \\\\<img\\\\>'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))
