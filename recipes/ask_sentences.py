"""Client of the sentences.yaml service: tokenises sentences, sends the token ids, prints the prediction of each.

python recipes/ask_sentences.py "ENGINE INGESTED A GULL ON TAKEOFF, RETURNED AND LANDED" "FOUND REMAINS ON RUNWAY"
python recipes/ask_sentences.py --endpoint http://127.0.0.1:8084 < remarks.txt      # one sentence per line
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from sentences import token_columns

from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.service_state.http_client import request


def rows_of(sentences: Sequence[str]) -> list[dict[str, int]]:
    """One row per sentence, in the format of ``POST /predict``.

    >>> [(row["t00"], row["t01"], row["t23"]) for row in rows_of(["bird strike", "no"])]
    [(101, 4743, 0), (101, 2053, 0)]
    """
    columns = token_columns(sentences)
    return [{name: int(values[row]) for name, values in columns.items()} for row in range(len(sentences))]


def predict(endpoint: str, sentences: Sequence[str]) -> list[dict[str, Any]]:
    """The label and class probabilities of each sentence. Raises ServiceError."""
    status, reply = request(endpoint, "POST", "/predict", {"rows": rows_of(sentences)})
    if status != 200:
        raise ServiceError(f"{endpoint} answered {status}: {reply}", hint="mlkit status")
    predictions: list[dict[str, Any]] = reply["predictions"]
    return predictions


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", nargs="*", help="sentences (default: one per line of standard input)")
    parser.add_argument("--endpoint", default="http://127.0.0.1:8084", help="URL of the service [%(default)s]")
    options = parser.parse_args()
    sentences = options.sentences or [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not sentences:
        parser.error("no sentences given")
    try:
        predictions = predict(options.endpoint, sentences)
    except MlkitError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n")
        return error.exit_code
    for sentence, prediction in zip(sentences, predictions, strict=True):
        sys.stdout.write(f"{prediction['label']:<4} {prediction['probabilities']['yes']:.3f}  {sentence}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
