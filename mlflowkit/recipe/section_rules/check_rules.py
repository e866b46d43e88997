"""Rules for the checks of a table as a whole: rows, leakage and drift."""

from __future__ import annotations

from collections.abc import Iterator

from mlflowkit.recipe.rule import Problem, RecipeView, Rule


def _rows(view: RecipeView) -> Iterator[Problem]:
    for index, _ in view.checks("rows"):
        path = ("data", "checks", index)
        if view.get(*path, "min_ratio") is None and view.get(*path, "max_ratio") is None:
            yield Problem(path, "a rows check needs min_ratio or max_ratio", "add min_ratio: 0.5 or max_ratio: 2")


def _leakage(view: RecipeView) -> Iterator[Problem]:
    for index, check in view.checks("leakage"):
        path = ("data", "checks", index)
        if check.get("time") is True and view.text("data", "split", "kind") != "time":
            message = "time: true takes the column of a time split, and this split is none"
            yield Problem((*path, "time"), message, "name the column: time: COLUMN")
        column = view.text(*path, "time")
        if column and column in view.items("data", "drop"):
            message = f"{column!r} is dropped: there are no times to compare"
            yield Problem((*path, "time"), message, f"keep it with data.columns: {{{column}: time}}")
        asked = [name for name in ("duplicates", "single_feature") if check.get(name, 0) is not None]
        if not asked and not check.get("time"):
            yield Problem(path, "this leakage check looks for nothing", "leave one of duplicates, single_feature, time")


def _drift(view: RecipeView) -> Iterator[Problem]:
    drop, columns = view.items("data", "drop"), view.mapping("data", "columns")
    for index, _ in view.checks("drift"):
        path = ("data", "checks", index, "columns")
        for at, name in enumerate(view.items(*path)):
            if name in drop or columns.get(name) in ("ignore", "group", "time"):
                message = f"{name!r} is no feature: features and the target are compared"
                yield Problem((*path, at), message, "take it out")


def _once(view: RecipeView) -> Iterator[Problem]:
    for kind in ("rows", "leakage", "drift"):
        indices = [index for index, _ in view.checks(kind)]
        for index in indices[1:]:
            message = f"a second {kind} check: the first is data.checks.{indices[0]}"
            yield Problem(("data", "checks", index), message, "make one of the two")


RULES: tuple[Rule, ...] = (_rows, _leakage, _drift, _once)
