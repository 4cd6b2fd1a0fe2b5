"""What a target answers, with the hidden states of every row, written by its own bundle: what draft heads learn from.

Several conversations are written at a time, each a branch of one tree in one cache: a pass has one row for each of
them, and costs less than as many passes. A row's bits do not depend on its neighbours, so tokens and states are those
of plain decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import msgspec
import numpy as np
import numpy.typing as npt

from paceline.export.errors import ExportError, first_line
from paceline.export.heads.config import TargetId, target_id
from paceline.memory.cache import KeyValueCache
from paceline.runtime.bundle.bundle import Bundle, open_bundle
from paceline.runtime.bundle.precision import cache_form
from paceline.runtime.bundle.whole_file import claims, whole_file, write_atomically
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.passes import Pass, Passes
from paceline.runtime.template.chat_template import ChatTemplate
from paceline.runtime.text.text import Text

FINAL = "hidden"
"""The tap after the final norm: the head of the target over it gives the target's law."""
INDEX = "index.json"
_SHARDS = "shard-[0-9][0-9][0-9][0-9][0-9].npz"
_SHARD = 16
"""Conversations of a file."""
_CHUNK = 256
"""Rows of a pass over a prompt."""
_LARGEST = np.finfo(np.float16).max

Halves = npt.NDArray[np.float16]


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is written. taps: of the target, without FINAL, which comes last. Lengths in tokens.

    final: whether FINAL comes at all, for a target may give no taps. temperatures: conversations take turns; 0 is
    greedy. A longer prompt than `prompt` is passed over.
    """

    taps: tuple[str, ...]
    longest: int = 256
    prompt: int = 512
    temperatures: tuple[float, ...] = (0.0, 0.0, 1.0)
    seed: int = 0
    final: bool = True

    @property
    def kept(self) -> tuple[str, ...]:
        """All taps that are written, in their order."""
        return (*self.taps, FINAL) if self.final else self.taps


class _Index(msgspec.Struct, frozen=True, kw_only=True):
    """The set that a folder holds: it is gone on with only where all of this is the same."""

    target: TargetId
    prompts: str
    """sha256 of them."""
    wish: Wish

    def goes_on(self, other: _Index) -> bool:
        """Whether the other set is this one: the same weights answered, whatever else their graph gives, the same."""
        return (self.target.weights, self.prompts, self.wish) == (
            other.target.weights,
            other.prompts,
            other.wish,
        )


@dataclass(frozen=True, slots=True)
class Conversation:
    """tokens int32[N], the first `prompt` of them asked; taps float16[N, K, H], the last row 0: it was never run."""

    tokens: npt.NDArray[np.int32]
    prompt: int
    taps: Halves


class Answers:
    """The conversations of a folder. Raises ValueError where there are none."""

    def __init__(self, folder: Path) -> None:
        try:
            self.index = msgspec.json.decode((folder / INDEX).read_bytes(), type=_Index)
        except (OSError, msgspec.MsgspecError):
            raise ValueError(f"{folder} holds no answers of a target: make them in another folder") from None
        self.taps = self.index.wish.kept
        self._shards = sorted(folder.glob(_SHARDS))

    def __iter__(self) -> Iterator[Conversation]:
        for shard in self._shards:
            yield from self._read(shard)[1]

    def numbers(self) -> set[int]:
        """The prompts that were answered."""
        return {number for shard in self._shards for number in self._read(shard)[0]}

    def answered(self) -> int:
        """Tokens of all answers."""
        return sum(len(found.tokens) - found.prompt for found in self)

    def _read(self, shard: Path) -> tuple[list[int], list[Conversation]]:
        """The numbers of the prompts of a file, and its conversations. Raises ValueError for a damaged one."""
        try:
            with np.load(shard, allow_pickle=False) as file:
                tokens, taps, ends = file["tokens"], file["taps"], file["ends"].tolist()
                prompts, numbers = file["prompts"].tolist(), file["numbers"].tolist()
            starts = [0, *ends[:-1]]
            whole = taps.dtype == np.float16 and taps.shape[:2] == (len(tokens), len(self.taps))
            inside = all(s < s + p < e for s, p, e in zip(starts, prompts, ends, strict=True))
            if not (whole and inside and len(numbers) == len(ends) and ends[-1] == len(tokens)):
                raise ValueError("its parts do not go together")
            if tokens.min() < 0:
                raise ValueError(f"it has the token {tokens.min()}")
        except (OSError, EOFError, KeyError, IndexError, TypeError, ValueError, BadZipFile) as error:
            raise ValueError(
                f"{shard} is damaged ({first_line(error)}): delete it, and its prompts are answered again"
            ) from None
        places = zip(starts, ends, prompts, strict=True)
        return numbers, [Conversation(tokens[s:e], p, taps[s:e]) for s, e, p in places]


@claims("folder")
def write_answers(
    folder: Path,
    prompts: Sequence[str],
    bundle: Path,
    wish: Wish,
    tokens: int,
    *,
    threads: int,
    slots: int = 8,
    report: Callable[[int], None] = lambda tokens: None,
) -> Answers:
    """Let a bundle answer prompts until there are so many tokens of answers, or no more prompts; goes on where it was.

    slots: conversations at a time. report: is told the tokens so far. Raises ExportError where the bundle lacks the
    taps, ValueError where the folder holds another set, BundleError for the bundle.
    """
    opened = open_bundle(bundle)
    lacking = [tap for tap in wish.kept if tap not in opened.manifest.target.taps]
    if lacking:
        raise ExportError(
            f"{bundle} gives no {', '.join(lacking)}: make a bundle that does with "
            f"`paceline export {bundle} OUT --taps {','.join(wish.kept)}`"
        )
    _begin(folder, opened, prompts, wish)
    answers = Answers(folder)
    done, written = answers.numbers(), answers.answered()
    report(written)
    writer = _Writer(opened, wish, threads, slots)
    waiting = (number for number in range(len(prompts)) if number not in done)
    finished: list[_Slot] = []
    try:
        while written + sum(slot.answered for slot in finished) < tokens:
            ended = writer.round(waiting, prompts)
            if ended is None:
                break
            finished += ended
            if ended:
                report(written + sum(slot.answered for slot in finished))
            if len(finished) >= _SHARD:
                written += _keep(folder, finished)
                finished = []
    finally:  # whoever stops it loses what is half written alone
        if finished:
            _keep(folder, finished)
    return Answers(folder)


def _begin(folder: Path, bundle: Bundle, prompts: Sequence[str], wish: Wish) -> None:
    """Write the index, or compare it with the one that is there."""
    asked = hashlib.sha256("\0".join(prompts).encode()).hexdigest()
    index = _Index(target=target_id(bundle.manifest), prompts=asked, wish=wish)
    if not (folder / INDEX).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / INDEX, msgspec.json.format(msgspec.json.encode(index)), private=False)
    elif not Answers(folder).index.goes_on(index):
        raise ValueError(
            f"{folder} holds answers of another bundle, to other prompts or of other lengths: use another folder"
        )


def _keep(folder: Path, finished: Sequence[_Slot]) -> int:
    """Write conversations as one more file; returns the tokens of their answers."""
    number = max((int(path.stem[6:]) for path in folder.glob(_SHARDS)), default=-1) + 1
    with whole_file(folder / f"shard-{number:05}.npz", private=False) as file:
        np.savez(
            file,
            tokens=np.concatenate([slot.tokens for slot in finished]).astype(np.int32),
            ends=np.cumsum([len(slot.tokens) for slot in finished]),
            prompts=np.array([slot.prompt for slot in finished]),
            numbers=np.array([slot.number for slot in finished]),
            taps=np.concatenate([slot.states() for slot in finished]),
        )
    return sum(slot.answered for slot in finished)


@dataclass(slots=True)
class _Slot:
    """A conversation that is being written. tokens: also the next one to run. taps: float16[T, K, H] of each pass."""

    number: int
    tokens: list[int]
    prompt: int
    temperature: float
    rng: np.random.Generator
    taps: list[Halves] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt

    def choose(self, row: npt.NDArray[np.float32]) -> int:
        """The next token, of logits [V]."""
        if self.temperature == 0:
            return int(row.argmax())
        raised = (row.astype(np.float64) - float(row.max())) / self.temperature
        total = np.cumsum(np.exp(raised))
        return int(np.searchsorted(total, self.rng.random() * total[-1], side="right"))

    def states(self) -> Halves:
        """float16[tokens, K, H]."""
        held = np.concatenate(self.taps)
        return np.concatenate([held, np.zeros_like(held[:1])])


class _Writer:
    """Conversations side by side in one cache, whose rows know which of them they belong to."""

    def __init__(self, bundle: Bundle, wish: Wish, threads: int, slots: int) -> None:
        part, device = bundle.manifest.target, find_device("cpu")
        if part.rope is not None:
            raise ExportError(
                f"{bundle.folder}: its positions depend on the length of the text, which is not supported here"
            )
        self._wish, self._slots = wish, slots
        self._text = Text.load(bundle.folder, bundle.generation)
        self._template = ChatTemplate.load(bundle.folder, self._text)
        self._ends = frozenset(bundle.generation.eos_ids)
        self._context = min(part.context, wish.prompt + wish.longest)
        capacity = slots * self._context + _CHUNK
        form = cache_form(bundle.manifest, None)  # the states are those of the cache that a session has
        path = part.graph_for(form)
        graph = Graph(bundle.path(path), device, threads, part, raw=bundle.read_graph(path))
        self._cache = KeyValueCache(part.layers, part.kv_heads, capacity, part.head_dim, form)
        widest = _CHUNK * (capacity + _CHUNK) // slots + 1  # columns, of a mask as large as that of a chunk
        self._passes = Passes(graph, part, self._cache.inputs(), slots, _CHUNK, widest, False)
        self._owner = np.full(capacity, -1, np.int64)
        self._rows = 0
        self._live: list[_Slot] = []

    def round(self, waiting: Iterator[int], prompts: Sequence[str]) -> list[_Slot] | None:
        """One more token of every conversation, after new ones took the places of those that ended.

        Returns those that ended, None where nothing is left to do.
        """
        ended = []
        while len(self._live) < self._slots and (number := next(waiting, None)) is not None:
            slot = self._opened(number, prompts[number])
            if slot is not None:
                self._live.append(slot)
        if not self._live:
            return None
        for slot in [slot for slot in self._live if self._over(slot)]:  # a prompt whose first token ends it
            ended.append(slot)
        self._forget(ended)
        if self._live:
            last = [slot.tokens[-1] for slot in self._live]
            positions = [len(slot.tokens) - 1 for slot in self._live]
            owners = np.array([slot.number for slot in self._live])
            done = self._run(last, positions, owners, np.eye(len(last), dtype=np.bool_), len(last))
            states = self._states(done)
            for at, slot in enumerate(self._live):
                slot.taps.append(states[at : at + 1])
                slot.tokens.append(slot.choose(done.logits[at]))
        over = [slot for slot in self._live if self._over(slot)]
        self._forget(over)
        return ended + over

    def _over(self, slot: _Slot) -> bool:
        return (
            slot.tokens[-1] in self._ends
            or slot.answered >= self._wish.longest
            or len(slot.tokens) >= self._context
        )

    def _opened(self, number: int, prompt: str) -> _Slot | None:
        """Read a prompt; None for one that is too long."""
        wish = self._wish
        if self._template is None:
            ids = self._text.encode(prompt)
        else:
            ids = self._text.encode_marked(self._template.render([{"role": "user", "content": prompt}]))
        if not 0 < len(ids) <= min(wish.prompt, self._context - 1):
            return None
        rng = np.random.default_rng([wish.seed, number])
        slot = _Slot(number, list(ids), len(ids), wish.temperatures[number % len(wish.temperatures)], rng)
        for at in range(0, len(ids), _CHUNK):
            part = ids[at : at + _CHUNK]
            n = len(part)
            owners, last = np.full(n, number), at + n == len(ids)
            done = self._run(part, range(at, at + n), owners, np.tri(n, dtype=np.bool_), int(last))
            slot.taps.append(self._states(done))
            if last:
                slot.tokens.append(slot.choose(done.logits[0]))
        return slot

    def _run(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        owners: npt.NDArray[np.int64],
        new: npt.NDArray[np.bool_],
        want: int,
    ) -> Pass:
        """A pass over rows that see the earlier rows of their own conversation, and of the new ones those of `new`."""
        past, n = self._rows, len(tokens)
        mask = np.concatenate([self._owner[None, :past] == owners[:, None], new], axis=1)
        done = self._passes.run(tokens, np.asarray(positions, np.int64), mask, past, want)
        self._cache.write(past, done.new, slice(None))
        self._owner[past : past + n] = owners
        self._rows += n
        return done

    def _states(self, done: Pass) -> Halves:
        """float16[T, K, H] of a pass."""
        if not self._wish.kept:
            return np.zeros((done.token_ids.size, 0, 0), np.float16)
        rows = np.stack([done.extras[tap] for tap in self._wish.kept], axis=1)
        halves: Halves = np.clip(rows, -_LARGEST, _LARGEST).astype(np.float16)
        return halves

    def _forget(self, ended: Sequence[_Slot]) -> None:
        """Drop the rows of conversations that ended: every pass would look at them."""
        if not ended:
            return
        gone = {slot.number for slot in ended}
        self._live = [slot for slot in self._live if slot.number not in gone]
        stay = np.flatnonzero(~np.isin(self._owner[: self._rows], list(gone)))
        if len(stay):
            first = int(np.argmax(stay != np.arange(len(stay)))) if stay[-1] != len(stay) - 1 else len(stay)
            self._cache.gather(first, stay[first:].tolist())
            self._owner[: len(stay)] = self._owner[stay]
        self._rows = len(stay)
