"""The trial that every exported graph must pass: real token ids, and what a reference answers to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]
Logits = Callable[[Sequence[int], int], Rows]
"""A reference: its logits for every position of one sequence, rotated as in a text of so many tokens."""

TEXT = """Every morning before the shops open, Clara rides her old blue bicycle along the river to \
the bakery. She counts 12 bridges, waves to the ferryman, and thinks about what she will cook for \
the evening: soup, perhaps, or "something with far too much garlic", as her brother likes to say. \
Today the water stands high and the wind has turned to the north. A rider in front of her breaks the \
wind; when he tires, she takes the lead, and after a while they change again. Neither of them says a \
word, yet both arrive sooner than either would have alone. On the way home she tries to explain it: \
who leads works harder, who follows rests, and nobody is ever carried. The price is trust. If the \
one in front makes a mistake, the one behind must notice, brake in time, and choose the right way \
without losing the wheel. Is that not how most good work gets done?"""

_PARENTS = (-1, 0, 0, 1, 1, 2, 3)
_PATH = (0, 1, 3, 6)
_FIRST_LEVELS = 3
_MOST = 64
_LEAST = 12


@dataclass(frozen=True, slots=True)
class Trial:
    """A prompt, a branching tree below it, the path that is kept, and tokens that continue the path.

    The tree is also grown in two steps: its first `grown` nodes, then the rest. All is rotated as in a text of `within`
    tokens, where that makes a difference.
    """

    prompt: tuple[int, ...]
    tree: tuple[int, ...]
    parents: tuple[int, ...]
    path: tuple[int, ...]
    rest: tuple[int, ...]
    grown: int
    within: int

    @property
    def length(self) -> int:
        """Cache rows that it needs at most."""
        return len(self.prompt) + len(self.tree) + len(self.rest)

    def branch(self, node: int) -> list[int]:
        """Tokens of the tree from its root to a node."""
        tokens: list[int] = []
        while node >= 0:
            tokens.append(self.tree[node])
            node = self.parents[node]
        return tokens[::-1]


@dataclass(frozen=True, slots=True)
class Answers:
    """A reference's logits in float32 for the rows of a trial: [prompt, V], [tree, V], [rest, V]."""

    prompt: Rows
    tree: Rows
    rest: Rows


def make_trial(ids: Sequence[int], vocab: int, context: int, within: int = 1) -> Trial:
    """Lay out a trial over token ids (repeated if there are few), clipped to the vocabulary.

    Raises ValueError for a context below 12 tokens.
    """
    if context < _LEAST + len(_PARENTS):
        least = _LEAST + len(_PARENTS)
        raise ValueError(f"a context of {context} tokens is too short to check: it takes at least {least}")
    if not ids:
        raise ValueError("the tokenizer makes no tokens out of plain English text")
    size = min(_MOST, context - len(_PARENTS))
    tokens = [min(int(t), vocab - 1) for t in (list(ids) * -(-size // len(ids)))[:size]]
    rest = size // 6
    at = size - rest - len(_PATH)
    tree = [(tokens[at] + 7 * node) % vocab for node in range(len(_PARENTS))]
    for node, token in zip(_PATH, tokens[at:], strict=False):
        tree[node] = token
    prompt, after = tuple(tokens[:at]), tuple(tokens[size - rest :])
    return Trial(prompt, tuple(tree), _PARENTS, _PATH, after, _FIRST_LEVELS, within)


def answer(logits_of: Logits, trial: Trial) -> Answers:
    """Run a trial through a reference, one full sequence per branch."""
    n, kept = len(trial.prompt), len(trial.path)
    main = logits_of([*trial.prompt, *(trial.tree[i] for i in trial.path), *trial.rest], trial.within)
    tree = np.empty((len(trial.tree), main.shape[1]), np.float32)
    tree[list(trial.path)] = main[n : n + kept]
    for node in range(len(trial.tree)):
        if node not in trial.path and node not in trial.parents:
            branch = trial.branch(node)
            rows = logits_of([*trial.prompt, *branch], trial.within)[n:]
            while node >= 0:
                tree[node] = rows[len(trial.branch(node)) - 1]
                node = trial.parents[node]
    return Answers(main[:n], tree, main[n + kept :])
