"""What a service remembers beyond one rollout: its champions, versions that were turned down, and when.

``<service>/champions.json`` is what to go back to, ``<service>/failed.json`` what is not tried again unasked. Both are
changed under a lock of the service: deploys, the controller and `mlkit rollout forget` write them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mlflowkit.errors import ServiceError, UsageError
from mlflowkit.service_state.records import ServiceFiles, read_json, write_json
from mlflowkit.values import Json, Variant

CHAMPIONS = 20
"""Champions that are remembered, newest last."""


@dataclass(frozen=True, slots=True)
class Champion:
    """A version that answered for a service. ``origin`` has the recipe's ``name`` and the ``run`` it came from."""

    variant: Variant
    time: float
    origin: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """A version that was turned down. ``ending`` is rolled_back or aborted."""

    digest: str
    version: str
    reason: str
    time: float
    experiment: str
    ending: str


def champions(files: ServiceFiles) -> tuple[Champion, ...]:
    """Champions of a service, newest last. Raises ServiceError when the file is damaged."""
    path = files.folder / "champions.json"
    found = read_json(path) or []
    with _damage(path):
        return tuple(Champion(Variant(**one["variant"]), one["time"], one["origin"]) for one in found)


def crown(
    files: ServiceFiles, champion: Variant, origin: Mapping[str, str], now: float, *, before: Variant | None = None
) -> None:
    """Remember a new champion, and the one before it where that is not known yet; may be said again."""
    with files.lock("memory"):
        found = champions(files)
        if found and found[-1].variant.digest == champion.digest:
            return
        if before is not None and not (found and found[-1].variant.digest == before.digest):
            found = (*found, Champion(before, now))
        kept = (*found, Champion(champion, now, dict(origin)))[-CHAMPIONS:]
        write_json(files.folder / "champions.json", [asdict(one) for one in kept])


def previous(files: ServiceFiles, digest: str) -> Champion | None:
    """The newest champion that is another version than ``digest`` and was not turned down since."""
    bad = failures(files)
    others = [one for one in champions(files) if one.variant.digest != digest and one.variant.digest not in bad]
    return others[-1] if others else None


def failures(files: ServiceFiles) -> Mapping[str, Failure]:
    """Versions that were turned down, by digest. Raises ServiceError when the file is damaged."""
    path = files.folder / "failed.json"
    found: Json = read_json(path) or {}
    with _damage(path):
        return {digest: Failure(**one) for digest, one in found.items()}


def blame(files: ServiceFiles, failure: Failure) -> None:
    """Remember that a version was turned down."""
    with files.lock("memory"):
        found = {**failures(files), failure.digest: failure}
        write_json(files.folder / "failed.json", {digest: asdict(one) for digest, one in found.items()})


def forget(files: ServiceFiles, version: str) -> tuple[Failure, ...]:
    """Forget what was turned down under a version, a digest, or the beginning of one digest; returns it.

    () where nothing is meant. Raises UsageError where several digests begin so.
    """
    with files.lock("memory"):
        found = failures(files)
        meant = {digest for digest, one in found.items() if version in (digest, one.version)}
        if not meant and version:
            meant = {digest for digest in found if digest.startswith(version)}
            if len(meant) > 1:
                raise UsageError(
                    f"{len(meant)} versions that {files.service} turned down have a digest that begins with {version}",
                    hint="name one: "
                    + ", ".join(sorted(f"{found[digest].version} ({digest[:12]})" for digest in meant)),
                )
        gone = {digest: found[digest] for digest in meant}
        if gone:
            left = {digest: asdict(one) for digest, one in found.items() if digest not in gone}
            write_json(files.folder / "failed.json", left)
    return tuple(gone.values())


def cooling(files: ServiceFiles, seconds: float, now: float) -> float:
    """Seconds for which no rollout begins yet, after the last one that the service turned down by itself."""
    ended = [one.time for one in failures(files).values() if one.ending == "rolled_back" and one.time <= now]
    return max(0.0, max(ended) + seconds - now) if ended else 0.0


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Raise ServiceError for a document that is JSON and not what belongs in its file."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ServiceError(f"{path} is damaged: {error!r}", hint=f"mv {path} {path}.damaged; mlkit status") from error
