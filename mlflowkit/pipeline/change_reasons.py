"""Why a step runs: its ingredients compared with those of its last result, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mlflowkit.pipeline.fingerprint import recipe_key
from mlflowkit.system.text import join_words, limited, truncate
from mlflowkit.values import STAGE_INPUTS, StepResult

MAX_CHANGES = 3
"""Changes that a reason names."""
MAX_FILES = 5
"""Files that a reason names."""
KINDS = ("spec", "seed", "content", "code", "library", "champion", "machine", "own", "input")
"""Kinds of ingredients, in the order in which a reason names their changes."""
TREE = "tree"
"""Ingredient of remote data beside those of its objects."""
FORMER_KEYS = ("source.path", "source.files", "model.path")
"""Keys that say where something lies, which earlier versions had among the ingredients."""


def is_unchanged(last: StepResult, ingredients: Mapping[str, str]) -> bool:
    """Whether a stage's own ingredients, without its inputs, are those of its last result."""
    return _own(last.ingredients, ingredients) == _own(ingredients, ingredients)


def change_reason(stage: str, ingredients: Mapping[str, str], last: StepResult, awaits: Sequence[str] = ()) -> str:
    """What differs from the last result of a stage; ``awaits`` are the inputs whose content is not known yet."""
    if awaits and is_unchanged(last, ingredients):
        return f"runs unless {join_words(awaits)} {'gives' if len(awaits) == 1 else 'give'} the same content"
    reasons = describe_changes(stage, _own(last.ingredients, ingredients), _own(ingredients, ingredients))
    if len(reasons) > MAX_CHANGES:
        reasons = [*reasons[:MAX_CHANGES], f"and {len(reasons) - MAX_CHANGES} more"]
    if awaits:
        reasons.append(f"{join_words(awaits)} {be(awaits, 'is', 'are')} stale")
    known = [name for name in STAGE_INPUTS[stage] if name not in awaits]
    changed = [name for name in known if last.inputs.get(name) != ingredients[f"input:{name}"]]
    if changed:
        reasons.append(f"{join_words(changed)} changed")
    return ", ".join(reasons) or "no result is kept"


def be(names: Sequence[str], singular: str = "was", plural: str = "were") -> str:
    """The verb for one name or several."""
    return singular if len(names) == 1 else plural


def describe_changes(stage: str, before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Describe the differences between two sets of ingredients, inputs excluded.

    >>> describe_changes("train", {"spec:train.epochs": "20", "seed": "7"}, {"spec:train.epochs": "30", "seed": "8"})
    ['train.epochs 20 -> 30', 'seed 7 -> 8']
    >>> describe_changes("data", {"spec:decimal": "null"}, {"spec:decimal.price": ","})
    ['data.decimal.price added']
    """
    descriptions: list[str] = []
    own_modules = 0
    files = _describe_files(stage, *(_of_kind("content", side) for side in (before, now)))
    for name in sorted(set(before) | set(now), key=lambda name: (KINDS.index(name.partition(":")[0]), name)):
        old, new = before.get(name), now.get(name)
        kind, _, rest = name.partition(":")
        if old == new or name == "spec" or kind == "input" or _is_spelled_out(name, now if new is None else before):
            continue
        if kind == "spec" and new is None and rest.partition("[")[0] in FORMER_KEYS:
            continue
        if kind == "own":
            own_modules += 1
            continue
        if kind == "content":
            descriptions += [files] if files not in descriptions else []
            continue
        descriptions.append(_describe_change(stage, kind, rest, old, new))
    if own_modules:
        descriptions.append(f"mlflowkit's own code changed ({own_modules} module{'s' if own_modules > 1 else ''})")
    return descriptions


def _own(side: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Ingredients without inputs, and without the champion where that is not known now."""
    return {
        name: value
        for name, value in side.items()
        if not name.startswith("input:") and (name != "champion" or name in now)
    }


def _of_kind(kind: str, side: Mapping[str, str]) -> dict[str, str]:
    return {rest: value for name, value in side.items() for found, _, rest in [name.partition(":")] if found == kind}


def _describe_files(stage: str, before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """
    >>> _describe_files("data", {"a": "1", "b": "2", "c": "3"}, {"a": "4", "b": "2", "d": "5"})
    'data.source: 3 of 4 files differ: a, c (removed), d (added)'
    >>> _describe_files("data", {"../a": "1"}, {"a": "1"})
    'data.source: ../a is now a'
    """
    origin = {"train": "model", "validate": "data.checks"}.get(stage, "data.source")
    before, now = _without_tree(before), _without_tree(now)
    names = sorted(set(before) | set(now))
    changed = [name for name in names if before.get(name) != now.get(name)]
    moved = dict(_moved(before, now))
    if moved and set(changed) == {*moved, *moved.values()}:
        return f"{origin}: {limited([f'{old} is now {new}' for old, new in moved.items()], MAX_FILES)}"
    words = {name: _change(before.get(name), now.get(name)) for name in changed}
    if len(changed) == 1:
        share = f" (1 of {len(names)} files)" if len(names) > 1 else ""
        return f"{origin}: {changed[0]} {words[changed[0]]}{share}"
    listed = [f"{name}{'' if word == 'changed' else f' ({word})'}" for name, word in words.items()]
    return f"{origin}: {len(changed)} of {len(names)} files differ: {limited(listed, MAX_FILES)}"


def _without_tree(side: Mapping[str, str]) -> Mapping[str, str]:
    """The objects of remote data without the digest of all of them, unless that alone is an ingredient."""
    return side if len(side) == 1 else {name: value for name, value in side.items() if name != TREE}


def _moved(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(old, new) names of files that have the same content under another name."""
    added = [name for name in sorted(now) if name not in before]
    for old in sorted(set(before) - set(now)):
        new = next((name for name in added if now[name] == before[old]), None)
        if new is not None:
            added.remove(new)
            yield old, new


def _change(old: str | None, new: str | None) -> str:
    return "added" if old is None else "removed" if new is None else "changed"


def _describe_change(stage: str, kind: str, rest: str, old: str | None, new: str | None) -> str:
    change = _change(old, new)
    if kind == "spec":
        key = recipe_key(stage, rest)
        return f"{key} {_short(old)} -> {_short(new)}" if change == "changed" else f"{key} {change}"
    if kind == "code":
        return f"code: {rest} {change}"
    if kind == "library":
        return f"library {rest} {old or 'absent'} -> {new or 'absent'}"
    if kind == "champion":
        return f"the champion is another: {(old or 'none')[:12]} -> {(new or 'none')[:12]}"
    return f"{kind} {_short(old)} -> {_short(new)}"


def _is_spelled_out(name: str, others: Mapping[str, str]) -> bool:
    """Whether the other side has keys below this one: a value became a section, which is what is described."""
    return name not in others and any(other.startswith((f"{name}.", f"{name}[")) for other in others)


def _short(text: str | None) -> str:
    return truncate("nothing" if text is None else text)
