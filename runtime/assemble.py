"""From names to parts: the only place that knows every drafter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from paceline.memory.cache import CacheFormat
from paceline.memory.ladder import Ceiling
from paceline.runtime.bundle import Bundle
from paceline.runtime.contracts import Drafter
from paceline.runtime.control import PayingDrafter
from paceline.runtime.device import Device
from paceline.runtime.drafters.fused import Fused
from paceline.runtime.drafters.lookup import PromptLookup
from paceline.runtime.drafters.model import ChainModel, TreeModel
from paceline.runtime.drafters.plain import Plain
from paceline.runtime.drafters.recycle import Recycle
from paceline.runtime.drafters.store import SuffixStore
from paceline.runtime.drafters.suffix import Suffix
from paceline.runtime.manifest import Part
from paceline.runtime.overheads import Key, resident, weigh
from paceline.runtime.pressure import give_back
from paceline.runtime.session import Graph
from paceline.runtime.target import Model
from paceline.runtime.text import Text

MODEL_FREE = ("lookup", "suffix", "recycle")
_FRONTIER = 4
_RECYCLED = 8
"""Successors of a token that recycling keeps."""
_LEAST_INDEX = 64
_SMALL = 50_000_000
"""Below this many parameters a second thread costs a draft model more than it brings."""
_DEPTHS = {"chain": 4, "tree": 5, "lookup": 6, "suffix": 6, "recycle": 4}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user chose once for a session."""

    context: int
    threads: int
    max_nodes: int
    draft_depth: int | None
    device: Device
    device_draft: Device
    suffix_store: Path | None
    cache: CacheFormat = "fp32"
    draft_rows: int | None = None
    """Most rows of a draft model's cache; None: as many as the context has."""
    chunk: int = 256
    """Prompt tokens a pass."""
    models: bool = True
    """Whether memory allows a draft model."""
    tables: bool = True
    """Whether memory allows drafters that need no model."""
    reserved: bool = False
    """Whether buffers become resident at once: a budget holds from the start or not at all."""


class Workshop:
    """Builds the target and, when first asked for, draft models and drafters of one bundle."""

    def __init__(self, bundle: Bundle, settings: Settings, text: Text) -> None:
        self._bundle, self._settings, self._text = bundle, settings, text
        self._models: dict[str, Model] = {}
        self._paying: PayingDrafter | None = None
        self.store: SuffixStore | None = None

    def target(self) -> Model:
        """The target, with buffers for trees of `max_nodes` nodes."""
        s, part = self._settings, self._bundle.manifest.target
        before = resident()
        graph = Graph(self._bundle.path(part.graph_for(s.cache)), s.device, s.threads, part)
        opened = resident() - before
        widest = s.max_nodes + 1 if s.models or s.tables else 1
        model = Model(graph, part, s.context, widest, s.chunk, reserved=s.reserved, cache=s.cache)
        if s.reserved:
            weigh(Key(self._bundle, part, s.device.name, s.threads), opened, model)
        return model

    def drafter(self, name: str) -> Drafter:
        """Understand the words of `--drafter`. Raises ValueError that lists what there is."""
        if name == "auto":
            return self._auto()
        words = [w.strip() for w in name.split(",")]
        if len(words) == 1:
            return self._single(words[0])
        if len(set(words)) < len(words) or {"none", "auto"} & set(words):
            raise ValueError(f"--drafter {name!r}: fused drafters must differ, and none and auto stand alone")
        return Fused([self._single(w) for w in words])

    def resolved(self, name: str) -> str:
        """What a name stands for at the moment: `auto` is the drafter that it has settled on."""
        return self._paying.chosen if name == "auto" and self._paying is not None else name

    def depth(self, name: str) -> int:
        """Levels that a drafter goes down when the user does not say."""
        usual = max(_DEPTHS.get(w.split(":")[0].strip(), _DEPTHS["chain"]) for w in name.split(","))
        manifest = self._bundle.manifest
        # A level of a draft tree that waits in the cache is not counted against a sliding window.
        windows = [p.window - 1 for p in (manifest.target, *manifest.drafters.values()) if p.window]
        return min([self._settings.draft_depth or usual, *windows])

    def names(self) -> list[str]:
        """Every single drafter that this bundle can run, `none` first."""
        models = [n for n in ("chain", "tree") if self._bundle.manifest.drafters]
        return ["none", *models, *MODEL_FREE]

    def providers(self) -> dict[str, str]:
        """The execution provider of every draft model that was loaded."""
        return {name: model.provider for name, model in self._models.items()}

    def shed(self, ceiling: Ceiling) -> None:
        """Give back what a ceiling leaves no use for; a draft model that may run again reads the text again."""
        if not ceiling.models:
            for model in self._models.values():
                model.rewind(0)
                model.cache.release()
        give_back()

    def _single(self, word: str) -> Drafter:
        makers: dict[str, Callable[[], Drafter]] = {
            "none": Plain,
            "lookup": lambda: PromptLookup(capacity=max(self._settings.context, _LEAST_INDEX)),
            "recycle": lambda: Recycle(self._bundle.manifest.target.vocab, _RECYCLED),
            "suffix": self._suffix,
        }
        if word in makers:
            return makers[word]()
        kind, _, part = word.partition(":")
        parts = self._bundle.manifest.drafters
        if kind in parts and not part:
            kind, part = "chain", kind
        if kind not in ("chain", "tree"):
            known = ", ".join([*self.names(), *parts, "auto"])
            raise ValueError(
                f"unknown drafter {word!r}: this bundle has {known} (several joined by commas are fused)"
            )
        if not parts:
            raise ValueError(
                f"--drafter {kind} needs a draft model and this bundle has none: "
                "use lookup, suffix or recycle, or export again with --drafter NAME=DIR"
            )
        part = part or next(iter(parts))
        if part not in parts:
            raise ValueError(f"the bundle has no draft model {part!r}: it has {', '.join(parts)}")
        vocab = self._bundle.manifest.target.vocab
        if kind == "chain":
            return ChainModel(self._model(part), vocab, name=word)
        return TreeModel(self._model(part), vocab, name=word, frontier=_FRONTIER)

    def _model(self, name: str) -> Model:
        if name not in self._models:
            s, part = self._settings, self._bundle.manifest.drafters[name]
            threads = draft_threads(part, s.threads)
            before = resident()
            graph = Graph(self._bundle.path(part.graph_for(s.cache)), s.device_draft, threads, part)
            opened = resident() - before
            scratch = _FRONTIER * (self.depth("tree") + 1)
            context = min(s.context, part.context, s.draft_rows or part.context)
            model = Model(graph, part, context, _FRONTIER, s.chunk, scratch, s.reserved, s.cache)
            if s.reserved:
                weigh(Key(self._bundle, part, s.device_draft.name, threads), opened, model)
            self._models[name] = model
        return self._models[name]

    def _suffix(self) -> Drafter:
        path = self._settings.suffix_store
        if path is not None and self.store is None:
            vocab = self._bundle.manifest.target.vocab
            self.store = SuffixStore.open(path, self._text.fingerprint, vocab=vocab)
        return Suffix(self.store, capacity=max(self._settings.context, _LEAST_INDEX))

    def _auto(self) -> Drafter:
        """Every single drafter and a model-free fusion compete with plain decoding."""
        arms: list[tuple[Drafter, int]] = []
        if self._bundle.manifest.drafters and self._settings.models:
            arms.append((self._single("chain"), self.depth("chain")))
        fused = "lookup,recycle"
        if self._settings.tables:
            arms.append((self.drafter(fused), self.depth(fused)))
        self._paying = PayingDrafter(Plain(), arms)
        return self._paying


def draft_threads(part: Part, threads: int) -> int:
    """Threads of a draft model, of those that the target has."""
    return 1 if part.parameters < _SMALL else threads


@dataclass(frozen=True, slots=True)
class Kinds:
    """What the words of `--drafter` ask for. part: the draft model. tables: bytes of the drafters without one.

    optional: whether less than all of it is an answer, too: `auto` does what fits.
    """

    part: str | None
    tables: int
    optional: bool


def kinds(name: str, bundle: Bundle, context: int) -> Kinds:
    """What a name needs, before anything is loaded; a name that nobody knows needs nothing."""
    parts, vocab = bundle.manifest.drafters, bundle.manifest.target.vocab
    words = ["chain", "lookup", "recycle"] if name == "auto" else [w.strip() for w in name.split(",")]
    capacity = max(context, _LEAST_INDEX)
    sizes = {"lookup": 180 * capacity, "suffix": 800 * capacity, "recycle": 5 * _RECYCLED * vocab}
    part = next((p for p in (_part_of(word, parts) for word in words) if p is not None), None)
    return Kinds(part, sum(sizes.get(word, 0) for word in words), name == "auto")


def _part_of(word: str, parts: Mapping[str, Part]) -> str | None:
    """The draft model that a word stands for."""
    kind, _, part = word.partition(":")
    if kind in parts and not part:
        return kind
    if kind not in ("chain", "tree") or not parts:
        return None
    return part if part in parts else next(iter(parts))


def context_limit(part: Part, asked: int | None) -> int:
    """The model's context or the user's, whichever is smaller."""
    if asked is not None and asked < 2:
        raise ValueError(f"a context of {asked} tokens holds no conversation: use 2 or more")
    return part.context if asked is None else min(asked, part.context)
