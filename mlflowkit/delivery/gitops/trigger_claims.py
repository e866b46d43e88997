"""Who trains: a claim for each trigger key, created once by whoever comes first, in control records or as a git ref.

A claim names its owner and ends by itself (``expires``), so that a killed owner is taken over; ``fence`` counts owners.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, Protocol

from mlflowkit.delivery.gitops.git_repository import GitRepository
from mlflowkit.errors import ConflictError, ServiceError, UsageError
from mlflowkit.ports import ControlRecords
from mlflowkit.system.text import parse_json

TriggerReason = Literal["schedule", "data", "merge", "drift"]
TriggerAction = Literal["started", "running", "done", "nothing-changed", "cooldown", "budget", "given-up"]
MAX_CLAIMS = 2000
KEPT_CLAIMS = 1000
"""Claims that stay; a new one takes the oldest beyond them away, unless they are running."""
MAX_REMOVED = 20
"""Claims that one caller takes away at most."""
MAX_CLAIM_BYTES = 4096
MAX_TRIES = 20
REFS = "refs/mlkit/triggers/"
CLOCK_SECONDS = 300.0
"""How far the clocks of machines may differ."""


@dataclass(frozen=True, slots=True)
class TriggerClaim:
    """One training that was asked for. Times are seconds since the epoch; ``plan`` is the digest of what it trains."""

    key: str
    plan: str
    name: str
    owner: str
    because: str
    started: float
    expires: float
    fence: int = 1
    state: Literal["running", "done"] = "running"

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def parse(cls, content: bytes) -> TriggerClaim | None:
        """The claim of some bytes; None for any that are none: whoever can write refs may write anything."""
        try:
            value = parse_json(content[: MAX_CLAIM_BYTES + 1])
            claim = cls(**{name: value[name] for name in cls.__slots__})
            texts = (claim.key, claim.plan, claim.name, claim.owner, claim.because)
            numbers = (claim.started, claim.expires, claim.fence)
            fits = all(isinstance(item, str) for item in texts) and claim.state in ("running", "done")
            finite = all(type(item) in (int, float) and math.isfinite(item) for item in numbers)
            return claim if fits and finite else None
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class TriggerTerms:
    """How often, how long, how many owners; seconds."""

    lease: float
    attempts: int = 2
    cooldown: float = 0.0
    budget_runs: int = 0
    """0 for no limit."""
    budget_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TriggerAnswer:
    """The answer of `mlkit trigger`. ``run`` names the owner of the claim that it is about, ``key`` is that of the
    claim: "" where the state folder itself shows that there is nothing to train."""

    action: TriggerAction
    key: str
    reason: str
    run: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


class ClaimStore(Protocol):
    """Claims by key with the version that was read; ``write`` raises ConflictError when it is no longer the newest."""

    def claims(self) -> Mapping[str, tuple[TriggerClaim, str]]: ...

    def write(self, claim: TriggerClaim, version: str | None) -> None: ...

    def remove(self, key: str, version: str) -> None: ...


def decide_trigger(
    wanted: TriggerClaim, claims: Sequence[TriggerClaim], terms: TriggerTerms, now: float
) -> tuple[TriggerAnswer, TriggerClaim | None]:
    """The answer, and the claim to write before it holds; None where nothing is started."""

    def answer(action: TriggerAction, reason: str, run: str = "") -> tuple[TriggerAnswer, None]:
        return TriggerAnswer(action, wanted.key, reason, run), None

    own = next((claim for claim in claims if claim.key == wanted.key), None)
    others = [claim for claim in claims if claim.name == wanted.name and claim.key != wanted.key]
    if own is not None and own.state == "done":
        return answer("done", "it was trained", own.owner)
    if own is not None and own.expires > now:
        if own.owner == wanted.owner and "=" in own.owner:  # a pipeline's run that asks again, as a retried job does
            return TriggerAnswer("started", wanted.key, "this run has the claim already", own.owner), own
        return answer("running", f"since {now - own.started:.0f} s", own.owner)
    if own is not None:
        if own.fence >= terms.attempts:
            remedy = f"mlkit trigger RECIPE --give-up {own.key} lets another try"
            return answer("budget", f"{own.fence} owners did not finish it; {remedy}", own.owner)
        taken = replace(wanted, fence=own.fence + 1)
        reason = f"taken over from {own.owner}, which did not finish in time"
        return TriggerAnswer("started", wanted.key, reason, wanted.owner), taken
    if any(claim.plan == wanted.plan and claim.state == "done" for claim in others):
        return answer("nothing-changed", "this code, data and recipe were trained before")
    if wanted.because != "merge":
        # A claim from the future is of a machine whose clock is wrong: it holds nothing back.
        others = [claim for claim in others if claim.started <= now + CLOCK_SECONDS]
        last = max((claim.started for claim in others), default=None)
        if last is not None and now - last < terms.cooldown:
            return answer("cooldown", f"the last training began {now - last:.0f} s ago, of {terms.cooldown:.0f} s")
        recent = sum(now - claim.started < terms.budget_seconds for claim in others)
        if terms.budget_runs and recent >= terms.budget_runs:
            return answer("budget", f"{recent} trainings in {terms.budget_seconds / 3600:g} h")
    return TriggerAnswer("started", wanted.key, f"because of {wanted.because}", wanted.owner), wanted


def claim_trigger(
    store: ClaimStore, wanted: TriggerClaim, terms: TriggerTerms, now: float, *, dry_run: bool = False
) -> TriggerAnswer:
    """Claim a training; of several callers at once one is answered ``started``. Raises ConflictError, ServiceError."""
    for _ in range(MAX_TRIES):
        known = store.claims()
        answer, claim = decide_trigger(wanted, [item for item, _ in known.values()], terms, now)
        if claim is None or dry_run or (wanted.key in known and known[wanted.key][0] == claim):
            return answer
        try:
            store.write(claim, known[wanted.key][1] if wanted.key in known else None)
        except ConflictError:
            continue
        _prune(store, {key: item for key, item in known.items() if key != claim.key}, now)
        return answer
    raise ConflictError(f"the claim {wanted.key[:12]} changed at each try", hint="run the same command again")


def _prune(store: ClaimStore, known: Mapping[str, tuple[TriggerClaim, str]], now: float) -> None:
    """Take the oldest claims away that are beyond those kept; one that somebody changed meanwhile stays."""
    oldest = sorted(known.values(), key=lambda item: item[0].started)[: max(0, len(known) + 1 - KEPT_CLAIMS)]
    over = [(claim, version) for claim, version in oldest if claim.state == "done" or claim.expires <= now]
    for claim, version in over[:MAX_REMOVED]:
        try:
            store.remove(claim.key, version)
        except (ConflictError, ServiceError):  # the claim that was asked for stands
            return


def give_up_trigger(store: ClaimStore, key: str, *, dry_run: bool = False) -> TriggerAnswer:
    """Take a claim away: whoever asks next trains it. Raises UsageError for an unknown key."""
    known = store.claims().get(key)
    if known is None:
        raise UsageError(f"there is no claim {key!r}", hint="mlkit trigger RECIPE --because data --json prints its key")
    claim, version = known
    if not dry_run:
        store.remove(key, version)
    was = "it was done" if claim.state == "done" else f"{claim.fence} had it"
    return TriggerAnswer("given-up", key, f"{was}; whoever asks next trains it", claim.owner)


def finish_trigger(store: ClaimStore, key: str, *, dry_run: bool = False) -> TriggerAnswer:
    """Note that the training of a claim is done. Raises UsageError for an unknown key."""
    known = store.claims().get(key)
    if known is None:
        raise UsageError(f"there is no claim {key!r}", hint="mlkit trigger RECIPE --because data --json prints its key")
    claim, version = known
    if claim.state != "done" and not dry_run:
        store.write(replace(claim, state="done"), version)
    return TriggerAnswer("done", key, "it was trained", claim.owner)


class RecordClaims:
    """Claims as control records of a state folder."""

    def __init__(self, records: ControlRecords) -> None:
        self._records = records

    def claims(self) -> Mapping[str, tuple[TriggerClaim, str]]:
        known = {}
        for entry in self._records.list("triggers/*.json")[:MAX_CLAIMS]:
            record = self._records.get(entry.key)
            claim = None if record is None else TriggerClaim.parse(record.value)
            if record is not None and claim is not None:
                known[claim.key] = (claim, record.version)
        return known

    def write(self, claim: TriggerClaim, version: str | None) -> None:
        self._records.put_if(f"triggers/{claim.key}.json", claim.to_bytes(), version)

    def remove(self, key: str, version: str) -> None:
        self._records.delete(f"triggers/{key}.json", version=version)


class GitClaims:
    """Claims as refs of a remote repository, each a commit of its own: two equal commits would both be accepted."""

    def __init__(self, repository: GitRepository) -> None:
        self._repository = repository

    def claims(self) -> Mapping[str, tuple[TriggerClaim, str]]:
        git, separator = self._repository.git, secrets.token_hex(8)
        git("fetch", "--quiet", "--no-tags", "--prune", "--", self._repository.url, f"+{REFS}*:{REFS}*")
        listed = git(
            "for-each-ref", f"--count={MAX_CLAIMS}", "--sort=-committerdate",
            f"--format=%(refname) %(objectname) %(contents:subject){separator}", REFS,
        )  # fmt: skip
        known = {}
        for line in listed.decode(errors="replace").split(separator):
            name, _, rest = line.strip().partition(" ")
            version, _, text = rest.partition(" ")
            claim = TriggerClaim.parse(text.encode())
            if claim is not None and name == REFS + claim.key:
                known[claim.key] = (claim, version)
        return known

    def write(self, claim: TriggerClaim, version: str | None) -> None:
        git, reference = self._repository.git, REFS + claim.key
        tree = git("mktree", content=b"").decode().strip()
        message = claim.to_bytes() + f"\n\n{secrets.token_hex(16)}\n".encode()
        commit = git("commit-tree", tree, "-F", "-", content=message).decode().strip()
        try:
            git("push", "--quiet", "--porcelain", f"--force-with-lease={reference}:{version or ''}", "--",
                self._repository.url, f"{commit}:{reference}")  # fmt: skip
        except ServiceError as error:
            if isinstance(error, ConflictError):
                raise
            raise ServiceError(
                f"the claim could not be pushed: {error.message}", hint=f"{error.hint}; or --claim journal"
            ) from error

    def remove(self, key: str, version: str) -> None:
        reference = REFS + key
        self._repository.git("push", "--quiet", "--porcelain", f"--force-with-lease={reference}:{version}", "--",
                             self._repository.url, f":{reference}")  # fmt: skip
