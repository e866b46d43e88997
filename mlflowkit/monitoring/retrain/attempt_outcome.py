"""What became of a run: its exit code, its gates, and the rollout of its version."""

from __future__ import annotations

from mlflowkit.monitoring.retrain.episodes import Attempt, AttemptResult, Episode, RunStatus
from mlflowkit.rollout import policy
from mlflowkit.rollout import state as states
from mlflowkit.service_state import version_history
from mlflowkit.service_state.records import ServiceFiles


def champion_digest(files: ServiceFiles, default: str = "") -> str:
    """Digest of the version that is champion now."""
    table = files.table()
    return default if table is None else table.champion.digest


def judge_result(files: ServiceFiles, episode: Episode, result: AttemptResult) -> tuple[RunStatus, str]:
    """What a finished run came to, and why.

    A version that its gates turned down, or that is the champion's again, is rejected: the same data would give it
    again. Any other error is a failure, which may be repeated.
    """
    if result.code in (1, 4):
        return "rejected", result.message or "its gates did not pass"
    if result.code != 0:
        return "failed", result.message or f"the run ended with code {result.code}"
    if result.identity and result.identity == episode.champion:
        return "rejected", "the run gave the champion's version again"
    return _fate(files, result)


def follow_rollout(files: ServiceFiles, run: Attempt) -> tuple[RunStatus, str]:
    """What the rollout of a run's version has come to."""
    return ("failed", "its result is lost") if run.result is None else _fate(files, run.result)


def _fate(files: ServiceFiles, result: AttemptResult) -> tuple[RunStatus, str]:
    """Whether a version is champion, turned down, or on its way."""
    version = result.version or result.identity[:12]
    saved = states.read(files)
    if saved is not None and result.experiment and saved.state.experiment == result.experiment and not saved.todo:
        state = saved.state
        if state.phase == "promoted":
            return "promoted", f"version {version} is the champion"
        if state.ended:
            return "rejected", f"{policy.describe(state)}: {state.reason}"
        return "rolling out", policy.describe(state)
    if saved is not None and saved.state.experiment == result.experiment and result.experiment:
        return "rolling out", policy.describe(saved.state)
    if champion_digest(files) == result.identity:
        return "promoted", f"version {version} is the champion"
    rejected = version_history.rejections(files).get(result.identity)
    if rejected is not None:
        return "rejected", rejected.reason
    if any(record.variant.digest == result.identity for record in version_history.champions(files)):
        return "promoted", f"version {version} was champion"
    return "failed", f"version {version} was not deployed"
