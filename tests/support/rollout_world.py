"""A state folder as a rollout leaves it half way: what the admin page and `mlkit status` show in their tests.

No process runs: traffic is drawn with a seed, judged by the judges, moved on by the policy, and written through the
values that own the files.
"""

from __future__ import annotations

import json
import math
import os
import random
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlflowkit.judging.online.evidence import Evidence, Moments, VariantCounts, latency_bin
from mlflowkit.judging.online.judge import MetricResult, judge
from mlflowkit.rollout import conditions, incidents, policy
from mlflowkit.rollout import state as states
from mlflowkit.rollout.settings import Rollout, RolloutMetric, RolloutStep
from mlflowkit.rollout.state import Request, RolloutState, SavedRollout
from mlflowkit.service_state import controller_lease
from mlflowkit.service_state.records import (
    Desired,
    GatewaySettings,
    ReplicaReport,
    ServiceFiles,
    process_started,
    write_json,
)
from mlflowkit.serving.observer.shadow_comparison import ShadowComparison
from mlflowkit.values import Json, RoutingTable, Variant

PLAN = Rollout(
    strategy="canary",
    steps=[RolloutStep(weight=0), RolloutStep(weight=5), RolloutStep(weight=25), RolloutStep(weight=50, approval=True)],
    metrics=[
        RolloutMetric(metric="error_rate", margin=0.01),
        RolloutMetric(metric="latency_p99_ms", ratio=1.5, role="guardrail"),
        RolloutMetric(metric="agreement", min=0.95),
    ],
    min_samples=1000,
    bake_seconds=60,
    max_seconds=3600,
)
CHAMPION = Variant("champion", "20261101-aa11", "a" * 64, "/bundles/a")
CANDIDATE = Variant("challenger", "20261123-bb22", "b" * 64, "/bundles/b", role="challenger", weight=0.05)


@dataclass
class RolloutWorld:
    """One service in a state folder, and its rollout, second by second."""

    state: Path
    service: str = "lending"
    plan: Rollout = PLAN
    champion: Variant = CHAMPION
    candidate: Variant = CANDIDATE
    settings: Mapping[str, Json] = field(default_factory=dict)
    begun: float = field(default_factory=lambda: time.time() - 900)
    per_second: int = 120
    worse: float = 0.0
    """How much larger the candidate's error rate is."""

    def __post_init__(self) -> None:
        self.random = random.Random(7)
        self.files = ServiceFiles(self.state / "services" / self.service)
        self.now = self.begun
        self.counts: dict[int, dict[str, VariantCounts]] = {}
        self.rollout: RolloutState | None = None
        self.serve(RoutingTable(self.service, 4, (self.champion,)))

    def serve(self, table: RoutingTable) -> None:
        """A gateway replica that is up and answers by a table."""
        settings = GatewaySettings(self.service, port=8080, grpc_port=9090, **self.settings)
        self.files.write_desired(Desired(1, up=True, settings=settings))
        self.files.write_table(table)
        self.table = table
        started = process_started(os.getpid()) or 0.0
        report = ReplicaReport("r1", os.getpid(), socket.gethostname(), started, 1, 8080, "serving", table.epoch)
        self.files.write_report(replace(report, heartbeat=time.time() + 3600))

    def begin(self) -> RolloutWorld:
        """The rollout, asked for and live in its first step."""
        request = Request("lending-e1", self.service, self.candidate, self.plan, self.begun)
        self.rollout = policy.begin(request, self.table, now=self.begun, fence=3)
        while self.rollout.phase in ("pending", "preparing"):
            self.look(())
        return self

    def look(self, findings: Sequence[MetricResult], command: policy.PolicyCommand | None = None) -> None:
        """One look of the controller: advance, carry out, persist."""
        assert self.rollout is not None
        counts = (
            policy.count_requests(self.rollout, self.evidence()) if self.rollout.step_epochs else states.StepCounts()
        )
        self.rollout, actions = policy.advance(self.rollout, findings, counts, command, self.now)
        for action in actions:
            if isinstance(action, states.SetTable):
                self.serve(action.table)
            if isinstance(action, states.RollBack):
                incidents.record(self.files, self.rollout, action, self.evidence())
        states.write(self.files, SavedRollout(self.rollout), durable=False)

    def run(self, seconds: int, every: int = 2) -> RolloutWorld:
        """Traffic and looks for a while."""
        for _ in range(seconds // every):
            self.now += every
            self.answer(every * self.per_second)
            self.look(self.findings())
        self.write_evidence()
        return self

    def disagree(self, inputs: Sequence[Mapping[str, Json]]) -> RolloutWorld:
        """The shadow answered these rows otherwise, and it was kept."""
        assert self.rollout is not None
        seen = ShadowComparison(self.candidate.name, self.candidate.version, self.rollout.experiment)
        seen.agreement = {"": Moments(400, 380.0, 380.0), "grade=G": Moments(40, 22.0, 22.0)}
        seen.difference, seen.rank = Moments(400, 8.0, 9.0), Moments(2, 1.8, 1.7)
        for place, row in enumerate(inputs):
            seen.examples.offered += 1
            example = {
                "time": self.now + place, "id": f"request-{place}", "row": 0, "inputs": row, "difference": -0.31,
                "champion": {"label": "good", "probabilities": [0.2, 0.8]},
                "shadow": {"label": "bad", "probabilities": [0.51, 0.49]}, "slices": [f"grade={row['grade']}"],
            }  # fmt: skip
            seen.examples.items.append(example)
        write_json(self.files.folder / "disagreements" / f"{seen.shadow}.json", seen.to_json())
        return self

    def controlled(self) -> RolloutWorld:
        """A controller holds the lease: this process."""
        self.lease = controller_lease.acquire(self.state)
        return self

    def evidence(self) -> Evidence:
        return Evidence("lending-e1", self.counts)

    def write_evidence(self) -> None:
        self.files.write_evidence("r1", json.dumps(self.evidence().to_json()).encode())

    def answer(self, requests: int) -> None:
        """So many requests, dealt out by the table, counted as a gateway and its observer do."""
        here = self.counts.setdefault(self.table.epoch, {})
        for variant in self.table.variants:
            shadow = variant.role == "shadow"
            number = requests if shadow else round(requests * variant.weight)
            new = self._counted(number, variant.name == self.candidate.name, shadow)
            here[variant.name] = here.get(variant.name, VariantCounts()) + new

    def _counted(self, number: int, candidate: bool, shadow: bool) -> VariantCounts:
        rate = 0.011 + (self.worse if candidate else 0.0)
        errors = sum(self.random.random() < rate for _ in range(number))
        latency: dict[int, int] = {}
        predictions: dict[str, int] = {}
        for _ in range(number - errors):
            seconds = 0.0021 * math.exp(self.random.gauss(0.12 if candidate else 0.0, 0.45))
            place = latency_bin(seconds)
            latency[place] = latency.get(place, 0) + 1
            score = self.random.betavariate(8, 2.2 if candidate else 2.5)
            key = f"score:{min(49, int(50 * score))}"
            predictions[key] = predictions.get(key, 0) + 1
        if not shadow:
            return VariantCounts(number, errors, number - errors, latency, predictions)
        agreement = {}
        for name, share, part in (
            ("", 0.982, 1.0),
            ("grade=G", 0.71, 0.02),
            ("grade=A", 0.998, 0.3),
            ("grade=D", 0.97, 0.2),
        ):
            rows = round(number * part)
            same = sum(self.random.random() < share for _ in range(rows))
            agreement[name] = Moments(rows, float(same), float(same))
        return VariantCounts(
            latency=latency, predictions=predictions, agreement=agreement, mirrored=number, dropped=errors
        )  # fmt: skip

    def findings(self) -> tuple[MetricResult, ...]:
        """What the judges say now."""
        assert self.rollout is not None
        findings, traces = judge(
            conditions.metric_specs(self.rollout),
            self.evidence(),
            champion=self.champion.name,
            challenger=self.candidate.name,
            epochs=self.rollout.epochs,
            level=self.rollout.plan.level,
            traces=self.rollout.traces,
        )
        self.rollout = replace(self.rollout, traces=traces)
        return findings
