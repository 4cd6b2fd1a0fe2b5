"""From names to parts: the only place that knows every drafter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paceline.memory.cache import CacheFormat
from paceline.memory.ladder import Ceiling
from paceline.memory.model import FRONTIER
from paceline.runtime.budget.overheads import Key, weigh
from paceline.runtime.budget.pressure import give_back
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.contracts import Drafter, DraftLimit
from paceline.runtime.control.controller import Controller
from paceline.runtime.control.costs import CostCurve, Points, cost_key, known_points, measure
from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.control.offers import arm_of, offered
from paceline.runtime.drafters.auto import Auto
from paceline.runtime.drafters.fused import Fused
from paceline.runtime.drafters.kinds import (
    LEAST_INDEX,
    RECYCLED,
    Asked,
    names,
    needs,
    split,
    understand,
    usual_depth,
)
from paceline.runtime.drafters.lookup import PromptLookup
from paceline.runtime.drafters.model import ChainModel, TreeModel
from paceline.runtime.drafters.plain import Plain
from paceline.runtime.drafters.recycle import Recycle
from paceline.runtime.drafters.store import STORE_BYTES, SuffixStore
from paceline.runtime.drafters.suffix import Suffix
from paceline.runtime.loaded import Shared
from paceline.runtime.manifest import Part
from paceline.runtime.model.device import Device
from paceline.runtime.model.model import Model

_SMALL = 50_000_000
"""Below this many parameters a second thread costs a draft model more than it brings."""
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
    allowed: tuple[str, ...] | None = None
    """Draft models that memory allows; None: all of the bundle."""
    tables: bool = True
    """Whether memory allows drafters that need no model."""
    reserved: bool = False
    """Whether buffers become resident at once: a budget holds from the start or not at all."""

    @property
    def models(self) -> bool:
        """Whether a draft model may run."""
        return self.allowed != ()


def asked_of(name: str, bundle: Bundle, settings: Settings, every: bool = False) -> Asked:
    """What a drafter needs under these settings; every: `auto` with all draft models."""
    return needs(name, bundle, settings.context, STORE_BYTES if settings.suffix_store else 0, every)


def scratch_rows(settings: Settings) -> int:
    """Rows of a draft model's cache for a tree that is not committed: a level for each step down, and one more."""
    return FRONTIER * ((settings.draft_depth or usual_depth("tree")) + 1)


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
            weigh(Key(self._bundle, part, s.device.name, s.threads, s.cache), opened, model)
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
        """Levels that a drafter goes down at most: prices stop drafting earlier."""
        usual, manifest = usual_depth(name), self._bundle.manifest
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
        if self._target is not None:
            self._target.resize(min(ceiling.nodes, self._settings.max_nodes) + 1)
        for model in self._models.values():
            model.narrow(ceiling.draft_rows)
            if not ceiling.models:
                model.forget()
        give_back()

    def close(self) -> None:
        """Let go of every buffer."""
        for model in (self._target, *self._models.values()):
            if model is not None:
                model.close()
        give_back()

    def make_room(self, name: str, tables: int) -> bool:
        """Let go of all drafters, and of draft models that this one does not use, if it cannot stand beside them.

        tables: bytes that those without a model may take. Returns whether they went.
        """
        s = self._settings
        asked = asked_of(name, self._bundle, s)
        more = asked.tables if s.tables else 0
        held = self.table_bytes(DraftLimit(s.max_nodes, s.max_nodes))
        others = self._models.keys() - set(asked.parts)
        if held + more <= tables and not (others and asked.parts):
            return False
        for part in others:
            self._models.pop(part).close()
        self._controls.clear()
        self._tables.clear()
        return True

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
            return TreeModel(model, vocab, name=word, frontier=FRONTIER)
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
            scratch = scratch_rows(s)
            context = min(s.context, part.context, s.draft_rows or part.context)
            model = Model(graph, part, context, FRONTIER, s.chunk, scratch, s.reserved, s.cache)
            if s.reserved and opened is not None and graph.before == 1:
                weigh(Key(self._bundle, part, s.device_draft.name, threads, s.cache), opened, model)
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
        named = [part for part in parts if s.allowed is None or part in s.allowed]
        arms = offered(named, s.tables)
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

    def _draft_costs(self, name: str) -> CostCurve:
        """Those of a draft model."""
        s, part = self._settings, self._bundle.manifest.drafters[name]
        threads = draft_threads(part, s.threads)
        return self._curve(self._model(name), part, s.device_draft, threads, FRONTIER, _MEASURING_DRAFT)

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
