"""YAML with places: what is read, where it is written, and how trees are put together."""

from __future__ import annotations

import pytest

from mlflowkit.recipe import yaml_tree
from mlflowkit.recipe.yaml_tree import Location, find, merge, read, to_plain


def tree(text: str, file: str = "r.yaml") -> yaml_tree.Node:
    document = read(text, file)
    assert document.faults == ()
    assert document.root is not None
    return document.root


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("-1.5e+3", -1500.0),
        ("1_000", 1000),
        ("0x1f", 31),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ('"1"', "1"),
        ("'yes'", "yes"),
        ("a b", "a b"),
        (".5", 0.5),
    ],
)
def test_scalars_are_read_as_hydra_reads_them(text: str, value: object) -> None:
    scalar = to_plain(tree(f"a: {text}\n"))["a"]
    assert scalar == value
    assert type(scalar) is type(value)


def test_places_of_keys_and_values() -> None:
    root = tree("a:\n  - {b: 1, c: [x,  y]}\n  - |\n    text\n")
    assert str(find(root, ("a", 0, "c", 1)).location) == "r.yaml:2:20"  # type: ignore[union-attr]
    assert str(find(root, ("a", 0, "c")).start) == "r.yaml:2:12"  # type: ignore[union-attr]
    assert str(find(root, ("a", 1)).location) == "r.yaml:3:5"  # type: ignore[union-attr]


def test_columns_count_characters() -> None:
    assert str(find(tree("é💥: 1\n"), ("é💥",)).location) == "r.yaml:1:5"  # type: ignore[union-attr]


def test_all_faults_of_a_text_are_reported_at_once() -> None:
    faults = read("a: 1\na: 2\nb: !x 3\nyes: 4\nb: 5\n", "r.yaml").faults
    assert [(fault.line, fault.column) for fault in faults] == [(2, 1), (3, 4), (4, 1), (5, 1)]


def test_tabs_in_text_are_no_indentation() -> None:
    text = 'a: |\n  x\n  \ty\nb: "1\n\t2"\nc:\t3\n# \td\n'
    assert to_plain(tree(text)) == {"a": "x\n\ty\n", "b": "1 2", "c": 3}


def test_merging_keeps_what_was_shadowed() -> None:
    merged = merge(merge(tree("a: {b: 1, c: 2}", "1"), tree("a: {b: 3}", "2")), tree("a: {b: [4]}", "3"))
    assert to_plain(merged) == {"a": {"b": [4], "c": 2}}
    node = find(merged, ("a", "b"))
    assert node is not None
    assert [(shadow.value, shadow.location.file) for shadow in node.shadows] == [(3, "2"), (1, "1")]


def test_a_missing_value_does_not_overwrite() -> None:
    assert to_plain(merge(tree("a: 1"), tree("a: ???"))) == {"a": 1}


def test_appending_to_a_list_that_is_not_there_makes_it() -> None:
    assert to_plain(merge(tree("{}"), tree("a: {b+: [1]}"))) == {"a": {"b": [1]}}


def test_a_key_that_ends_in_plus_and_is_no_list_is_left_alone() -> None:
    assert to_plain(merge(tree("a: {A+: x}"), tree("a: {B+: y}"))) == {"a": {"A+": "x", "B+": "y"}}


def test_assigning_through_a_scalar_replaces_it() -> None:
    keys = [Location("<override>", 1, column) for column in (1, 3)]
    node = yaml_tree.from_value(2, Location("<override>", 1, 5), "a.b=2")
    assert to_plain(yaml_tree.assign(tree("a: 1"), ["a", "b"], node, keys)) == {"a": {"b": 2}}


@pytest.mark.parametrize("part", ["2", "-1", "x"])
def test_assigning_outside_a_list_is_refused(part: str) -> None:
    place = Location("<override>", 1, 1)
    with pytest.raises(LookupError, match="no item"):
        yaml_tree.assign(tree("a: [1, 2]"), ["a", part], yaml_tree.from_value(1, place, ""), [place, place])


@pytest.mark.parametrize(("path", "left"), [(("a",), {"d": 2}), (("a", "b", "0"), {"a": {"b": [3]}, "d": 2})])
def test_removing(path: tuple[str, ...], left: object) -> None:
    assert to_plain(yaml_tree.remove(tree("{a: {b: [1, 3]}, d: 2}"), path)) == left


def test_removing_what_is_not_there_is_refused() -> None:
    with pytest.raises(LookupError):
        yaml_tree.remove(tree("{a: {b: 1}}"), ("a", "c"))
