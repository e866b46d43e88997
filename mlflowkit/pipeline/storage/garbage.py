"""What of a state folder nothing needs: decided purely, from an inventory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

from mlflowkit.data_access.cached_files import CachedFile, DataVersion


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run. ``active``: its process is not known to be dead. ``delivered``: no delivery of it is pending."""

    run: str
    name: str
    started: float
    active: bool
    delivered: bool
    fingerprints: frozenset[str]
    digests: frozenset[str]
    data: DataVersion = ("", "")
    """The version of remote data that it read."""


@dataclass(frozen=True, slots=True)
class StoredResult:
    fingerprint: str
    digest: str
    inputs: frozenset[str]
    identity: str = ""
    """Identity of the bundle that it published; "" for other stages."""


@dataclass(frozen=True, slots=True)
class StoredAlias:
    name: str
    alias: str
    identity: str
    run: str
    digests: frozenset[str]


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the state: its size and when it was used last."""

    name: str
    bytes: int
    used: float


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a state folder holds. ``mentioned`` has the digests and identities that records of services name."""

    runs: tuple[StoredRun, ...]
    results: tuple[StoredResult, ...]
    aliases: tuple[StoredAlias, ...]
    mentioned: frozenset[str]
    live: frozenset[str]
    """Fingerprints whose lease has an owner not known to be dead."""
    objects: Mapping[str, Folder]
    pages: Mapping[str, Folder] = field(default_factory=dict)
    """Folders of runs, with their reports."""
    scratches: Mapping[str, Folder] = field(default_factory=dict)
    """Checkpoints of unfinished steps, by fingerprint."""
    trials: Mapping[str, Folder] = field(default_factory=dict)
    """Cached measurements of candidates."""
    sources: Mapping[str, CachedFile] = field(default_factory=dict)
    """What is kept of remote data."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """What to keep: the newest runs of each recipe, and all that is used since."""

    runs: int
    since: float
    """Nothing is removed that was made or used after this time (seconds since the epoch)."""


@dataclass(frozen=True, slots=True)
class Item:
    """Something in a state folder and why it goes, or stays. ``kind`` is run, object, checkpoint, trial or
    source."""

    kind: str
    name: str
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Collection:
    removed: tuple[Item, ...]
    kept: tuple[Item, ...]
    results: frozenset[str] = frozenset()
    """Fingerprints whose results go with their objects."""
    aliases: frozenset[tuple[str, str]] = frozenset()
    """(name, alias) of replaced champions that no service remembers."""

    def names(self, kind: str) -> tuple[str, ...]:
        """The removed items of a kind."""
        return tuple(item.name for item in self.removed if item.kind == kind)


def plan_collection(inventory: Inventory, keeping: Keeping) -> Collection:
    """Divide a state folder into what goes and what stays, each with its reason.

    An object stays for a run, an alias, a service or a lease that needs it; everything stays that was used since
    ``keeping.since``. A result goes when its object does, so that nothing refers to what is gone.
    """
    runs = dict(_kept_runs(inventory, keeping))
    aliases = [alias for alias in inventory.aliases if _is_needed(alias, inventory, runs)]
    needed = _needed_objects(inventory, runs, aliases)
    removed: list[Item] = []
    kept: list[Item] = []

    def sort(kind: str, folder: Folder | CachedFile, why: str, otherwise: str) -> bool:
        why = why or ("used lately" if folder.used > keeping.since else "")
        (kept if why else removed).append(Item(kind, folder.name, folder.bytes, why or otherwise))
        return bool(why)

    for run in inventory.runs:
        page = inventory.pages.get(run.run, Folder(run.run, 0, run.started))
        item = Item("run", run.run, page.bytes, runs.get(run.run, f"not among the newest {keeping.runs} of {run.name}"))
        (kept if run.run in runs else removed).append(item)
    known = {run.run for run in inventory.runs}
    for name, page in inventory.pages.items():
        if name not in known:
            sort("run", page, "", "no run of this name is recorded")
    for digest, folder in inventory.objects.items():
        why = needed.get(digest, "")
        if not why and inventory.live and not any(result.digest == digest for result in inventory.results):
            why = "a run is active, which may be publishing it"
        if sort("object", folder, why, "no run, alias or service needs it"):
            needed.setdefault(digest, "kept")
    fingerprints = {fingerprint for run in inventory.runs if run.run in runs for fingerprint in run.fingerprints}
    for fingerprint, folder in inventory.scratches.items():
        why = "a run is active on it" if fingerprint in inventory.live else ""
        why = why or ("a kept run may resume it" if fingerprint in fingerprints else "")
        sort("checkpoint", folder, why, "its run is gone")
    for folder in inventory.trials.values():
        sort("trial", folder, "a run is active" if inventory.live else "", "unused measurements")
    for file in inventory.sources.values():
        sort("source", file, _needs_source(file, inventory, runs), "remote data that no kept run read")
    gone = {digest for digest in inventory.objects if digest not in needed}
    results = frozenset(result.fingerprint for result in inventory.results if result.digest in gone)
    dropped = frozenset((alias.name, alias.alias) for alias in inventory.aliases if alias not in aliases)
    return Collection(tuple(removed), tuple(kept), results, dropped)


def _kept_runs(inventory: Inventory, keeping: Keeping) -> Iterator[tuple[str, str]]:
    """(run, why) of the runs that stay."""
    counts: dict[str, int] = {}
    standing = {alias.run: alias for alias in inventory.aliases if alias.alias in ("champion", "challenger")}
    for run in sorted(inventory.runs, key=lambda run: (run.started, run.run), reverse=True):
        counts[run.name] = counts.get(run.name, 0) + 1
        if run.active:
            yield run.run, "it is running"
        elif counts[run.name] <= keeping.runs:
            yield run.run, f"among the newest {keeping.runs} of {run.name}"
        elif run.started > keeping.since:
            yield run.run, "it is recent"
        elif run.run in standing:
            yield run.run, f"it made the {standing[run.run].alias} of {run.name}"
        elif not run.delivered:
            yield run.run, "a delivery of it is pending (mlkit deliveries)"


def _is_needed(alias: StoredAlias, inventory: Inventory, runs: Mapping[str, str]) -> bool:
    """Whether an alias stays: champion and challenger do, a replaced champion while a service remembers it."""
    remembered = {alias.identity, *alias.digests} & inventory.mentioned
    return alias.alias in ("champion", "challenger") or alias.run in runs or bool(remembered)


def _needs_source(file: CachedFile, inventory: Inventory, runs: Mapping[str, str]) -> str:
    """Why a file of remote data stays: the store may have lost the version that a kept run read."""
    if any(run.active for run in inventory.runs):
        return "a run is active, which may read it"
    readers = (run.run for run in inventory.runs if run.run in runs and run.data in file.versions)
    return next((f"run {run} read it" for run in readers), "")


def _needed_objects(inventory: Inventory, runs: Mapping[str, str], aliases: Iterable[StoredAlias]) -> dict[str, str]:
    """Why an object stays, by its digest."""
    needed: dict[str, str] = {}

    def keep(digests: Set[str], why: str) -> None:
        for digest in digests:
            needed.setdefault(digest, why)

    keep(
        {result.digest for result in inventory.results if result.fingerprint in inventory.live}, "a run holds its lease"
    )
    for alias in aliases:
        keep(alias.digests, f"{alias.alias} of {alias.name}")
    keep(inventory.mentioned, "a service names it")
    by_identity = {result.identity: result.digest for result in inventory.results if result.identity}
    keep({by_identity[name] for name in inventory.mentioned & set(by_identity)}, "a service names its version")
    for run in inventory.runs:
        if run.run not in runs:
            continue
        own = [result for result in inventory.results if result.fingerprint in run.fingerprints]
        keep(run.digests | {result.digest for result in own}, f"run {run.run}")
        keep({digest for result in own for digest in result.inputs}, f"run {run.run}")
    return needed
