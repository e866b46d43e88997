"""The code beside sentences.yaml: what a sentence becomes, and that remembering embeddings changes no answer."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlflowkit import usercode

pytestmark = pytest.mark.heavy

RECIPES = Path(__file__).parents[2] / "recipes"
SENTENCES = ["Engine ingested a gull on takeoff, returned and landed", "remains found on the runway", "bird", "FLT 628"]


@cache
def load(reference: str) -> Any:
    return usercode.load(reference, RECIPES)


def tokens() -> torch.Tensor:
    return torch.from_numpy(np.stack(list(load("sentences:token_columns")(SENTENCES).values()), axis=1)).float()


@pytest.fixture(scope="module")
def head() -> Any:
    torch.manual_seed(0)
    return load("sentences:SentenceHead")(features=tokens().shape[1], outputs=2)


def test_embeddings_that_are_remembered_give_the_same_answers(head: Any) -> None:
    """While training each sentence is encoded once, in a chunk with whatever others there are."""
    asked = tokens()
    with torch.no_grad():
        head.eval()
        fresh = [head(asked[row : row + 1]) for row in range(len(asked))]
        head.train()
        head.eval()
        assert torch.allclose(head(asked), torch.cat(fresh), atol=1e-5)
        assert torch.equal(head(asked[[1, 1, 0]]), head(asked)[[1, 1, 0]])


def test_only_the_head_is_trained(head: Any) -> None:
    learnt = {name for name, parameter in head.named_parameters() if parameter.requires_grad}
    assert learnt == {"head.1.weight", "head.1.bias"}


def test_numbers_that_are_no_token_are_answered_as_the_nearest_that_is(head: Any) -> None:
    asked = tokens()
    beyond = asked.clone()
    beyond[:, 1] = 1e9
    asked[:, 1] = head.encoder.shape.vocabulary - 1
    with torch.no_grad():
        assert torch.equal(head.eval()(beyond), head(asked))


def test_a_table_with_more_columns_than_the_encoder_has_places_is_refused() -> None:
    with pytest.raises(ValueError, match="the encoder takes 512 tokens at most"):
        load("sentences:SentenceHead")(features=513, outputs=2)


def test_the_client_says_where_nothing_answers() -> None:
    command = [sys.executable, str(RECIPES / "ask_sentences.py"), "--endpoint", "http://127.0.0.1:9", "a bird"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 3
    assert "nothing answers at http://127.0.0.1:9" in found.stderr
