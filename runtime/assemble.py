"""From names to parts: the only place that knows every drafter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paceline.memory.cache import CacheFormat
from paceline.memory.ladder import Ceiling
from paceline.runtime.contracts import Drafter, DraftLimit
from paceline.runtime.control import Controller, FixedLimit
from paceline.runtime.costs import CostCurve, Points, cost_key, known_points, measure
from paceline.runtime.device import Device
from paceline.runtime.drafters.auto import Auto
from paceline.runtime.drafters.fused import Fused
from paceline.runtime.drafters.lookup import PromptLookup
from paceline.runtime.drafters.model import ChainModel, TreeModel
from paceline.runtime.drafters.plain import Plain
from paceline.runtime.drafters.recycle import Recycle
from paceline.runtime.drafters.store import SuffixStore
from paceline.runtime.drafters.suffix import Suffix
from paceline.runtime.manifest import Part
from paceline.runtime.offers import arm_of, offered
from paceline.runtime.overheads import Key, weigh
from paceline.runtime.pressure import give_back
from paceline.runtime.shared import Shared
from paceline.runtime.target import Model
from paceline.runtime.words import LEAST_INDEX, RECYCLED, names, needs, split, understand

_FRONTIER = 4
_SMALL = 50_000_000
"""Below this many parameters a second thread costs a draft model more than it brings."""
_DEPTHS = {"chain": 8, "tree": 5, "lookup": 16, "suffix": 12, "recycle": 4}
"""Levels at most where the user does not say: prices stop drafting earlier."""
_MEASURING, _MEASURING_DRAFT = 1.2, 0.3
"""Seconds that finding out what passes cost may take, once on a device."""


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
    overflow: str = "stop"
    """What a full context does: `stop` ends the answer, `slide` drops its oldest part."""
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
    """Builds the target and, when first asked for, draft models and drafters of one session."""

    def __init__(self, shared: Shared, settings: Settings) -> None:
        self._shared, self._bundle, self._settings = shared, shared.bundle, settings
        self._models: dict[str, Model] = {}
        self._target: Model | None = None
        self._controls: dict[str, Controller] = {}
        self._tables: list[Drafter] = []
        self.store: SuffixStore | None = None

    def target(self) -> Model:
        """The target, with buffers for trees of `max_nodes` nodes."""
        s, part = self._settings, self._bundle.manifest.target
        graph, opened = self._shared.graph(part.graph_for(s.cache), part, s.device, s.threads)
        widest = s.max_nodes + 1 if s.models or s.tables else 1
        model = Model(graph, part, s.context, widest, s.chunk, reserved=s.reserved, cache=s.cache)
        if s.reserved and opened is not None and graph.before == 0:
            weigh(Key(self._bundle, part, s.device.name, s.threads), opened, model)
        self._target = model
        return model

    def drafter(self, name: str) -> Drafter:
        """Understand the words of `--drafter`. Raises ValueError that lists what there is."""
        if name == "auto":
            return self._auto()
        words = split(name)
        return self._single(words[0]) if len(words) == 1 else self._fused([self._single(w) for w in words])

    def resolved(self, name: str) -> str:
        """What a name stands for at the moment: `auto` is the drafter that it has settled on."""
        if name != "auto":
            return name
        return self._controls[name].chosen if name in self._controls else "none"

    def control(self, name: str) -> Controller | FixedLimit:
        """Who says how much this drafter drafts. What it learns of costs and acceptance it keeps."""
        if name == "none" or not (self._settings.models or self._settings.tables):
            return FixedLimit(0, 0)
        if name not in self._controls:
            arm = arm_of(name, self.depth(name), self._draft_costs, self._bundle.manifest.drafters)
            self._controls[name] = Controller([arm], self._costs(), self._settings.max_nodes, off=False)
        return self._controls[name]

    def depth(self, name: str) -> int:
        """Levels that a drafter goes down when the user does not say."""
        usual = max(_DEPTHS.get(w.split(":")[0].strip(), _DEPTHS["chain"]) for w in name.split(","))
        manifest = self._bundle.manifest
        # A level of a draft tree that waits in the cache is not counted against a sliding window.
        windows = [p.window - 1 for p in (manifest.target, *manifest.drafters.values()) if p.window]
        return min([self._settings.draft_depth or usual, *windows])

    def names(self) -> list[str]:
        """Every single drafter that this bundle can run, `none` first."""
        return names(self._bundle.manifest.drafters)

    def providers(self) -> dict[str, str]:
        """The execution provider of every draft model that was loaded."""
        return {name: model.provider for name, model in self._models.items()}

    def draft_bytes(self) -> int:
        """Bytes of the buffers of the draft models that were loaded."""
        return sum(model.cache.bytes + model.logit_bytes for model in self._models.values())

    def table_bytes(self, limit: DraftLimit) -> int:
        """Bytes of the drafters without a model that were made, at most."""
        return sum(drafter.footprint(limit) for drafter in self._tables)

    def shed(self, ceiling: Ceiling) -> None:
        """Give back what a ceiling leaves no use for; a draft model that may run again reads the text again."""
        for model in self._models.values():
            model.narrow(ceiling.draft_rows)
            if not ceiling.models:
                model.forget()
        give_back()

    def clear_for(self, name: str) -> None:
        """Let go of the drafters that were made, and of draft models that this one does not use."""
        kept = needs(name, self._bundle, self._settings.context).part
        for part in self._models.keys() - {kept}:
            self._models.pop(part).forget()
        self._controls.clear()
        self._tables.clear()

    def _fused(self, drafters: list[Drafter]) -> Drafter:
        parts = self._bundle.manifest.drafters
        models = frozenset(d.name for d in drafters if understand(d.name, parts).part is not None)
        return Fused(drafters, costly=models)

    def _single(self, word: str) -> Drafter:
        found, vocab = understand(word, self._bundle.manifest.drafters), self._bundle.manifest.target.vocab
        if found.part is not None:
            model = self._model(found.part)
            if found.kind == "chain":
                return ChainModel(model, vocab, name=word)
            return TreeModel(model, vocab, name=word, frontier=_FRONTIER)
        makers: dict[str, Callable[[], Drafter]] = {
            "none": Plain,
            "lookup": lambda: PromptLookup(capacity=max(self._settings.context, LEAST_INDEX)),
            "recycle": lambda: Recycle(vocab, RECYCLED),
            "suffix": self._suffix,
        }
        made = makers[found.kind]()
        self._tables.append(made)
        return made

    def _model(self, name: str) -> Model:
        if name not in self._models:
            s, part = self._settings, self._bundle.manifest.drafters[name]
            threads = draft_threads(part, s.threads)
            graph, opened = self._shared.graph(part.graph_for(s.cache), part, s.device_draft, threads)
            scratch = _FRONTIER * (self.depth("tree") + 1)
            context = min(s.context, part.context, s.draft_rows or part.context)
            model = Model(graph, part, context, _FRONTIER, s.chunk, scratch, s.reserved, s.cache)
            if s.reserved and opened is not None and graph.before == 1:
                weigh(Key(self._bundle, part, s.device_draft.name, threads), opened, model)
            self._models[name] = model
        return self._models[name]

    def _suffix(self) -> Drafter:
        path = self._settings.suffix_store
        if path is not None and self.store is None:
            self.store = self._shared.store(path)
        return Suffix(self.store, capacity=max(self._settings.context, LEAST_INDEX))

    def _auto(self) -> Drafter:
        """Every draft model's chain and tree, drafters without a model, and fusions compete with plain decoding."""
        s, parts = self._settings, self._bundle.manifest.drafters
        # A plan has counted one draft model.
        named = list(parts)[:1] if s.reserved else list(parts)
        arms = offered(named, s.models, s.tables)
        single: dict[str, Drafter] = {"none": Plain()}
        for name in arms:
            for word in name.split(","):
                if word not in single:
                    single[word] = self._single(word)
        fused = {n: self._fused([single[word] for word in n.split(",")]) for n in arms if "," in n}
        auto = Auto(single | fused)
        known = [arm_of(name, self.depth(name), self._draft_costs, parts) for name in arms]
        if known:
            self._controls["auto"] = Controller(known, self._costs(), s.max_nodes, switch=auto.switch)
        return auto

    def _costs(self) -> CostCurve:
        """The target's, each time anew, for it is corrected by whom it serves."""
        s, part = self._settings, self._bundle.manifest.target
        if self._target is None:
            raise RuntimeError("the costs of a target need the target")
        return self._curve(self._target, part, s.device, s.threads, s.max_nodes + 1, _MEASURING)

    def _draft_costs(self, word: str) -> CostCurve:
        """Those of the draft model that a word runs on."""
        s, parts = self._settings, self._bundle.manifest.drafters
        name = understand(word, parts).part or next(iter(parts))
        part = parts[name]
        threads = draft_threads(part, s.threads)
        return self._curve(self._model(name), part, s.device_draft, threads, _FRONTIER, _MEASURING_DRAFT)

    def _curve(
        self, model: Model, part: Part, device: Device, threads: int, widest: int, seconds: float
    ) -> CostCurve:
        cache = self._settings.cache
        key = cost_key(self._bundle, part, part.graph_for(cache), device.name, threads, cache)

        def measured() -> Points:
            return measure(model, widest, seconds)

        return CostCurve(known_points(key, widest, measured), widest)


def draft_threads(part: Part, threads: int) -> int:
    """Threads of a draft model, of those that the target has."""
    return 1 if part.parameters < _SMALL else threads


def context_limit(part: Part, asked: int | None) -> int:
    """The model's context or the user's, whichever is smaller."""
    if asked is not None and asked < 2:
        raise ValueError(f"a context of {asked} tokens holds no conversation: use 2 or more")
    return part.context if asked is None else min(asked, part.context)
