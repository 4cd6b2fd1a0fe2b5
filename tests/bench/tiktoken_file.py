"""A tokenizer from a file of ranks, as Qwen's are published: a line for each token, its bytes in base64 and a rank."""

from __future__ import annotations

import base64
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models

from paceline.export.gguf.splitting import SPLITS
from paceline.runtime.detokenizer import byte_alphabet

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def qwen_tokenizer(path: Path) -> Tokenizer:
    """Qwen2's: the ranks of the file, then its three control tokens."""
    ranks: dict[bytes, int] = {}
    for line in path.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    letters = {byte: letter for letter, byte in byte_alphabet().items()}

    def spelled(piece: bytes) -> str:
        return "".join(map(letters.__getitem__, piece))

    merges = [tuple(map(spelled, _halves(token, ranks))) for token in ranks if len(token) > 1]
    tokenizer = Tokenizer(models.BPE({spelled(token): rank for token, rank in ranks.items()}, merges))
    split = SPLITS["qwen2"]
    tokenizer.normalizer, tokenizer.pre_tokenizer = split.normalizer(), split.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROLS])
    return tokenizer


def _halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that a token is made of: what merges of lower rank leave of its bytes."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        made = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        at = min(range(len(made)), key=made.__getitem__)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
