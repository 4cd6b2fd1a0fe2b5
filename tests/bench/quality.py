"""What each weight format costs in perplexity, against the checkpoint's own weights on the same text.

    python tests/bench/quality.py MODEL TEXT [TEXT ...] [--tokens 30000] [--held-out] [--start "<s>"] [--threads 1]

TEXT: files of stories (as for `paceline train lm`); with --held-out only the hundredth that training leaves out. Every
story is scored from an empty cache behind the token --start. Weights are what the bundle would store; activations are
rounded to 8 bits per row and block, as the kernels do. The error is one standard error of the loss, over stories.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from paceline.export.calibrate import calibrate, calibration_text
from paceline.export.facts import facts
from paceline.export.quantize import quantise
from paceline.export.source import Loaded, load_model
from paceline.export.training.corpus import read_stories
from paceline.export.trial import TEXT

CHANNEL = None
FORMATS: tuple[tuple[str, int, int | None, bool, int | None], ...] = (
    ("int8, block 128", 8, 128, False, 8),
    ("int8, per channel", 8, CHANNEL, False, 8),
    ("int4, block 32, plain", 4, 32, False, 4),
    ("int4, block 32, plain, table 8 bit", 4, 32, False, 8),
    ("int4, block 128, plain", 4, 128, False, 4),
    ("int4, block 128, plain, table 8 bit", 4, 128, False, 8),
    ("int4, block 32, calibrated", 4, 32, True, 4),
    ("int4, block 32, calibrated, table 8 bit", 4, 32, True, 8),
    ("int4, block 128, calibrated", 4, 128, True, 4),
    ("int4, block 128, calibrated, table 8 bit", 4, 128, True, 8),
)
"""Title, bits of the projections, block, calibrated or not, bits of the head (and table)."""


def losses(model: Any, stories: list[list[int]]) -> np.ndarray:
    """Negative log-likelihood of each story, in nats."""
    found = np.empty(len(stories))
    with torch.no_grad():
        for i, story in enumerate(stories):
            ids = torch.tensor([story])
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0]
            found[i] = float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
    return found


def change(before: np.ndarray, after: np.ndarray, tokens: np.ndarray) -> tuple[float, float]:
    """Change of perplexity in percent, and its standard error."""
    mean = float((after - before).sum() / tokens.sum())
    error = float(np.sqrt((((after - before) - mean * tokens) ** 2).sum()) / tokens.sum())
    return 100 * float(np.expm1(mean)), 100 * error * float(np.exp(mean))


def rounded(weight: Tensor, bits: int, block: int | None) -> Tensor:
    """A weight [N, K] after plain rounding."""
    codes = quantise(weight.numpy().T, bits, block or -(-weight.shape[1] // 8) * 8)
    return torch.from_numpy(codes.dense(0, len(weight)))


@contextmanager
def rounded_activations(model: nn.Module, block: int | None) -> Iterator[None]:
    """Within this block every projection reads its input as int8 codes with a scale per row and block."""

    def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        k = inputs[0].shape[-1]
        size = block or k
        while block and size > 32 and size // 2 >= k:
            size //= 2
        parts = F.pad(inputs[0], (0, -k % size)).unflatten(-1, (-1, size))
        top = parts.abs().amax(-1, keepdim=True).clamp_min(1e-30)
        return (((parts * (127 / top)).round() * (top / 127)).flatten(-2)[..., :k],)

    handles = [m.register_forward_pre_hook(read) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def shrink(
    loaded: Loaded,
    text: Callable[[], Tensor],
    bits: int,
    block: int | None,
    calibrated: bool,
    head_bits: int | None,
) -> None:
    """Replace the weights of a model by those of a format."""
    head = loaded.model.get_output_embeddings()
    if calibrated:
        calibrate(loaded, text(), block, head=head_bits == bits)
    for module in loaded.model.modules():
        own = head_bits if module is head else bits
        if isinstance(module, nn.Linear) and own and (not calibrated or (module is head and own != bits)):
            module.weight.data.copy_(rounded(module.weight.data, own, block))


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=30000)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--start", default="<s>")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    loaded = load_model(chosen.model)
    model: Any = loaded.model
    tokenizer = Tokenizer.from_file(str(loaded.folder / "tokenizer.json"))
    first, context, count = tokenizer.token_to_id(chosen.start), facts(loaded).context, 0
    stories: list[list[int]] = []
    for story in dict.fromkeys(s for path in chosen.texts for s in read_stories(path)):
        if count < chosen.tokens and (not chosen.held_out or zlib.crc32(story.encode()) % 100 == 0):
            ids = tokenizer.encode(story, add_special_tokens=False).ids
            stories.append([first, *ids][:context])
            count += len(stories[-1]) - 1
    tokens = np.array([len(story) - 1 for story in stories])
    ours = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    before = losses(model, stories)
    perplexity = np.exp(before.sum() / tokens.sum())
    print(
        f"{loaded.name}: {count} tokens in {len(stories)} stories, perplexity {perplexity:.4f}\n", flush=True
    )
    print("| format | perplexity | change |\n|---|---|---|", flush=True)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.set_attn_implementation(ours)
    text = calibration_text(loaded, tokenizer.encode(TEXT).ids)
    for title, bits, block, calibrated, head_bits in FORMATS:
        model.load_state_dict(kept)
        shrink(loaded, lambda: text, bits, block, calibrated, head_bits)
        model.set_attn_implementation("sdpa")
        with rounded_activations(model, block):
            after = losses(model, stories)
        model.set_attn_implementation(ours)
        percent, error = change(before, after, tokens)
        print(
            f"| {title} | {perplexity * (1 + percent / 100):.4f} | {percent:+.2f} % (±{error:.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
