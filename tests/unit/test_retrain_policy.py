"""The retrain policy as a table: each rule, the order of the rules, and a year of windows in a small world."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

import pytest

from mlflowkit.monitoring.retrain.retrain_policy import (
    ColumnAlarm,
    DataFacts,
    PastRun,
    PerformanceFinding,
    RetrainDecision,
    RetrainFacts,
    RetrainTerms,
    budget_left,
    decide_retrain,
    episode_id,
)
from mlflowkit.values import Outcome

DAY = 86400.0
TERMS = RetrainTerms()
DRIFT = ColumnAlarm("amount", "distribution", since=5 * DAY, importance=0.4)
NULLS = ColumnAlarm("b", "missing", since=5 * DAY, importance=0.4)
REJECTED = PastRun("x", 2 * DAY, "rejected", "v2")
CALM = RetrainFacts(now=9 * DAY, service="fraud", champion="d1", version="1")
NEW = DataFacts("v2", "v1", helps=Outcome.PASSED, helps_message="amount: 0.05 [0.03, 0.08] nearer")
READY = replace(CALM, alarms=(DRIFT,), data=NEW, episode="e")
LOST = PerformanceFinding("recall", "realised", Outcome.FAILED, since=6 * DAY, message="recall 0.5 < 0.6")
ESTIMATE = PerformanceFinding("roc_auc", "estimated", Outcome.FAILED, "TRUSTED", 6 * DAY)


def kind(facts: RetrainFacts, terms: RetrainTerms = TERMS) -> str:
    return decide_retrain(facts, terms).kind


@pytest.mark.parametrize(
    ("facts", "expected", "says"),
    [
        (CALM, "none", "nothing has drifted"),
        (READY, "train", "data version v2 is new; amount: 0.05"),
        (replace(CALM, performance=(LOST,), data=NEW), "train", "v2"),
        (replace(CALM, performance=(ESTIMATE,), data=NEW), "train", "v2"),
        (replace(CALM, performance=(replace(ESTIMATE, trust="BIASED"),), data=NEW), "none", "says BIASED"),
        (replace(CALM, performance=(replace(ESTIMATE, trust="UNKNOWN"),), data=NEW), "none", "says UNKNOWN"),
        (replace(CALM, performance=(replace(LOST, outcome=Outcome.INCONCLUSIVE),), data=NEW), "none", "nothing"),
        (replace(READY, alarms=(replace(DRIFT, importance=0.09),)), "none", "9% of the importance, 10% is needed"),
        (replace(READY, alarms=(replace(DRIFT, importance=None),)), "none", "importance of amount is not known"),
        (replace(READY, alarms=(DRIFT, NULLS)), "mend upstream", "missing alarm of b"),
        (replace(READY, alarms=(ColumnAlarm("", "schema", 0.0),)), "mend upstream", "schema alarm of the requests"),
        (replace(READY, alarms=(DRIFT, replace(DRIFT, kind="unit", message="amount x100?"))), "mend upstream", "x100?"),
        (replace(READY, alarms=(DRIFT, replace(DRIFT, kind="type"))), "mend upstream", "type alarm"),
        (replace(READY, under_way="the canary of version 2 runs"), "hold", "canary"),
        (replace(READY, probation=Outcome.FAILED, probation_message="0.8 < 0.9"), "rollback", "0.8 < 0.9"),
        (replace(CALM, probation=Outcome.FAILED, probation_message="0.8 < 0.9"), "rollback", "0.8 < 0.9"),
        (replace(READY, probation=Outcome.INCONCLUSIVE), "train", "v2"),
        (replace(READY, data=DataFacts(champion="v1")), "look at data", "looked at before"),
        (replace(READY, data=DataFacts("v1", "v1")), "waiting for data", "v1 is the champion's"),
        (replace(READY, data=DataFacts("v2", "v1")), "look at data", "compared with the live ones"),
        (replace(READY, data=replace(NEW, helps=Outcome.FAILED, helps_message="x100?")), "would not help", "x100?"),
        (replace(READY, data=replace(NEW, helps=Outcome.INCONCLUSIVE)), "would not help", "would not help"),
        (replace(READY, data=DataFacts(problem="a check failed")), "would not help", "a check failed"),
        (replace(READY, runs=(PastRun("x", DAY / 2, "promoted"),)), "refused", "cooldown until 1970-01-10 12:00 UTC"),
        (replace(READY, runs=(PastRun("x", DAY, "promoted"),)), "train", "v2"),
        (
            replace(READY, runs=(PastRun("x", 6 * DAY, "promoted"), PastRun("y", 2 * DAY, "promoted"))),
            "refused",
            "budget: 2 of 2 runs are used until 1970-01-11",
        ),
        (replace(READY, runs=(PastRun("x", 7 * DAY, "promoted"), PastRun("y", 2 * DAY, "promoted"))), "train", "v2"),
        (replace(READY, runs=(REJECTED,), healthy=1), "refused", "1 of 2 healthy"),
        (replace(READY, runs=(PastRun("x", 2 * DAY, "rejected", "v1"),)), "train", "v2"),
        (replace(READY, runs=(REJECTED,), healthy=2), "waiting for data", "not promoted"),
        (replace(READY, runs=(PastRun("e", 60.0, "failed"),)), "train", "v2"),
        (replace(READY, runs=(PastRun("e", 90.0, "failed"), PastRun("e", 60.0, "failed"))), "ask a person", "2 times"),
        (replace(READY, runs=(PastRun("x", 60.0, "failed"),)), "refused", "cooldown"),
    ],
)  # fmt: skip
def test_each_rule(facts: RetrainFacts, expected: str, says: str) -> None:
    decision = decide_retrain(facts, TERMS)
    assert decision.kind == expected
    assert says in decision.reason


ORDERED = [
    ("mend upstream", lambda facts: replace(facts, alarms=(*facts.alarms, NULLS))),
    ("hold", lambda facts: replace(facts, under_way="a run is under way")),
    ("rollback", lambda facts: replace(facts, probation=Outcome.FAILED)),
    ("ask a person", lambda facts: replace(facts, runs=(PastRun("e", 9.0, "failed"), PastRun("e", 8.0, "failed")))),
    ("waiting for data", lambda facts: replace(facts, data=DataFacts("v1", "v1", helps=Outcome.FAILED))),
    ("would not help", lambda facts: replace(facts, data=replace(facts.data, helps=Outcome.FAILED))),
]
"""What makes each rule decide, in the order of the rules."""


@pytest.mark.parametrize("first", range(len(ORDERED)))
def test_an_earlier_rule_wins(first: int) -> None:
    facts = READY
    for _, make in reversed(ORDERED[first:]):
        facts = make(facts)
    assert kind(facts) == ORDERED[first][0]


def test_the_section_chooses_what_may_ask() -> None:
    lost = replace(READY, performance=(LOST,))
    assert decide_retrain(lost, replace(TERMS, on=("drift",))).cause.startswith("drift of amount (40%)")
    assert decide_retrain(lost, TERMS).cause == "performance: recall 0.5 < 0.6"
    assert kind(READY, replace(TERMS, on=("performance",))) == "none"
    assert kind(replace(READY, data=DataFacts("v1", "v1")), replace(TERMS, changed_data=False)) == "train"
    assert kind(replace(READY, data=DataFacts("v2", "v1")), replace(TERMS, helps=False)) == "train"


def test_a_column_counts_once_whatever_its_alarms() -> None:
    low = replace(DRIFT, importance=0.06)
    twice = replace(READY, alarms=(low, replace(low, kind="range")))
    assert kind(twice) == "none"
    assert kind(replace(READY, alarms=(low, replace(low, column="b")))) == "train"


def test_the_share_of_importance_that_is_needed_suffices() -> None:
    assert kind(replace(READY, alarms=(replace(DRIFT, importance=TERMS.importance),))) == "train"


def test_a_repetition_does_not_count_twice() -> None:
    repeated = (PastRun("x", 3 * DAY, "failed"), PastRun("x", 3 * DAY - 60, "promoted"))
    assert kind(replace(READY, runs=repeated)) == "train"
    assert kind(replace(READY, runs=(*repeated, PastRun("y", 2 * DAY, "promoted")))) == "refused"


def test_a_person_may_try_data_again_that_gave_no_champion() -> None:
    assert kind(replace(READY, runs=(REJECTED,), healthy=2, by_person=True)) == "train"


def test_a_person_passes_the_refusals_and_not_the_blocks() -> None:
    asked = replace(READY, alarms=(), by_person=True, runs=(PastRun("x", 1.0, "promoted"),) * 5)
    assert kind(asked) == "train"
    assert kind(replace(asked, under_way="a run is under way")) == "hold"
    assert kind(replace(asked, alarms=(replace(DRIFT, kind="type"),))) == "mend upstream"


def test_the_budget_counts_a_repetition_with_the_run_it_repeats() -> None:
    runs = (PastRun("e", 90.0, "failed"), PastRun("e", 60.0, "failed"))
    assert budget_left(runs, TERMS) == 1
    assert budget_left((*runs, PastRun("f", 50.0, "promoted")), TERMS) == 0


def test_the_decision_carries_the_first_window_of_its_cause() -> None:
    early = replace(DRIFT, column="b", since=4 * DAY)
    assert decide_retrain(replace(READY, alarms=(DRIFT, early)), TERMS).since == 4 * DAY
    assert decide_retrain(replace(CALM, performance=(LOST,)), TERMS).since == 6 * DAY


# ------------------------------------------------------------------------------------------------- windows of a world


@dataclass
class World:
    """A service whose windows close one by one; a run ends within its window."""

    random: Random
    champion: str = "d1"
    trained_on: int = 0
    data: int = 0
    ending: str = "promoted"
    now: float = 0.0
    healthy: int = 0
    episode: str = ""
    looked: DataFacts = DataFacts()  # noqa: RUF009 - frozen
    runs: list[tuple[float, str, str, int]] = field(default_factory=list)
    decisions: list[RetrainDecision] = field(default_factory=list)

    def close_window(
        self, alarms: tuple[ColumnAlarm, ...] = (), performance: tuple[PerformanceFinding, ...] = ()
    ) -> None:
        """Decide at the end of a day, and do what the decision says."""
        self.now += DAY
        self.healthy = 0 if alarms else self.healthy + 1
        self.looked = DataFacts(champion=f"v{self.trained_on}")
        for _ in range(3):  # look at the version, compare, train
            runs = tuple(
                PastRun(episode, self.now - start, status, f"v{data}")  # type: ignore[arg-type]
                for start, episode, status, data in self.runs
            )
            facts = RetrainFacts(
                self.now, "fraud", self.champion, "1", alarms, performance, runs=runs, healthy=self.healthy,
                data=self.looked, episode=self.episode,
            )  # fmt: skip
            decision = decide_retrain(facts, TERMS)
            self.decisions.append(decision)
            if decision.wanted and not self.episode:
                self.episode = episode_id("fraud", self.champion, decision.since or 0.0)
            if decision.kind == "look at data":
                seen = self.looked.version
                self.looked = DataFacts(f"v{self.data}", f"v{self.trained_on}", helps=Outcome.PASSED if seen else None)
            elif decision.kind == "train":
                self.runs.append((self.now, self.episode, self.ending, self.data))
                if self.ending == "promoted":
                    self.champion, self.trained_on, self.episode = f"d{len(self.runs) + 1}", self.data, ""
                return
            else:
                return


def noise(random: Random) -> tuple[tuple[ColumnAlarm, ...], tuple[PerformanceFinding, ...]]:
    """What clean windows may bring: an alarm of a column that matters little, an estimate without trust."""
    alarms = (replace(DRIFT, importance=0.05),) if random.random() < 0.1 else ()
    trust = random.choice(("BIASED", "UNKNOWN"))
    performance = (replace(ESTIMATE, trust=trust),) if random.random() < 0.1 else ()  # type: ignore[arg-type]
    return alarms, performance


def test_a_thousand_clean_months_train_nothing() -> None:
    random = Random(7)
    for _ in range(1000):
        world = World(random, data=1)
        for _ in range(30):
            world.close_window(*noise(random))
        assert world.runs == []


def test_lasting_drift_trains_exactly_once_when_the_data_arrive() -> None:
    for arrival in range(0, 60, 7):
        world = World(Random(arrival))
        for day in range(90):
            world.data = int(day >= arrival)
            drifted = day >= 10 and world.trained_on == 0
            world.close_window((DRIFT,) if drifted else ())
        assert len(world.runs) == 1
        assert world.runs[0][0] == (max(arrival, 10) + 1) * DAY


def test_a_version_that_is_turned_down_is_not_trained_again_without_new_data() -> None:
    world = World(Random(1), data=1, ending="rejected")
    for day in range(60):
        world.data = 1 if day < 40 else 2
        world.close_window((DRIFT,))
    assert [data for *_, data in world.runs] == [1, 2]


def test_runs_that_fail_end_with_a_person() -> None:
    world = World(Random(1), data=1, ending="failed")
    for _ in range(30):
        world.close_window((DRIFT,))
    assert len(world.runs) == TERMS.failures
    assert world.decisions[-1].kind == "ask a person"


def test_new_data_each_day_stay_within_the_budget() -> None:
    world = World(Random(1))
    for day in range(1, 71):
        world.data = day
        world.close_window((DRIFT,))
    starts = [start for start, *_ in world.runs]
    assert all(sum(start <= other < start + 7 * DAY for other in starts) <= 2 for start in starts)
    assert 18 <= len(starts) <= 22
