"""Generated DAGs under a real Airflow, which has an environment of its own: AIRFLOW, or the folder of MLKIT_TOOLS."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.tools import require_tool

LOAD = """
import json, sys, time, uuid
from pathlib import Path
import airflow.sdk
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
before = set(sys.modules)
started = time.process_time()
bag = DagBag(dag_folder=sys.argv[1])
answer = {"errors": {str(key): value for key, value in bag.import_errors.items()}, "dags": {},
          "seconds": time.process_time() - started, "imported": sorted(set(sys.modules) - before)}
for dag in bag.dags.values():
    tasks = {}
    for task in dag.tasks:
        facts = {"kind": type(task).__name__, "after": sorted(task.upstream_task_ids), "retries": task.retries}
        if isinstance(task, KubernetesPodOperator):
            context = {"run_id": "manual__1", "dag_run": type("Run", (), {"run_type": sys.argv[2]})(),
                       "triggering_asset_events": {}, "ti": None, "params": {}}
            task.render_template_fields(context)
            pod = task.build_pod_request_obj()
            from kubernetes.client import ApiClient
            facts["pod"] = ApiClient().sanitize_for_serialization(pod)
        tasks[task.task_id] = facts
    answer["dags"][dag.dag_id] = {"tasks": tasks, "timetable": repr(dag.timetable), "catchup": dag.catchup,
                                  "runs": dag.max_active_runs}
print("ANSWER" + json.dumps(answer))
"""
INSTALL = "pip install apache-airflow==3.3.2 apache-airflow-providers-cncf-kubernetes==10.25.0 in its own environment"
KUBECONFIG = {
    "apiVersion": "v1", "kind": "Config", "current-context": "none",
    "clusters": [{"name": "none", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "none", "user": {}}],
    "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
}  # fmt: skip


class AirflowWorld:
    """An Airflow with a database of its own in a folder."""

    def __init__(self, folder: Path, dags: Path, **environment: str) -> None:
        self.airflow = Path(os.environ.get("AIRFLOW") or require_tool("airflow", INSTALL))
        self.folder, self.dags = folder, dags
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "kubeconfig"
        config.write_text(json.dumps(KUBECONFIG))
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "AIRFLOW_HOME": str(folder), "KUBECONFIG": str(config),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING", "PYTHONWARNINGS": "ignore", **environment,
        }  # fmt: skip

    def load(self, run_type: str = "scheduled") -> dict[str, Any]:
        """What the DAG processor finds, and the pods that tasks would ask for."""
        done = self._run([str(self.airflow.parent / "python"), "-c", LOAD, str(self.dags), run_type], {})
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        line = next(line for line in done.stdout.splitlines() if line.startswith("ANSWER"))
        value: dict[str, Any] = json.loads(line.removeprefix("ANSWER"))
        return value

    def migrate(self) -> None:
        done = self._run([str(self.airflow), "db", "migrate"], {})
        assert done.returncode == 0, done.stderr[-3000:]

    def run_dag(self, dag: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a DAG in this process's stead: ``airflow dags test``."""
        return self._run([str(self.airflow), "dags", "test", dag], environment)

    def _run(self, command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=500,
        )
