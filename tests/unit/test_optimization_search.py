"""What a space holds, how it is searched, and how what is found is chosen from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflowkit.adapters.optuna import OptunaSearch
from mlflowkit.errors import StoreError, UsageError
from mlflowkit.graphs.candidates import NAMED, Candidate, Engine, FixedRows, Float16, Int8, Int8Dynamic
from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.optimization.objective import CandidateFigures
from mlflowkit.optimization.search import Exhaustive, SearchSection, method_of
from mlflowkit.optimization.selection import choose
from mlflowkit.optimization.space import Space, candidates_of, distinct, key_of, reason_impossible, reason_unservable
from mlflowkit.optimization.tournament import metric_drop
from mlflowkit.ports import TrialResult
from mlflowkit.stages.optimize import CandidateName, OptimizeSection, search_plan
from mlflowkit.system import arrays

WIDE = Space(
    passes=[[], [Float16()], [Int8()], [Int8Dynamic()]],
    runtime=["ort-cpu", "tensorrt"],
    graph_level=["off", "all"],
    threads=[1, 2],
    cuda_graph=[False, True],
)


def test_a_space_holds_each_candidate_once_and_none_that_cannot_be() -> None:
    found = candidates_of(WIDE)
    assert len({one.name for one in found}) == len({key_of(one) for one in found}) == len(found)
    assert len(found) == 4 * 2 * 2 + 3 * 2, "on the CPU passes, levels, threads; TensorRT knows only CUDA graphs"
    assert not [one for one in found if reason_impossible(one.passes, one.engine)]
    assert WIDE.size == 4 * 2 * 2 * 2 * 2


def test_a_candidate_is_what_it_does_whatever_it_is_called() -> None:
    one, other = Candidate(name="a"), Candidate(name="b", engine=Engine(cuda_graph=True))
    assert key_of(one) == key_of(other), "there is no CUDA graph on a CPU"
    assert distinct([one, other, NAMED["onnx-int8"]]) == [one, NAMED["onnx-int8"]]


def test_baselines_are_not_served() -> None:
    assert reason_unservable(NAMED["torch"])
    assert reason_unservable(Candidate(name="one row", passes=[FixedRows(rows=1)], engine=Engine(runtime="tensorrt")))
    assert not reason_unservable(Candidate(name="one row", passes=[FixedRows(rows=1)]))
    assert not reason_unservable(NAMED["onnx-int8"])


def test_names_that_a_recipe_may_use_are_all_that_there_are() -> None:
    assert set(CandidateName.__args__) == set(NAMED)  # type: ignore[attr-defined]


def test_what_is_listed_comes_first_and_is_not_searched_again() -> None:
    section = OptimizeSection.model_validate(
        {"candidates": ["onnx-int8"], "search": {"space": {"passes": [[], [{"kind": "int8"}]], "threads": [1, 2]}}}
    )
    plan = search_plan(section)
    assert [one.name for one in plan.listed] == ["onnx-int8"]
    assert [one.name for one in plan.space] == ["float ort-cpu", "float ort-cpu(threads=2)", "int8 ort-cpu(threads=2)"]
    assert not plan.added
    assert search_plan(OptimizeSection()).space == ()


@given(st.integers(1, 7), st.integers(1, 20))
def test_exhaustive_suggests_each_once_in_order(count: int, candidates: int) -> None:
    whole = [Candidate(name=str(index)) for index in range(candidates)]
    search, found = Exhaustive(whole), []
    while group := search.suggest(count):
        found.extend(group)
        search.tell([TrialResult(one, 1.0, feasible=True) for one in group])
    assert found == whole


def test_auto_is_exhaustive_up_to_the_number_of_trials() -> None:
    assert method_of(SearchSection(trials=5), 5) == "exhaustive"
    assert method_of(SearchSection(trials=5), 6) == "optuna"
    assert method_of(SearchSection(method="optuna"), 1) == "optuna"


def searched(seed: int, trials: int) -> list[str]:
    """What a search by Optuna suggests where INT8 and two threads are best."""
    search, found = OptunaSearch(candidates_of(WIDE), trials, seed), []
    while group := search.suggest(4):
        for one in group:
            kinds = {each.kind for each in one.passes}
            cost = 0.3 if "int8" in kinds else 1.0
            ratio = None if one.engine.runtime == "tensorrt" else cost / one.engine.threads
            found.append(one.name)
            search.tell([TrialResult(one, ratio, feasible="fp16" not in kinds)])
    return found


def test_a_search_by_optuna_suggests_nothing_twice_keeps_to_its_trials_and_repeats_itself_by_seed() -> None:
    found = searched(seed=1, trials=15)
    assert len(found) == len(set(found)) == 15
    assert found == searched(seed=1, trials=15)
    assert found != searched(seed=2, trials=15)
    everything = searched(seed=3, trials=500)
    assert sorted(everything) == sorted(one.name for one in candidates_of(WIDE))


def test_the_choice_is_the_first_unless_another_is_surely_better() -> None:
    random = np.random.default_rng(0)
    base = random.gamma(9, 10, size=(40, 50))
    found = {
        "a": CandidateFigures(base, 100, 50),
        "b": CandidateFigures(base * 0.6, 100, 60),
        "c": CandidateFigures(base * 0.58, 20, 60),
    }
    assert choose(found, "latency_p50").name == "b"
    assert choose(found, "throughput").name == "b"
    assert choose(found, "size").name == "c"
    assert choose(found, "memory").name == "a"
    assert "size of c is 0.20 times that of a: c is better" in choose(found, "size").reasons["a"]
    assert choose({"a": CandidateFigures(base), "b": CandidateFigures(base)}, "memory").name == "a", (
        "what is not known is no reason"
    )
    with pytest.raises(UsageError):
        choose({}, "size")


@given(st.lists(st.text(), max_size=6), st.integers(1, 3))
def test_strings_come_back_as_they_went(texts: list[str], columns: int) -> None:
    import tempfile

    matrix = np.empty((len(texts), columns), dtype=object)
    matrix[:] = np.array([[text] * columns for text in texts], dtype=object).reshape(len(texts), columns)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npz"
        arrays.write(path, {"inputs/a": matrix, "inputs/b": np.arange(3), "other/c": np.zeros(1)})
        found = arrays.read(path, "inputs/")
    assert list(found) == ["b", "a"]
    assert found["a"].tolist() == matrix.tolist()


def test_a_file_that_is_cut_off_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays.write(path, {"a": np.zeros(100)})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(StoreError, match="cannot be read"):
        arrays.read(path)


def _answers(scores: np.ndarray) -> LabelledPredictions:
    actual = (np.arange(len(scores)) % 2).astype(np.int64)
    return LabelledPredictions(
        "classification", actual, (scores > 0.5).astype(np.int64), np.stack([1 - scores, scores], axis=1)
    )


def test_rounding_loses_nothing_and_what_is_more_than_rounding_is_judged() -> None:
    """The same order of 100 rows leaves room for other orders of other rows, unless it is the same but for rounding."""
    rng = np.random.default_rng(3)
    scores = rng.uniform(0.05, 0.95, 100)
    float_graph = _answers(scores)
    rounded = _answers(scores + rng.uniform(-1e-6, 1e-6, 100))
    assert not np.array_equal(rounded.scores, float_graph.scores)
    drop = metric_drop("roc_auc", rounded, float_graph)
    assert (drop.value, drop.low, drop.high) == (0, 0, 0)
    scaled = metric_drop("roc_auc", _answers(0.5 + (scores - 0.5) * 0.99), float_graph)
    assert scaled.value == 0
    assert scaled.high > 0.01, "rows that were not seen may be ordered in another way"
