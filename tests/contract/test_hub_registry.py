"""The registry of models on the Hugging Face Hub, over a fake that refuses what the real one refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlflowkit.adapters.model_registries.hub_push_child import answer_request
from mlflowkit.adapters.model_registries.hub_upload import run_upload
from mlflowkit.adapters.model_registries.huggingface_registry import HubLimits, HubModels
from mlflowkit.bundle import Bundle, open_bundle
from mlflowkit.data_access.connections import CredentialReference, HuggingfaceConnection
from mlflowkit.data_access.registry_sections import HuggingfaceRegistry
from mlflowkit.errors import BundleError, MlkitError, ServiceError, UsageError
from mlflowkit.testing import ModelRegistryContract
from mlflowkit.testing.source_suites import HASTE
from tests.support.hub_fake import FakeHub, HubFault
from tests.support.hub_models import READ_TOKEN, WRITE_TOKEN
from tests.support.judged_bundle import LINEAGE, ROW_VALUE, make_judged_bundle

pytestmark = pytest.mark.heavy

NAME = "org/lending"
LIMITS = HubLimits(push_seconds=60.0, request_seconds=2.0, transfer=HASTE)


@pytest.fixture(autouse=True)
def _tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CANARY_TOKEN", WRITE_TOKEN)
    monkeypatch.setenv("READER", READ_TOKEN)
    monkeypatch.setenv("WRONG", "hf_canary_of_nobody")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    made = FakeHub()
    yield made
    made.close()


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_judged_bundle(tmp_path_factory.mktemp("judged") / "bundle")


@pytest.fixture(autouse=True)
def _without_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def upload_here(request: Mapping[str, Any], work: Path, seconds: float) -> Mapping[str, Any]:
    """The push of the child process, in this one: its start costs a second."""
    return answer_request(request)


def registry(hub: FakeHub, folder: Path, *, token: str = "CANARY_TOKEN", child: bool = False, **keys: Any) -> HubModels:
    section = HuggingfaceRegistry(kind="huggingface", repository=NAME, connection="hub", **keys)
    reference = CredentialReference(env=token) if token else None
    connection = HuggingfaceConnection(kind="huggingface", endpoint=hub.url, token=reference)
    return HubModels(section, connection, folder, folder / "state", LIMITS, run_upload if child else upload_here)


def refused(call: Callable[[], object], kind: type[MlkitError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.hint
    assert "canary" not in f"{caught.value.message} {caught.value.hint}"
    return caught.value.message


def test_a_pushed_bundle_is_one_commit_with_a_card_and_comes_back_blessed(
    hub: FakeHub, tmp_path: Path, judged: Bundle
) -> None:
    models = registry(hub, tmp_path, child=True, license="apache-2.0")
    reference = models.push(judged.path)
    tag = f"v-{judged.manifest.identity[:14]}"
    assert reference == f"hf://{NAME}@{tag}"
    repository = hub.models.repositories[NAME]
    assert repository.private
    assert repository.titles == ["initial commit", f"lending {judged.manifest.version}"]
    assert repository.tags == {tag: repository.branches["main"]}
    assert ".gitattributes" in repository.head
    pulled = models.pull(reference, tmp_path / "pulled")
    opened = open_bundle(pulled, blessed=True)
    assert opened.manifest == judged.manifest
    assert opened.blessing == judged.blessing
    assert (pulled / "model.onnx").read_bytes() == judged.model.read_bytes()
    assert not list(tmp_path.glob(".pulled*"))


class TestHubRegistry(ModelRegistryContract):
    @pytest.fixture(autouse=True)
    def _server(self, tmp_path: Path) -> Iterator[None]:
        self.hub, self.folder, self.stopped = FakeHub(), tmp_path, False
        yield
        if not self.stopped:
            self.hub.close()

    def registry(self) -> HubModels:
        return registry(self.hub, self.folder)

    def make(self, folder: Path, seed: int, *, blessed: bool = True) -> Bundle:
        return make_judged_bundle(folder, seed, blessed=blessed)

    def versions(self) -> int:
        made = self.hub.models.repositories.get(NAME)
        return len(made.titles) - 1 if made is not None else 0

    def damage(self) -> None:
        content = b"0" * len(self.hub.models.repositories[NAME].head["bundle/model.onnx"])
        self.hub.switch = lambda number, path: HubFault(content=content) if "canary-signature" in path else None

    def stop(self) -> None:
        self.stopped = True
        self.hub.close()

    def secrets(self) -> tuple[str, ...]:
        return (WRITE_TOKEN,)


def test_values_of_rows_stay_here_unless_the_recipe_sends_them(hub: FakeHub, tmp_path: Path, judged: Bundle) -> None:
    models = registry(hub, tmp_path)
    pulled = open_bundle(models.pull(models.push(judged.path), tmp_path / "pulled"), blessed=True)
    sent = [*hub.models.repositories[NAME].head.values(), *hub.models.uploaded.values()]
    assert not [content for content in sent if ROW_VALUE.encode() in content]
    kept = ("candidates", "evaluation", "outlier", "reference", "reference.whylogs", "sample", "seen_rows.npy")
    assert pulled.withheld == tuple(f"evidence/{name if '.' in name else f'{name}.json'}" for name in kept)
    assert pulled.has("evidence/verdicts.json")
    assert refused(lambda: pulled.read("evidence/sample.json"), BundleError).endswith("holds values of the data's rows")
    assert refused(lambda: models.push(pulled.path), BundleError).count("was published without")

    whole = HubModels(
        models.section.model_copy(update={"repository": "org/whole", "send_values": True}),
        models.connection, tmp_path, tmp_path / "state", LIMITS, upload_here,
    )  # fmt: skip
    complete = open_bundle(whole.pull(whole.push(judged.path), tmp_path / "whole"), blessed=True)
    assert complete.withheld == ()
    assert complete.read("evidence/reference.whylogs") == ROW_VALUE.encode()


def test_the_card_has_metrics_with_intervals_verdicts_and_both_commits(
    hub: FakeHub, tmp_path: Path, judged: Bundle
) -> None:
    reference = registry(hub, tmp_path, license="mit").push(judged.path)
    card = hub.models.repositories[NAME].head["README.md"].decode()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "mit"
    assert header["datasets"] == ["org/loans"]
    assert header["pipeline_tag"] == "tabular-classification"
    metrics = header["model-index"][0]["results"][0]["metrics"]
    assert metrics == [{"type": "roc_auc", "value": 0.741, "name": "roc_auc"}]
    assert "| roc\\_auc | 0.741 | 0.702 to 0.78 (95 %) | 1,479 | DeLong |" in card
    assert "| PASSED | roc\\_auc \\>= 0.7 | 0.741 \\| \\<b\\>1,479 rows\\</b\\> |" in card
    assert f"{LINEAGE.git_commit} (with uncommitted changes)" in card
    for text in (LINEAGE.data_commit, judged.manifest.identity, reference, "`evidence/seen_rows.npy`"):
        assert text in card


def test_a_new_version_replaces_the_old_one_and_leaves_what_others_wrote(
    hub: FakeHub, tmp_path: Path, judged: Bundle
) -> None:
    models = registry(hub, tmp_path)
    first = models.push(judged.path)
    repository = hub.models.repositories[NAME]
    repository.commit({**repository.head, "bundle/engine.json": b"{}", "LICENSE": b"mine"})
    models.push(make_judged_bundle(tmp_path / "second", 2).path)
    assert "bundle/engine.json" not in repository.head
    assert repository.head["LICENSE"] == b"mine"
    assert open_bundle(models.pull(first, tmp_path / "pulled")).manifest == judged.manifest


@pytest.mark.parametrize("times", [1, 2])
def test_a_commit_of_somebody_else_meanwhile_is_kept(hub: FakeHub, tmp_path: Path, judged: Bundle, times: int) -> None:
    repository = hub.models.create(NAME)
    left = [times]

    def push_first(number: int, path: str) -> HubFault | None:
        if not path.endswith("/commit/main") or not left[0]:
            return None
        left[0] -= 1
        return HubFault(act=lambda: repository.commit({**repository.head, f"notes{left[0]}.md": b"theirs"}, "theirs"))

    hub.switch = push_first
    if times == 1:
        registry(hub, tmp_path).push(judged.path)
        assert repository.titles == ["initial commit", "theirs", f"lending {judged.manifest.version}"]
        assert repository.head["notes0.md"] == b"theirs"
        assert repository.tags == {f"v-{judged.manifest.identity[:14]}": repository.branches["main"]}
        return
    assert "others pushed twice meanwhile" in refused(lambda: registry(hub, tmp_path).push(judged.path), ServiceError)
    assert repository.titles[1:] == ["theirs", "theirs"]
    assert repository.tags == {}


def test_a_push_that_hangs_is_ended_shows_nothing_and_is_made_up_for(
    hub: FakeHub, tmp_path: Path, judged: Bundle
) -> None:
    hub.models.create(NAME)
    released = threading.Event()
    hub.switch = lambda number, path: HubFault(status=503, act=released.wait) if path.endswith("/commit/main") else None
    models = replace(registry(hub, tmp_path, child=True), limits=replace(LIMITS, push_seconds=4.0))
    try:
        assert "was stopped after" in refused(lambda: models.push(judged.path), ServiceError)
    finally:
        released.set()
    repository = hub.models.repositories[NAME]
    assert repository.titles == ["initial commit"]
    assert repository.tags == {}
    hub.switch = None
    models = registry(hub, tmp_path)
    assert open_bundle(models.pull(models.push(judged.path), tmp_path / "pulled")).manifest == judged.manifest
    assert len(repository.titles) == 2


def test_a_push_cut_before_its_tag_is_tagged_by_the_next_one(hub: FakeHub, tmp_path: Path, judged: Bundle) -> None:
    hub.switch = lambda number, path: HubFault(status=400) if "/tag/" in path else None
    refused(lambda: registry(hub, tmp_path).push(judged.path), UsageError)
    hub.switch = None
    registry(hub, tmp_path).push(judged.path)
    repository = hub.models.repositories[NAME]
    assert len(repository.titles) == 2
    assert list(repository.tags.values()) == [repository.branches["main"]]


@pytest.mark.parametrize(
    ("token", "message"),
    [("READER", "cannot be written with this token (403"), ("WRONG", "does not know the token (401"),
     ("", "cannot be written without a token")],
)  # fmt: skip
def test_who_may_not_write_is_told_what_to_do(
    hub: FakeHub, tmp_path: Path, judged: Bundle, token: str, message: str
) -> None:
    hub.models.create(NAME, private=False)
    models = registry(hub, tmp_path, token=token, private=False)
    kind: type[MlkitError] = ServiceError if token == "WRONG" else UsageError
    assert message in refused(lambda: models.push(judged.path), kind)
    assert hub.models.repositories[NAME].titles == ["initial commit"]


def test_what_may_not_be_overwritten_or_seen_is_refused(hub: FakeHub, tmp_path: Path, judged: Bundle) -> None:
    repository = hub.models.create(NAME, private=False)
    models = registry(hub, tmp_path)
    assert "is public, and the recipe says private: true" in refused(lambda: models.push(judged.path), UsageError)
    repository.private = True
    repository.commit({"README.md": b"# Mine"})
    assert "was not written by mlkit" in refused(lambda: models.push(judged.path), UsageError)
    repository.commit({})
    hub.models.ignored = ("bundle/evidence/verdicts.json",)
    assert "lacks bundle/evidence/verdicts.json" in refused(lambda: models.push(judged.path), UsageError)
    assert repository.tags == {}


def test_a_licence_that_the_hub_does_not_know_is_refused_before_anything_is_sent(
    hub: FakeHub, tmp_path: Path, judged: Bundle
) -> None:
    models = registry(hub, tmp_path, license="no-such-licence")
    assert '"license" must be one of' in refused(lambda: models.push(judged.path), UsageError)
    assert hub.models.repositories[NAME].titles == ["initial commit"]
    assert hub.models.uploaded == {}


def test_a_tag_of_another_bundle_and_one_that_is_not_blessed_are_not_pulled(
    hub: FakeHub, tmp_path: Path, judged: Bundle
) -> None:
    models = registry(hub, tmp_path)
    first = models.push(judged.path)
    second = models.push(make_judged_bundle(tmp_path / "second", 2).path)
    repository = hub.models.repositories[NAME]
    moved = second.rpartition("@")[2]
    repository.tags[moved] = repository.tags[first.rpartition("@")[2]]
    assert "not the one that the tag names" in refused(lambda: models.pull(second, tmp_path / "in" / "x"), BundleError)
    assert "is there, and is not bundle" in refused(lambda: models.push(tmp_path / "second"), UsageError)
    files = {path: content for path, content in repository.head.items() if path != "bundle/blessing.json"}
    commit = repository.commit(files)
    pull = lambda: models.pull(f"hf://{NAME}@{commit}", tmp_path / "in" / "x")  # noqa: E731
    assert "is not blessed" in refused(pull, BundleError)
    repository.commit({**files, "bundle/../../x": b"1"})
    assert "is no path below bundle/" in refused(
        lambda: models.pull(f"hf://{NAME}@main", tmp_path / "in" / "x"), BundleError
    )
    assert not any((tmp_path / "in").iterdir())


def test_a_reference_that_names_nothing_says_what_there_is(hub: FakeHub, tmp_path: Path, judged: Bundle) -> None:
    models = registry(hub, tmp_path)
    reference = models.push(judged.path)
    error = refused(lambda: models.pull(f"{reference[:-1]}", tmp_path / "x"), ServiceError)
    assert "has no branch, tag or commit" in error
    for text in ("hf://org/lending", "hf://lending@main", "hf://org/../x@main", "hf://org/lending@a..b"):
        refused(lambda text=text: models.pull(text, tmp_path / "x"), UsageError)  # type: ignore[misc]


def test_a_busy_server_is_asked_again_until_the_deadline(hub: FakeHub, tmp_path: Path, judged: Bundle) -> None:
    models = registry(hub, tmp_path)
    reference = models.push(judged.path)
    failing = [2]

    def fail(number: int, path: str) -> HubFault | None:
        failing[0] -= 1
        return HubFault(status=503) if failing[0] >= 0 else None

    hub.switch = fail
    assert models.pull(reference, tmp_path / "pulled").is_dir()
    hub.switch = lambda number, path: HubFault(status=429, headers={"Retry-After": "60"})
    assert "the server answered 429" in refused(lambda: models.pull(reference, tmp_path / "x"), ServiceError)


def test_no_secret_is_left_in_any_file(hub: FakeHub, tmp_path: Path, judged: Bundle) -> None:
    models = registry(hub, tmp_path, child=True)
    models.pull(models.push(judged.path), tmp_path / "pulled")
    here = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    there = [*hub.models.repositories[NAME].head.values(), json.dumps(hub.requests).encode()]
    assert not [content for content in (*here, *there) if WRITE_TOKEN.encode() in content]
