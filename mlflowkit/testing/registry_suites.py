"""The contract of registries of models; see `mlflowkit.testing`."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import pytest

from mlflowkit.bundle import Bundle, open_bundle
from mlflowkit.errors import BundleError, MlkitError, ServiceError, UsageError
from mlflowkit.ports import ModelRegistry


class ModelRegistryContract:
    """The contract of `mlflowkit.ports.ModelRegistry`. A subclass provides a registry that is empty for each test."""

    @abstractmethod
    def registry(self) -> ModelRegistry:
        """The registry; called again, another client of the same one."""

    @abstractmethod
    def make(self, folder: Path, seed: int, *, blessed: bool = True) -> Bundle:
        """A bundle in a new folder; another ``seed`` is another identity."""

    @abstractmethod
    def versions(self) -> int:
        """How many versions the registry shows."""

    @abstractmethod
    def damage(self) -> None:
        """Have the registry send other bytes of the graph."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the server."""

    def secrets(self) -> tuple[str, ...]:
        """Secrets that no error may hold."""
        return ()

    def test_what_is_pulled_is_the_bundle_that_was_pushed(self, tmp_path: Path) -> None:
        bundle = self.make(tmp_path / "made", 1)
        reference = self.registry().push(bundle.path)
        pulled = self.registry().pull(reference, tmp_path / "in" / "pulled")
        opened = open_bundle(pulled, blessed=True)
        assert opened.manifest == bundle.manifest
        assert opened.blessing == bundle.blessing
        assert opened.model.read_bytes() == bundle.model.read_bytes()
        assert [path.name for path in (tmp_path / "in").iterdir()] == ["pulled"]

    def test_a_bundle_is_one_version_however_often_it_is_pushed(self, tmp_path: Path) -> None:
        bundle = self.make(tmp_path / "made", 1)
        references = {self.registry().push(bundle.path) for _ in range(2)}
        assert len(references) == 1
        assert self.versions() == 1
        other = self.make(tmp_path / "other", 2)
        assert self.registry().push(other.path) not in references
        assert self.versions() == 2
        pulled = self.registry().pull(references.pop(), tmp_path / "pulled")
        assert open_bundle(pulled).manifest.identity == bundle.manifest.identity

    def test_a_bundle_that_is_not_blessed_is_not_pushed(self, tmp_path: Path) -> None:
        bundle = self.make(tmp_path / "made", 1, blessed=False)
        with pytest.raises(BundleError):
            self.registry().push(bundle.path)
        assert self.versions() == 0

    def test_a_pull_leaves_what_is_there(self, tmp_path: Path) -> None:
        first, second = (self.registry().push(self.make(tmp_path / str(seed), seed).path) for seed in (1, 2))
        folder = self.registry().pull(first, tmp_path / "pulled")
        before = (folder / "model.onnx").stat().st_mtime_ns
        assert self.registry().pull(first, folder) == folder
        with pytest.raises((UsageError, BundleError)):
            self.registry().pull(second, folder)
        assert (folder / "model.onnx").stat().st_mtime_ns == before

    def test_other_bytes_are_refused_and_leave_nothing(self, tmp_path: Path) -> None:
        reference = self.registry().push(self.make(tmp_path / "made", 1).path)
        self.damage()
        error = self._refused(reference, tmp_path / "in" / "pulled")
        assert isinstance(error, BundleError | ServiceError)
        assert not any((tmp_path / "in").iterdir())

    def test_a_server_that_is_down_is_an_error_with_a_hint(self, tmp_path: Path) -> None:
        bundle = self.make(tmp_path / "made", 1)
        reference = self.registry().push(bundle.path)
        self.stop()
        assert isinstance(self._refused(reference, tmp_path / "pulled"), ServiceError)
        with pytest.raises(ServiceError) as caught:
            self.registry().push(self.make(tmp_path / "other", 2).path)
        self._check(caught.value)

    def _refused(self, reference: str, folder: Path) -> MlkitError:
        with pytest.raises(MlkitError) as caught:
            self.registry().pull(reference, folder)
        self._check(caught.value)
        return caught.value

    def _check(self, error: MlkitError) -> None:
        assert error.hint
        assert not [secret for secret in self.secrets() if secret in f"{error.message} {error.hint}"]
