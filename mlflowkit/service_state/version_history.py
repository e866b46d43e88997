"""A service's history across rollouts: its champions, and the versions that were rejected.

``<service>/champions.json`` lists versions for a rollback, ``<service>/failed.json`` those that are not deployed again.
Both change under a lock of the service: deploys, the controller and `mlkit rollout forget` write them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from mlflowkit.errors import ServiceError, UsageError
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.text import shell_word
from mlflowkit.values import Json, Variant

MAX_CHAMPIONS = 20


@dataclass(frozen=True, slots=True)
class ChampionRecord:
    """A version that was champion. ``origin`` has the recipe's ``name`` and the ``run`` it came from."""

    variant: Variant
    time: float
    origin: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RejectionRecord:
    """A version that was rejected. ``ending`` is rolled_back or aborted."""

    digest: str
    version: str
    reason: str
    time: float
    experiment: str
    ending: str


def champions(files: ServiceFiles) -> tuple[ChampionRecord, ...]:
    """Read the champions of a service, newest last. Raises ServiceError when the file is damaged."""
    records = files.read_json("champions.json") or []
    with _damaged_as_service_error(files.location("champions.json")):
        return tuple(ChampionRecord(Variant(**item["variant"]), item["time"], item["origin"]) for item in records)


def record_champion(
    files: ServiceFiles, champion: Variant, origin: Mapping[str, str], now: float, *, before: Variant | None = None
) -> None:
    """Append a new champion, and the one ``before`` it unless that is recorded. Idempotent."""
    with files.lock("memory"):
        records = champions(files)
        newest = records[-1].variant.digest if records else ""
        if newest == champion.digest:
            return
        if before is not None and newest != before.digest:
            records = (*records, ChampionRecord(before, now))
        records = (*records, ChampionRecord(champion, now, dict(origin)))[-MAX_CHAMPIONS:]
        files.write_json("champions.json", [asdict(record) for record in records])


def previous_champion(files: ServiceFiles, digest: str) -> ChampionRecord | None:
    """The newest champion that is another version than ``digest`` and was not rejected since."""
    excluded = {digest, *rejections(files)}
    return next((record for record in reversed(champions(files)) if record.variant.digest not in excluded), None)


def rejections(files: ServiceFiles) -> Mapping[str, RejectionRecord]:
    """Read the rejected versions by digest. Raises ServiceError when the file is damaged."""
    records: Json = files.read_json("failed.json") or {}
    with _damaged_as_service_error(files.location("failed.json")):
        return {digest: RejectionRecord(**record) for digest, record in records.items()}


def record_rejection(files: ServiceFiles, rejection: RejectionRecord) -> None:
    """Record that a version was rejected."""
    with files.lock("memory"):
        _write_rejections(files, {**rejections(files), rejection.digest: rejection})


def forget_rejections(files: ServiceFiles, version: str) -> tuple[RejectionRecord, ...]:
    """Remove and return the rejections of a version, a digest, or a prefix of one digest; () when none matches.

    Raises UsageError when several digests have the prefix.
    """
    with files.lock("memory"):
        records = rejections(files)
        matches = {digest for digest, record in records.items() if version in (digest, record.version)}
        if not matches and version:
            matches = {digest for digest in records if digest.startswith(version)}
            if len(matches) > 1:
                listed = sorted(f"{records[digest].version} ({digest[:12]})" for digest in matches)
                raise UsageError(
                    f"{len(matches)} rejected versions of {files.service} have a digest that begins with {version}",
                    hint="name one: " + ", ".join(listed),
                )
        if matches:
            _write_rejections(files, {digest: records[digest] for digest in records if digest not in matches})
    return tuple(records[digest] for digest in records if digest in matches)


def _write_rejections(files: ServiceFiles, records: Mapping[str, RejectionRecord]) -> None:
    files.write_json("failed.json", {digest: asdict(record) for digest, record in records.items()})


def cooldown_left(files: ServiceFiles, seconds: float, now: float) -> float:
    """Seconds until a rollout may start, ``seconds`` after the last rollback that the controller decided."""
    records = rejections(files).values()
    times = [record.time for record in records if record.ending == "rolled_back" and record.time <= now]
    return max(0.0, max(times) + seconds - now) if times else 0.0


@contextmanager
def _damaged_as_service_error(place: str) -> Iterator[None]:
    """Raise ServiceError for a JSON document of the wrong shape."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ServiceError(
            f"{place} is damaged: {error!r}",
            hint=f"mv {shell_word(place)} {shell_word(f'{place}.damaged')}; mlkit status",
        ) from error
