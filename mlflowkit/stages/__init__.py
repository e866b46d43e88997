"""The stages of a run, each a Section and a Spec beside ``run(spec, context) -> StageResult``.

What each stage publishes (a folder; names are the contract between stages):

data      train.parquet validation.parquet test.parquet   raw columns and the target, in source order
          split.npy         the part of each source row (uint8: 0 train, 1 validation, 2 test)
          table.json        TableInfo: columns and their kinds, target, classes, rows of each split, data version
validate  checks.json       list of {check, column, passed, message, failed, failures: [[row, value]], error,
                            inconclusive, blocking}
          evidence/I-KIND/  what a check by a file wrote (I counts data.checks from 0)
          version.json      {data_version, rows}, and sample.parquet (with a drift check), for the next version
          schema.json       the frozen schema {column: {dtype, nullable}}
          reference.whylogs reference.json    reference profile of the training features, and its summary
train     spec.json         the train Spec, features (numeric, categorical), classes, width, outputs, target_scale
          preprocess.json   fill, center, scale of numeric columns; categories of the others
          (mlflowkit.features.preprocess)
          model.safetensors (torch) or model.skops (sklearn; the estimator alone, after preprocessing)
          curves.json       {metric name: [value per epoch]}, with "epoch"
export    model.onnx signature.json parity.json {rows, max_abs_difference, label_mismatches, tolerance}
optimize  model.onnx signature.json (of the pick) · engine.json (what it runs on, unless that is the default) ·
          candidates.json (the list that `bench --json` prints, with "metric", "metric_drop", "front" and "picked") ·
          latency.json {candidate: {"samples_us": [...], ...}} · machine.json {machine, moments, notes} (where they were
          measured) · scripts/reproduce-*.py (of candidates that failed)
evaluate  evaluation.json   {metrics: {name: Measurement}, confusion | residuals, calibration, slices,
                            champion: {version, rows (compared on), left_out (test rows that just one of the two was
                            trained on), why, metrics, undefined, fault},
                            fairness: [{metric, column, groups: [{group, rows, rates}], not_compared, note}], ...}
          verdicts.json     list of Verdict · predictions.parquet (test rows: target, prediction, scores)
package   bundle/           see mlflowkit.bundle
deploy    service.json      {service, endpoint, version, epoch}
"""
