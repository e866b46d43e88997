"""Runs a compiled Kubeflow pipeline on this machine: its graphs in order, its containers as processes.

What Kubeflow does around a container is done here: inputs from the run, from tasks and from outer graphs; conditions;
paths of outputs; placeholders in commands and arguments; secrets as environment variables. Images are not run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_PLACEHOLDER = re.compile(r"\{\{\$\.(\w+)\.(\w+)\['([^']+)'\]\.?(\w*)\}\}")
_CONDITION = re.compile(r"inputs\.parameter_values\['([^']+)'\] == '([^']*)'")


class TaskFailed(Exception):
    """A container ended with another exit code than 0."""


@dataclass
class KfpRun:
    """One run. ``secrets`` are values by (Secret, key); ``before`` is called with the name of each task."""

    text: str
    folder: Path
    environment: Mapping[str, str]
    secrets: Mapping[tuple[str, str], str] = field(default_factory=dict)
    before: Callable[[str], None] = lambda name: None
    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def run(self, **parameters: str) -> None:
        """Run the pipeline. Raises TaskFailed, and KeyError for a parameter that is needed and not given."""
        self._spec, platform = yaml.safe_load_all(self.text)
        self._platform = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        values: dict[str, str] = {}
        for name, definition in self._spec["root"]["inputDefinitions"]["parameters"].items():
            values[name] = parameters[name] if name in parameters else definition["defaultValue"]
        assert set(parameters) <= set(values)
        self._graph(self._spec["root"]["dag"], values, {})

    def _graph(self, dag: Mapping[str, Any], values: Mapping[str, str], artifacts: Mapping[str, Path]) -> None:
        done: dict[str, tuple[dict[str, str], dict[str, Path]]] = {}
        waiting = dict(dag["tasks"])
        while waiting:
            ready = [name for name, task in waiting.items() if set(task.get("dependentTasks", ())) <= set(done)]
            assert ready, f"these wait for one another: {sorted(waiting)}"
            task = waiting.pop(ready[0])
            done[ready[0]] = self._task(ready[0], task, values, artifacts, done)

    def _task(
        self, name: str, task: Mapping[str, Any], values: Mapping[str, str], artifacts: Mapping[str, Path],
        done: Mapping[str, tuple[dict[str, str], dict[str, Path]]],
    ) -> tuple[dict[str, str], dict[str, Path]]:  # fmt: skip
        component = self._spec["components"][task["componentRef"]["name"]]
        given: dict[str, str] = {}
        files: dict[str, Path] = {}
        for key, source in task["inputs"].get("parameters", {}).items():
            output = source.get("taskOutputParameter")
            assert output is None or output["producerTask"] in task["dependentTasks"] or output["producerTask"] in done
            given[key] = (
                done[output["producerTask"]][0][output["outputParameterKey"]]
                if output
                else values[source["componentInputParameter"]]
            )
        for key, source in task["inputs"].get("artifacts", {}).items():
            output = source.get("taskOutputArtifact")
            files[key] = (
                done[output["producerTask"]][1][output["outputArtifactKey"]]
                if output
                else artifacts[source["componentInputArtifact"]]
            )
        defined = component["inputDefinitions"]
        assert set(given) == set(defined.get("parameters", {})), f"{name}: inputs are not those of its component"
        assert set(files) == set(defined.get("artifacts", {}))
        if "triggerPolicy" in task:
            match = _CONDITION.fullmatch(task["triggerPolicy"]["condition"])
            assert match, task["triggerPolicy"]
            if given[match[1]] != match[2]:
                self.skipped.append(name)
                return {}, {}
        if "dag" in component:
            self._graph(component["dag"], given, files)
            return {}, {}
        return self._container(name, component, given, files)

    def _container(
        self, name: str, component: Mapping[str, Any], given: Mapping[str, str], files: Mapping[str, Path]
    ) -> tuple[dict[str, str], dict[str, Path]]:
        self.before(name)
        defined = component.get("outputDefinitions", {})
        folder = self.folder / name
        written = {key: folder / "parameters" / key for key in defined.get("parameters", {})}
        made = {key: folder / "artifacts" / key for key in defined.get("artifacts", {})}
        paths: dict[tuple[str, str, str], Any] = {
            **{("inputs", "parameters", key): value for key, value in given.items()},
            **{("inputs", "artifacts", key): _downloaded(path, folder / "inputs" / key) for key, path in files.items()},
            **{("outputs", "parameters", key): value for key, value in written.items()},
            **{("outputs", "artifacts", key): value for key, value in made.items()},
        }
        executor = self._spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        words = [
            _PLACEHOLDER.sub(lambda match: str(paths[match[1], match[2], match[3]]), word)
            for word in [*executor["command"], *executor["args"]]
        ]
        self.ran.append(name)
        done = subprocess.run(
            words, env=self._environment(component["executorLabel"], executor), cwd=self.folder, timeout=500,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise TaskFailed(f"{name}: exit code {done.returncode}: {done.stderr[-2000:]}")
        return {key: path.read_text() for key, path in written.items()}, made

    def _environment(self, label: str, executor: Mapping[str, Any]) -> dict[str, str]:
        variables = {item["name"]: item["value"] for item in executor["env"]}
        for secret in self._platform[label].get("secretAsEnv", ()):
            for key in secret["keyToEnv"]:
                variables[key["envVar"]] = self.secrets[secret["secretName"], key["secretKey"]]
        return {"PATH": os.environ["PATH"], **variables, **self.environment}


def _downloaded(source: Path, target: Path) -> Path:
    """A copy of an artifact: what one container writes into it no other one sees."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    return target
