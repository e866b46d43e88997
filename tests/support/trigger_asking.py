"""Asks for a training from processes of their own, as clones on several machines do."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from mlflowkit.ci.pipeline_trigger import ClaimPlace, trigger

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.trigger_asking", "mlflowkit.recipe.check", "mlflowkit.pipeline.plan"])
TriggerQuestion = tuple[Path, ClaimPlace | None, float | None]
"""A recipe, where the claim is kept, and the time."""


def ask(question: TriggerQuestion) -> str:
    """The action that a trigger of a recipe is answered with."""
    recipe, place, now = question
    return trigger(recipe, "data", recipe.parent / ".mlkit", claim=place, now=now).action


def ask_at_once(questions: list[TriggerQuestion]) -> list[str]:
    """The actions that processes are answered with, four at a time.

    Not forks of the tests' process: what other tests left there to be finalized may wait for threads that no fork has.
    """
    with ProcessPoolExecutor(4, mp_context=_context) as pool:
        return list(pool.map(ask, questions))
