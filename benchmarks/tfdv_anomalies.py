"""Records what TensorFlow Data Validation itself says of tests/data/tfdv/cases.json.

Run by an interpreter with TFDV (an environment of its own)::

    python -m venv tfdv
    tfdv/bin/pip install "apache-beam==2.61.0" "tensorflow-cpu==2.17.1" "pandas==1.5.3" "pyarrow==10.0.1" "numpy<2"
    tfdv/bin/pip install joblib pyfarmhash "protobuf<5" "setuptools<81"
    tfdv/bin/pip install --no-deps tensorflow-data-validation==1.16.1 tfx-bsl==1.16.1 tensorflow-metadata==1.16.1
    tfdv/bin/python benchmarks/tfdv_anomalies.py

It writes tests/data/tfdv/anomalies.json, which tests/unit/test_tfdv_golden.py compares with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "tfdv"


def columns(tables: dict[str, Any], name: str) -> dict[str, list[Any]]:
    """A table of the cases: ``=`` is the column of table0, ``=80`` its first 80 rows."""
    first = tables["table0"]
    plain = {}
    for key, value in tables[name].items():
        if isinstance(value, str):
            value = first[key][: int(value[1:] or 10**9)]
        plain[key] = [float("inf") if item == "inf" else item for item in value]
    return plain


def record_batch(table: dict[str, list[Any]]) -> Any:
    """An Arrow batch of lists of one value, or null: what TFDV's readers make of cells."""
    import pyarrow as pa

    kinds = {int: pa.int64(), float: pa.float64(), str: pa.binary()}
    arrays = []
    for values in table.values():
        kind = kinds[next((type(item) for item in values if item is not None), str)]
        cells = [None if item is None else [item.encode() if isinstance(item, str) else item] for item in values]
        arrays.append(pa.array(cells, type=pa.list_(kind)))
    return pa.RecordBatch.from_arrays(arrays, list(table))


def main() -> int:
    import tensorflow_data_validation as tfdv
    from google.protobuf import text_format
    from tensorflow_data_validation.statistics import stats_impl, stats_options
    from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2

    document = json.loads((FOLDER / "cases.json").read_text())

    def statistics(name: str, schema: Any) -> Any:
        options = stats_options.StatsOptions(schema=schema)
        batch = record_batch(columns(document["tables"], name))
        return stats_impl.generate_statistics_in_memory(batch, options)

    answers = {}
    for case in document["cases"]:
        schema = text_format.Parse(case["schema"], schema_pb2.Schema())
        others = {
            key: statistics(case[name], schema)
            for key, name in (("previous_statistics", "previous"), ("serving_statistics", "serving"))
            if case[name]
        }
        anomalies = tfdv.validate_statistics(
            statistics(case["table"], schema), schema, environment=case["environment"] or None, **others
        )
        reasons = [
            [name, anomalies_pb2.AnomalyInfo.Type.Name(reason.type), reason.description]
            for name, info in [*sorted(anomalies.anomaly_info.items()), ("", anomalies.dataset_anomaly_info)]
            for reason in info.reason
        ]
        measured = [
            [item.path.step[0], measurement.value]
            for item in anomalies.drift_skew_info
            for measurement in [*item.drift_measurements, *item.skew_measurements]
        ]
        answers[case["name"]] = {"reasons": reasons, "measured": measured}
    text = json.dumps({"tfdv": tfdv.__version__, "answers": answers}, indent=1)
    (FOLDER / "anomalies.json").write_text(text + "\n")
    sys.stdout.write(f"TFDV {tfdv.__version__}: {len(answers)} cases\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
