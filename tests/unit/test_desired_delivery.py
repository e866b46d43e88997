"""delivery.yaml: parsed strictly, edited line by line."""

from __future__ import annotations

import difflib
from dataclasses import replace

import pytest

from mlflowkit.delivery.gitops.desired_delivery import (
    DesiredCandidate,
    DesiredChampion,
    DesiredDelivery,
    RejectedIdentity,
    edit_delivery,
    parse_delivery,
)
from mlflowkit.errors import UsageError

OLD, NEW = "a" * 64, "b" * 64
REPOSITORY = "ghcr.io/acme/lending-bundle@sha256:"
TEXT = f"""# the team's own words
service: lending   # do not rename

champion:
  # served since March
  bundle: {REPOSITORY}{OLD}   # pinned
  identity: "{OLD}"
candidate: null  # nothing under way
# below: never again
rejected:
- identity: {"c" * 64}  # bad week
  incident: "errors"
  at: 2026-11-01T00:00:00Z
# the end
"""
CANDIDATE = DesiredCandidate(REPOSITORY + NEW, NEW, "d" * 64, {"strategy": "canary", "steps": [{"weight": 0.1}]})


def changed_lines(before: str, after: str) -> tuple[list[str], list[str]]:
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    return [line[2:] for line in lines if line[0] == "-"], [line[2:] for line in lines if line[0] == "+"]


def test_a_candidate_changes_only_its_own_lines() -> None:
    desired = replace(parse_delivery(TEXT), candidate=CANDIDATE)
    edited = edit_delivery(TEXT, desired)
    removed, added = changed_lines(TEXT, edited)
    assert removed == ["candidate: null  # nothing under way"]
    assert added[0] == "candidate:"
    assert parse_delivery(edited) == desired
    back = edit_delivery(edited, replace(desired, candidate=None))
    assert back == TEXT


def test_a_new_champion_changes_its_two_lines_and_keeps_their_comments() -> None:
    desired = replace(parse_delivery(TEXT), champion=DesiredChampion(REPOSITORY + NEW, NEW))
    removed, added = changed_lines(TEXT, edit_delivery(TEXT, desired))
    assert removed == [f"  bundle: {REPOSITORY}{OLD}   # pinned", f'  identity: "{OLD}"']
    assert added == [f"  bundle: {REPOSITORY}{NEW}   # pinned", f"  identity: {NEW}"]


def test_a_rejection_is_appended_and_nothing_is_removed() -> None:
    before = parse_delivery(TEXT)
    desired = replace(before, rejected=(*before.rejected, RejectedIdentity(NEW, "rolled back: latency", "2026-11-02")))
    edited = edit_delivery(TEXT, desired)
    removed, added = changed_lines(TEXT, edited)
    assert removed == []
    assert len(added) == 3
    assert edited.endswith("# the end\n")
    assert parse_delivery(edited) == desired


@pytest.mark.parametrize("text", [TEXT.replace("\n", "\r\n"), "service: lending", "service: lending\nrejected: []\n"])
def test_other_layouts_are_edited(text: str) -> None:
    desired = replace(parse_delivery(text), candidate=CANDIDATE)
    edited = edit_delivery(text, desired)
    assert parse_delivery(edited) == desired
    assert edited.count("\r\n") in (0, edited.count("\n"))
    assert ("\r\n" in edited) == ("\r\n" in text)


def test_a_layout_that_cannot_be_edited_is_refused() -> None:
    text = "{service: lending, candidate: null}"
    with pytest.raises(UsageError, match="delivery"):
        edit_delivery(text, replace(parse_delivery(text), candidate=CANDIDATE))


def test_a_new_file_is_read_back() -> None:
    for desired in (DesiredDelivery("lending"), DesiredDelivery("lending", None, CANDIDATE)):
        assert parse_delivery(desired.to_yaml()) == desired
        assert "champion: null" in desired.to_yaml()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT + "extra: 1\n", "delivery.yaml:15: extra is no key"),
        (TEXT.replace("candidate: null", "<<<<<<< HEAD\ncandidate: null"), "delivery.yaml:8: an unresolved merge"),
        (TEXT.replace("identity: \"", "identity: \"x"), "delivery.yaml:7: champion.identity"),
        (TEXT.replace("@sha256:", ":latest"), "delivery.yaml:6: champion.bundle"),
        (TEXT + "service: b\n", "delivery.yaml:15: service stands there twice"),
        ("service: [a\n", "not valid YAML"),
        ("service: &x a\n", "delivery.yaml:1: anchors"),
        ("a: 1", "delivery.yaml:1: a is no key"),
        ("champion: null", "lacks service"),
        ("[" * 5000, "delivery.yaml:1"),
        ("- a", "no mapping"),
        ("", "no mapping"),
        ("service: a\n" + "#" * 300_000, "at most 262,144"),
        ("service: a\ncandidate: !!python/name:os.system x", "delivery.yaml:2"),
        (f"service: a\ncandidate: {{bundle: '{REPOSITORY}{NEW}', identity: '{NEW}', rollout: 3}}", "rollout is no map"),
        (f"service: a\ncandidate: {{bundle: '{REPOSITORY}{NEW}', identity: '{NEW}'}}\n"
         f"rejected: [{{identity: '{NEW}'}}]", "rejected in the same file"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_delivery(text)
    assert message in error.value.message
    assert error.value.hint


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(UsageError, match=r"delivery\.yaml:2: the file is not UTF-8"):
        parse_delivery(b"service: a\n# \xff\n")
