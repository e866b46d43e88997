"""Rules for ``preprocess``: columns that are of another kind, and settings that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlflowkit.errors import closest_match
from mlflowkit.features.dates.date_terms import DATE_FORM
from mlflowkit.recipe.rule import Problem, RecipeView, Rule

DATES = ("preprocess", "dates")


def _declared(view: RecipeView, wanted: str = "date") -> list[str]:
    """The columns that are declared to be of a kind."""
    return [name for name, kind in view.mapping("data", "columns").items() if kind == wanted]


def _dates(view: RecipeView) -> Iterator[Problem]:
    """Settings of columns that are no dates, and ages since nothing."""
    dates = _declared(view)
    for name, setting in view.mapping(*DATES).items():
        path = (*DATES, name)
        if name not in dates:
            message = f"{name!r} is not declared a date"
            yield Problem(path, message, f"write data.columns: {{{name}: date}}", at_key=True)
        if not isinstance(setting, dict):
            continue
        if setting.get("parts") == [] and not setting.get("cycles") and not setting.get("age"):
            hint = f"write data.columns: {{{name}: ignore}} to leave it out"
            yield Problem((*path, "parts"), f"nothing is left of {name!r}: no parts, cycles or age", hint)
        for key in ("parts", "cycles"):
            for index, part in enumerate(items := view.items(*path, key)):
                if part in items[:index]:
                    yield Problem((*path, key, index), f"{part!r} is listed twice", "remove one")
        yield from _age(view, name, dates)


def _age(view: RecipeView, name: str, dates: list[str]) -> Iterator[Problem]:
    path: tuple[Any, ...] = (*DATES, name, "age", "since")
    since = view.text(*path)
    if since == name:
        yield Problem(path, f"{name!r} since itself is nothing", "name another column, or write a date: '2020-01-01'")
    elif since and since not in dates and not DATE_FORM.fullmatch(since):
        close = closest_match(since, dates)
        hint = (
            f"did you mean {close!r}?" if close else f"write data.columns: {{{since}: date}}, or a date: '2020-01-01'"
        )
        yield Problem(path, f"{since!r} is no date and no column that is declared date", hint)


def _texts(view: RecipeView) -> Iterator[Problem]:
    """Settings of columns that are no free text."""
    texts = _declared(view, "text")
    for name in view.mapping("preprocess", "texts"):
        if name not in texts:
            message = f"{name!r} is not declared a text"
            yield Problem(("preprocess", "texts", name), message, f"write data.columns: {{{name}: text}}", at_key=True)
    for name in view.mapping("data", "orders"):
        if name in texts:
            message = f"{name!r} is declared text, which has no order"
            yield Problem(("data", "orders", name), message, f"write {name}: categorical there", at_key=True)


def _columns(view: RecipeView) -> Iterator[Problem]:
    """Settings of columns that are no features, or of another kind."""
    kinds, orders = view.mapping("data", "columns"), view.mapping("data", "orders")
    kinds = {**dict.fromkeys(orders, "categorical"), **kinds}
    gone = {name: "dropped" for name in view.items("data", "drop") if isinstance(name, str)}
    gone[view.text("data", "target")] = "the target"
    for kind in ("numeric", "categorical"):
        for name, setting in view.mapping("preprocess", kind).items():
            path = ("preprocess", kind, name)
            if name in gone:
                yield Problem(path, f"{name!r} is {gone[name]}: it is no feature", "remove it", at_key=True)
            elif kinds.get(name, kind) != kind:
                message = f"{name!r} is declared {kinds[name]} in data.columns"
                yield Problem(path, message, f"write {name}: {kind} there, or remove it here", at_key=True)
            elif name in orders and isinstance(setting, dict) and setting.get("encode") == "frequency":
                message = f"{name!r} has an order, which its frequency would hide"
                yield Problem((*path, "encode"), message, f"remove it, or {name} from data.orders")
            if view.has(*path, "knots") and view.text(*path, "scale") != "quantile":
                yield Problem((*path, "knots"), "knots are of scale: quantile", "write scale: quantile", at_key=True)


def _transforms(view: RecipeView) -> Iterator[Problem]:
    """Transformers of columns that are no features, or no numbers."""
    kinds = {**dict.fromkeys(view.mapping("data", "orders"), "categorical"), **view.mapping("data", "columns")}
    gone = {name: "dropped" for name in view.items("data", "drop") if isinstance(name, str)}
    gone[view.text("data", "target")] = "the target"
    for place, _ in enumerate(view.items("preprocess", "transforms")):
        key = ("preprocess", "transforms", place)
        if view.text("model", "kind") in ("onnx", "bundle"):
            yield Problem(key, "an imported graph is served as it is, without transformers", "remove it")
        for index, name in enumerate(view.items(*key, "columns")):
            if isinstance(name, str) and (name in gone or kinds.get(name, "numeric") != "numeric"):
                is_what = gone.get(name) or f"declared {kinds[name]}"
                message = f"{name!r} is {is_what}: a transformer takes columns of numbers"
                hint = "remove it" if name in gone else f"remove it, or write data.columns: {{{name}: numeric}}"
                yield Problem((*key, "columns", index), message, hint)


def _imported(view: RecipeView) -> Iterator[Problem]:
    """Dates of an imported graph, which takes numbers and texts as they are."""
    if view.text("model", "kind") in ("onnx", "bundle"):
        for name in _declared(view):
            message = f"an imported graph takes numbers and texts, and {name!r} is declared date"
            hint = f"write {name}: numeric (seconds) or {name}: ignore"
            yield Problem(("data", "columns", name), message, hint)
        for name in _declared(view, "text"):
            message = f"an imported graph reads texts itself, and {name!r} is declared text"
            yield Problem(("data", "columns", name), message, f"write {name}: categorical, which takes it as it stands")


RULES: tuple[Rule, ...] = (_dates, _texts, _columns, _transforms, _imported)
