"""From names to parts: the only place that knows every drafter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
from paceline.runtime.session import Graph
from paceline.runtime.target import Model
from paceline.runtime.text import Text

MODEL_FREE = ("lookup", "suffix", "recycle")
_FRONTIER = 4
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
        graph = Graph(self._bundle.path(part.graph), s.device, s.threads, part)
        return Model(graph, part, s.context, widest=s.max_nodes + 1)

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

    def _single(self, word: str) -> Drafter:
        makers: dict[str, Callable[[], Drafter]] = {
            "none": Plain,
            "lookup": lambda: PromptLookup(capacity=max(self._settings.context, _LEAST_INDEX)),
            "recycle": lambda: Recycle(self._bundle.manifest.target.vocab),
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
            threads = 1 if part.parameters < _SMALL else s.threads
            graph = Graph(self._bundle.path(part.graph), s.device_draft, threads, part)
            scratch = _FRONTIER * (self.depth("tree") + 1)
            context = min(s.context, part.context)
            self._models[name] = Model(graph, part, context, widest=_FRONTIER, scratch=scratch)
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
        if self._bundle.manifest.drafters:
            arms.append((self._single("chain"), self.depth("chain")))
        fused = "lookup,recycle"
        arms.append((self.drafter(fused), self.depth(fused)))
        self._paying = PayingDrafter(Plain(), arms)
        return self._paying


def context_limit(part: Part, asked: int | None) -> int:
    """The model's context or the user's, whichever is smaller."""
    if asked is not None and asked < 2:
        raise ValueError(f"a context of {asked} tokens holds no conversation: use 2 or more")
    return part.context if asked is None else min(asked, part.context)
