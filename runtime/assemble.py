"""From names to parts: builds the models, drafters and controllers of one session."""

from __future__ import annotations

from dataclasses import dataclass, replace

from paceline.memory.budget import resident
from paceline.memory.errors import Error
from paceline.memory.plan import Plan
from paceline.memory.room import Room
from paceline.runtime.adaptation.lessons import Lessons
from paceline.runtime.beside import Worker
from paceline.runtime.budget.libraries import brought
from paceline.runtime.budget.overheads import rows_of, weigh, weigh_skipping
from paceline.runtime.budget.planning import draft_key, target_key
from paceline.runtime.budget.pressure import give_back
from paceline.runtime.contracts import Drafter, DraftLimit
from paceline.runtime.control.controller import Controller
from paceline.runtime.control.estimates import Arm, CostCurve
from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.drafters.auto import Auto
from paceline.runtime.drafters.fused import Fused
from paceline.runtime.drafters.hearing import Ear
from paceline.runtime.drafters.kinds import Supplies
from paceline.runtime.drafters.lasting import Lasting
from paceline.runtime.drafters.names import Name, Word, offered, single_words
from paceline.runtime.drafters.plain import Plain
from paceline.runtime.drafters.prices import arm_of
from paceline.runtime.drafters.store import SuffixStore
from paceline.runtime.loaded import Shared
from paceline.runtime.measuring import curve_of, price_trees
from paceline.runtime.model.device import find_device
from paceline.runtime.model.exits import Exits
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.head import Features, Head
from paceline.runtime.model.model import Model
from paceline.runtime.model.ort import DeviceError
from paceline.runtime.model.skipping import Skipping
from paceline.runtime.model.streams import Streams
from paceline.runtime.model.unrolled import Unrolled
from paceline.runtime.part import first_layers
from paceline.runtime.settings import Settings, extent_of, needs, scratch_rows
from paceline.runtime.target import TARGET, move_target, open_target
from paceline.runtime.translation.border import Border
from paceline.runtime.translation.crossing import Crossing

_MEASURING, _MEASURING_DRAFT = 1.2, 0.3
"""Seconds that finding out what passes cost may take, once on a device."""

_BETTER = 0.15
"""By how much more often drafts may be accepted at best than where they were measured: a text may be easier."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """A drafter, and who says how much it drafts. What that learns of costs and acceptance it keeps."""

    name: Name
    drafter: Drafter
    control: Controller | FixedLimit

    @property
    def settled(self) -> str:
        """Who drafts at the moment: `auto` is the drafter that it has settled on."""
        if not self.name.auto:
            return self.name.text
        return self.control.chosen if isinstance(self.control, Controller) else "none"


class Workshop:
    """Builds the target and, when first asked for, draft models and drafters of one session."""

    def __init__(self, shared: Shared, settings: Settings) -> None:
        self._shared, self._bundle, self._settings = shared, shared.bundle, settings
        self._models: dict[str, Model] = {}
        self._calls: dict[str, Head | Streams | Unrolled] = {}
        """What drafts several tokens in one call, by its part."""
        self._skips: dict[str, Skipping] = {}
        self._exits: dict[str, Exits] = {}
        self._target: Model | None = None
        self._alone: int | None = None  # graphs open with the target, where no others are
        self._tables: list[Drafter] = []
        self._reading: frozenset[str] = frozenset()
        self._feeding = True
        self.store: SuffixStore | None = None
        self.lost: dict[str, str] = {}
        """Parts whose device failed in the middle of an answer, and how: such draft models draft no more."""
        self.dead = ""
        """Why the target, whose device failed, runs nowhere any more."""
        self.beside = Worker() if settings.mirror else None
        """Where drafters go on beside the target's pass."""
        self.lessons = Lessons(shared.learner) if settings.adapt else None
        """How draft models of this session learn."""

    def target(self) -> Model:
        """The target, with buffers for trees of the room's nodes."""
        before = Graph.opened
        model = self._target = open_target(self._shared, self._settings, self.beside)
        self._alone = Graph.opened if before == 0 else None
        return model

    def move_target(self, error: Exception, plan: Plan | None) -> Settings:
        """Let the target, whose device failed so, go on on the CPU; returns the settings from then on.

        What drafts with its layers drafts no more. Raises DeviceError where it cannot: then nothing runs any more.
        """
        if self._target is None:
            raise RuntimeError("a target that is not there cannot move")
        if self.beside is not None:
            self.beside.rest()
        why = str(error).partition("; run this part")[0]
        for name in (*self._skips, *self._exits):
            self.lost[name] = f"it drafts with the target's layers: {why}"
        target, used = self._target, self._shared.memory.used
        try:
            self._settings = move_target(self._shared, self._settings, target, self.beside, plan, used)
        except Error as cause:
            self.dead = f"{why}; it cannot go on on the CPU: {cause}"
            raise DeviceError(self.dead) from None
        self._bundle, self.lost[TARGET] = self._shared.bundle, why
        return self._settings

    def drafting(self, name: Name) -> Drafting:
        """Make a drafter, and who says how much it drafts; what passes cost is measured now where nobody knows it."""
        if name.auto:
            return self._auto(name)
        drafter = self._made(name, {})
        if name.plain or not (self._settings.room.models or self._settings.room.tables):
            return Drafting(name, drafter, FixedLimit(0, 0))
        book = self._shared.books[name.text]
        control = Controller([self._arm(name)], self.costs(), self._settings.room.nodes, off=False, book=book)
        return Drafting(name, drafter, control)

    def names(self) -> list[str]:
        """Every single drafter that this bundle can run, `none` first."""
        return single_words(self._bundle.manifest.drafters)

    def providers(self) -> dict[str, str]:
        """The execution provider of every draft model that was loaded."""
        models = {name: model.provider for name, model in self._models.items()}
        return models | {name: model.provider for name, model in self._skips.items()}

    def draft_bytes(self) -> int:
        """Bytes of the buffers of the draft models that were loaded."""
        models = sum(model.bytes for model in self._models.values())
        models += sum(model.bytes for model in self._skips.values())
        models += sum(exits.early_bytes for exits in self._exits.values())
        return models + sum(call.bytes for call in self._calls.values())

    def table_bytes(self, limit: DraftLimit) -> int:
        """Bytes of the drafters without a model that were made, at most."""
        return sum(drafter.footprint(limit) for drafter in self._tables)

    def shed(self, ceiling: Room) -> None:
        """Give back what a ceiling leaves no use for; a draft model that may run again reads the text again."""
        if self.beside is not None:
            self.beside.rest()
        if self._target is not None:
            self._target.resize(min(ceiling.nodes, self._settings.room.nodes) + 1)
        for model in self._models.values():
            model.narrow(ceiling.draft_rows)
            if not ceiling.models:
                model.forget()
        self._feeding = ceiling.models
        self._keep_taps()
        give_back()

    def read_by(self, drafter: Drafter) -> None:
        """Keep of the target's hidden states what this one reads, and no others."""
        self._reading = drafter.needs
        self._keep_taps()

    def _keep_taps(self) -> None:
        taps = self._reading if self._feeding else frozenset()
        if self._target is not None:
            self._target.drop_taps(taps)
            if taps:
                self._target.keep_taps(taps)

    def close(self) -> None:
        """Let go of every buffer."""
        if self.beside is not None:
            self.beside.close()
        for part in (
            *self._calls.values(),
            *self._exits.values(),
            *self._skips.values(),
            self._target,
            *self._models.values(),
        ):
            if part is not None:
                part.close()
        give_back()

    def make_room(self, name: Name, tables: int) -> bool:
        """Let go of all drafters, and of draft models that this one does not use, if it cannot stand beside them.

        tables: bytes that those without a model may take. Returns whether they went.
        """
        s = self._settings
        asked = needs(name, self._bundle, s)
        more = asked.tables if s.room.tables else 0
        held = self.table_bytes(DraftLimit(s.room.nodes, s.room.nodes))
        others = self._models.keys() - set(asked.models)
        if held + more <= tables and not (others and asked.models):
            return False
        for part in others:
            if part in self._calls:
                self._calls.pop(part).close()
            if part in self._exits:
                self._exits.pop(part).close()
            self._models.pop(part).close()
        self._tables.clear()
        return True

    def _depth(self, name: Name) -> int:
        """Levels that a drafter goes down at most: prices stop drafting earlier."""
        manifest = self._bundle.manifest
        # A level of a draft tree that waits in the cache is not counted against a sliding window.
        windows = [p.window - 1 for p in (manifest.target, *manifest.drafters.values()) if p.window]
        return min([self._settings.draft_depth or name.depth, *windows])

    def _arm(self, name: Name) -> Arm:
        arm = arm_of(name, self._depth(name), self.draft_costs)
        part = self._bundle.manifest.drafters.get(arm.part or "")
        if part is not None and part.kind in ("skip", "exit") and part.accepted and not arm.members:
            arm.hope = min(arm.hope, part.accepted[0] + _BETTER)
        return arm

    def _made(self, name: Name, single: dict[str, Drafter]) -> Drafter:
        """One drafter, or several in one tree. single: those that exist, by their word; new ones are added."""
        for word in name.words:
            if word.text not in single:
                single[word.text] = self._single(word)
        if len(name.words) == 1:
            return single[name.text]
        costly = frozenset(word.text for word in name.words if word.kind.runs)
        return Fused([single[word.text] for word in name.words], costly=costly)

    def _single(self, word: Word) -> Drafter:
        skipping = self._skipping(word.part) if word.part and word.kind.runs == "skip" else None
        exits = self._leaving(word.part) if word.part and word.kind.runs == "exit" else None
        model = self._model(word.part) if word.part and skipping is None else None
        call = self._calls.get(word.part or "")
        head = call if isinstance(call, Head | Streams) else None
        unrolled = call if isinstance(call, Unrolled) else None
        store = self._opened() if word.kind.word == "suffix" else None
        features = self._features(word) if word.kind.feeds == "features" else None
        extent, sides, crossing = extent_of(self._bundle, self._settings), None, None
        if word.part and word.kind.runs == "decoder":
            part = self._bundle.manifest.drafters[word.part]
            sides = self._shared.sides(part)
            if sides is not None and self.beside is not None:
                crossing = Crossing(self.beside, Ear(extent.vocab))
            extent = extent if sides is None else replace(extent, vocab=part.vocab)
        rest = features, self._settings.growth, crossing or self.beside, self._settings.branches
        supplies = Supplies(extent, model, head, unrolled, skipping, exits, store, *rest)
        made = word.kind.make(word.text, supplies)
        if sides is not None:
            made = Border(made, sides, word.translation, self._settings.context, crossing)
        if word.part is None:
            self._tables.append(made)
        elif not self._settings.places.of(self._bundle.manifest.drafters[word.part]).on_cpu:
            made = Lasting(made, word.part, self.lost)
        return made

    def _features(self, word: Word) -> Features:
        """The target's hidden states that a drafter's part reads, kept from now on."""
        if self._target is None or word.part is None:
            raise RuntimeError(f"{word.text} needs a part that reads the target's hidden states")
        return self._target.keep_taps(self._bundle.manifest.drafters[word.part].keeps)

    def _model(self, name: str) -> Model:
        """A draft model, or what a head reads with; what drafts with it in one call is then among `_calls`."""
        if name not in self._models:
            s, part = self._settings, self._bundle.manifest.drafters[name]
            threads, device = s.draft_threads(part), s.places.of(part)
            context = min(s.context, part.context, s.room.draft_rows or part.context)
            scratch, before = scratch_rows(part, s), Graph.opened
            held = context + scratch if s.reserved else None
            graph, opened = self._shared.runner(part, s.cache, device, threads, held)
            chunk = 1 if part.borrows else s.chunk
            model = Model(graph, part, context, rows_of(part, s.mirror), chunk, scratch, s.reserved, s.cache)
            drafting, more = self._drafting(model, threads) if part.deepest else (None, 0)
            if part.kind != "exit" and s.reserved and opened is not None and before == self._alone:
                library = brought([device], [s.places.target])
                weigh(draft_key(self._bundle, s, name), opened + more, model, drafting, library)
            self._models[name] = model
            if self.lessons is not None and part.training is not None:
                pupil = self._shared.pupil(name, part, find_device("cpu"), weighed=s.reserved)
                self.lessons.add(pupil, model)
            if drafting is not None:
                self._calls[name] = drafting
        return self._models[name]

    def _skipping(self, name: str) -> Skipping:
        """The target with blocks left out, over its own cache."""
        if self._target is None:
            raise RuntimeError(f"{name} is made of the target, which is not there yet")
        if name not in self._skips:
            s, part = self._settings, self._bundle.manifest.drafters[name]
            threads, device = s.draft_threads(part), s.places.of(part)
            graph, opened = self._shared.graph(part.graph_for(s.cache), part, device, threads)
            made = self._skips[name] = Skipping(graph, part, self._target, s.reserved)
            if s.reserved and opened is not None and graph.before == 1:
                weigh_skipping(draft_key(self._bundle, s, name), opened, made)
        return self._skips[name]

    def _leaving(self, name: str) -> Exits:
        """The target's first layers over its own cache, and what says tokens behind them."""
        if self._target is None:
            raise RuntimeError(f"{name} is made of the target, which is not there yet")
        if name not in self._exits:
            s, manifest = self._settings, self._bundle.manifest
            part, before, resident_before = manifest.drafters[name], Graph.opened, resident()
            reader, device, early = self._model(name), s.places.of(part), dict[int, Skipping]()
            for layer in part.exits:
                first = first_layers(manifest.target, part, layer)
                threads = s.draft_threads(first)
                graph, _ = self._shared.graph(first.graph_for(s.cache), first, device, threads)
                early[layer] = Skipping(graph, first, self._target, s.reserved)
            made = self._exits[name] = Exits(reader, self._bundle.draft_ids(part), early)
            if s.reserved and before == 1 and Graph.opened > before:
                weigh(
                    draft_key(self._bundle, s, name), resident() - resident_before - made.bytes, reader, made
                )
        return self._exits[name]

    def _drafting(self, model: Model, threads: int) -> tuple[Head | Streams | Unrolled, int]:
        """What drafts in one call with this model, and the bytes that opening its graphs added, if it is done."""
        s, part, added = self._settings, model.part, [0]

        def opened(path: str) -> Graph:
            graph, bytes_ = self._shared.graph(path, part, s.places.of(part), threads)
            added[0] += bytes_ or 0
            return graph

        drafting: Head | Streams | Unrolled
        if part.streams:
            drafting = Streams(model, self._bundle.manifest.target.vocab)
        elif part.kind == "head":
            drafting = Head(model, self._bundle.draft_ids(part), opened)
        else:
            drafting = Unrolled(model, lambda levels: opened(part.draft_for(levels, s.cache)))
        if s.reserved:
            drafting.open()
        return drafting, added[0]

    def _opened(self) -> SuffixStore | None:
        """The store of the suffix drafter, where the user named one."""
        path = self._settings.suffix_store
        if path is not None and self.store is None:
            self.store = self._shared.store(path)
        return self.store

    def _auto(self, name: Name) -> Drafting:
        """Heads, draft models, drafters without a model, and fusions of them compete with plain decoding."""
        s, parts = self._settings, self._bundle.manifest.drafters
        models = [name for name in parts if s.allowed is None or name in s.allowed]
        arms = offered(models, parts, s.room.tables)
        single: dict[str, Drafter] = {}
        auto = Auto({"none": Plain()} | {arm.text: self._made(arm, single) for arm in arms})
        if not arms:
            return Drafting(name, auto, FixedLimit(0, 0))
        known = [self._arm(arm) for arm in arms]
        book = self._shared.books[name.text]
        return Drafting(
            name, auto, Controller(known, self.costs(), s.room.nodes, switch=auto.switch, book=book)
        )

    def costs(self) -> CostCurve:
        """The target's, each time anew, for it is corrected by whom it serves."""
        if self._target is None:
            raise RuntimeError("the costs of a target need the target")
        key = target_key(self._bundle, self._settings)
        return curve_of(key, self._target, self._settings.room.nodes + 1, _MEASURING)

    def draft_costs(self, name: str) -> CostCurve:
        """Those of a draft model by rows, or of a head by levels."""
        part, key = self._bundle.manifest.drafters[name], draft_key(self._bundle, self._settings, name)
        if part.kind == "exit":
            return curve_of(key, self._leaving(name), 1, _MEASURING_DRAFT)
        if part.kind == "skip":
            return curve_of(key, self._skipping(name), 1, _MEASURING_DRAFT)
        model = self._model(name)
        call = self._calls.get(name)
        head = call if isinstance(call, Head) else None
        widest = rows_of(part) if head is None else head.depths[-1]
        curve = curve_of(key, head or model, widest, _MEASURING_DRAFT)
        if head is not None and head.trees and not head.worth:
            price_trees(key, head, curve)
        return curve
