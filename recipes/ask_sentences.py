"""Ask the service of sentences.yaml in words: tokenise here, send the numbers, print what it says of each sentence.

python recipes/ask_sentences.py "ENGINE INGESTED A GULL ON TAKEOFF, RETURNED AND LANDED" "FOUND REMAINS ON RUNWAY"
python recipes/ask_sentences.py --endpoint http://127.0.0.1:8084 < remarks.txt      # a sentence a line
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
    """A row for each sentence, as ``POST /predict`` takes them.

    >>> [(row["t00"], row["t01"], row["t23"]) for row in rows_of(["bird strike", "no"])]
    [(101, 4743, 0), (101, 2053, 0)]
    """
    columns = token_columns(sentences)
    return [{name: int(values[row]) for name, values in columns.items()} for row in range(len(sentences))]


def ask(endpoint: str, sentences: Sequence[str]) -> list[dict[str, Any]]:
    """A prediction for each sentence: its label and the probability of each class. Raises ServiceError."""
    status, answer = request(endpoint, "POST", "/predict", {"rows": rows_of(sentences)})
    if status != 200:
        raise ServiceError(f"{endpoint} answered {status}: {answer}", hint="mlkit status")
    predictions: list[dict[str, Any]] = answer["predictions"]
    return predictions


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", nargs="*", help="none: a sentence a line from the standard input")
    parser.add_argument("--endpoint", default="http://127.0.0.1:8084", help="of the service [%(default)s]")
    options = parser.parse_args()
    sentences = options.sentences or [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not sentences:
        parser.error("there is no sentence to ask about")
    try:
        predictions = ask(options.endpoint, sentences)
    except MlkitError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n")
        return error.exit_code
    for sentence, found in zip(sentences, predictions, strict=True):
        sys.stdout.write(f"{found['label']:<4} {found['probabilities']['yes']:.3f}  {sentence}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
