"""What the sessions over one loaded bundle have in common: tokenizer, template, and graphs with their weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from weakref import WeakSet

from paceline.memory.budget import resident
from paceline.memory.cache import CacheFormat
from paceline.runtime.adaptation.learner import Learner
from paceline.runtime.adaptation.pupil import Pupil
from paceline.runtime.adaptation.saved import pair_of
from paceline.runtime.adaptation.step import TrainingStep
from paceline.runtime.budget.overheads import growth, step_key, weigh_step
from paceline.runtime.budget.pressure import OwnMemory
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.bundle.generation import GENERATION
from paceline.runtime.control.lessons import Book
from paceline.runtime.drafters.store import SuffixStore
from paceline.runtime.experience import Journal
from paceline.runtime.manifest import TOKENIZER, BundleError, Part
from paceline.runtime.model.compiled import compiled_of
from paceline.runtime.model.device import Device
from paceline.runtime.model.graph import Graph, Temporaries
from paceline.runtime.model.static import StaticGraphs
from paceline.runtime.part import first_layers
from paceline.runtime.template.chat_template import TEMPLATE, ChatTemplate
from paceline.runtime.text.text import Text
from paceline.runtime.translation.frame import Frame
from paceline.runtime.translation.ngrams import NGRAM_BYTES, NgramCache
from paceline.runtime.translation.saved import SavedNgrams
from paceline.runtime.translation.sides import Sides
from paceline.runtime.translation.spelling import Spelling


class Shared:
    """Sessions that share it may run in different threads: graphs hold nothing of a pass, and the rest is read only."""

    def __init__(self, bundle: Bundle, growth: bool = False) -> None:
        """growth: whether a budget counts only what the process grows."""
        self.bundle = bundle
        self.memory = OwnMemory(growth)
        self.text = Text.load(bundle.folder, bundle.generation)
        self.template: ChatTemplate | None = None
        self.template_fault: str | None = None
        """What is wrong with the bundle's template, if it cannot be read."""
        try:
            self.template = ChatTemplate.load(bundle.folder, self.text)
        except BundleError as error:  # raw text goes on without it
            self.template_fault = str(error)
        bundle.confirm(*(name for name in bundle.manifest.files if "/" not in name))
        self.sessions: WeakSet[object] = WeakSet()
        """Those that have buffers; `joining` is held while one more is made."""
        self.joining = Lock()
        self.single = self.planned = 0
        """Bytes that the process was planned to take with one session, and with as many as there were at a time."""
        self.temporaries = Temporaries()
        """Of the graphs; set before the first one is opened."""
        self.fallen = False
        """Whether the target's device was lost: sessions that begin now run it on the CPU."""
        self.books: defaultdict[str, Book] = defaultdict(Book)
        """What was learnt of costs and acceptance, by the name of a drafter."""
        self._sides: dict[tuple[str, int], Sides | None] = {}
        self._saved: list[SavedNgrams] = []
        self._graphs: dict[tuple[str, str, int], Graph] = {}
        self._store: SuffixStore | None = None
        self.journal: Journal | None = None
        """Where it is noted what drafting beside the target came to; None where nobody asked for that."""
        self.learner = Learner()
        """How draft models learn from use."""
        self._lock = Lock()

    def graph(self, path: str, part: Part, device: Device, threads: int) -> tuple[Graph, int | None]:
        """A graph of the bundle, and the bytes that opening it added to the process; None if it was open before."""
        key = (path, device.name, threads)
        with self._lock:
            if key in self._graphs:
                return self._graphs[key], None
            before = resident()
            raw, file = self.bundle.read_graph(path), self.bundle.path(path)
            files = self.bundle.manifest.files
            content = [files[name].sha256 for name in (path, *part.stores) if name in files]
            compiled = compiled_of(device, threads, content)
            try:
                graph = Graph(
                    file, device, threads, part, raw=raw, temporaries=self.temporaries, compiled=compiled
                )
                self.bundle.confirm(*part.stores)
                compiled.keep()
            finally:
                compiled.give_up()
            self._graphs[key] = graph
            return graph, resident() - before

    def runner(
        self, part: Part, cache: CacheFormat, device: Device, threads: int, rows: int | None = None
    ) -> tuple[Graph | StaticGraphs, int | None]:
        """What runs a part, over a cache of this form where its sizes are free; the rest as of `graph`.

        rows: of the cache, for which static graphs are opened now; None: when they are first needed.
        """
        if part.static is None:
            return self.graph(part.graph_for(cache), part, device, threads)
        opened = Graph.opened
        graphs = StaticGraphs(part, lambda path: self.graph(path, part, device, threads)[0])
        added = 0 if rows is None else growth(lambda: graphs.open(rows))
        return graphs, added if Graph.opened > opened else None

    def sides(self, part: Part) -> Sides | None:
        """The vocabularies of a draft model and of the target; None where they are the same."""
        if part.tokenizer is None:
            return None
        key = part.tokenizer, part.vocab
        with self._lock:
            if key not in self._sides:
                self._sides[key] = self._read_sides(*key)
            return self._sides[key]

    def _read_sides(self, tokenizer: str, rows: int) -> Sides | None:
        """rows: of the draft model's logits."""
        folder = self.bundle.path(tokenizer).parent
        text = Text.load(folder)
        frame = Frame.load(folder, text)
        self.bundle.confirm(
            *(tokenizer.replace(TOKENIZER, name) for name in (TOKENIZER, TEMPLATE, GENERATION))
        )
        if text.fingerprint == self.text.fingerprint:
            return None
        ours = None if self.template is None else Frame(self.text, self.template)
        draft, target = (
            Spelling.of(read, size, None if framed is None else framed.end())
            for read, size, framed in (
                (text, rows, frame),
                (self.text, self.bundle.manifest.target.vocab, ours),
            )
        )
        sides = Sides(draft, target, NgramCache(NGRAM_BYTES), frame)
        saved = SavedNgrams(sides, f"{text.fingerprint} {self.text.fingerprint}")
        sides.prefill()
        saved.load()
        self._saved.append(saved)
        return sides

    def keep_learned(self) -> None:
        """Keep what was learnt of vocabularies, and by draft models, for the next session."""
        for saved in self._saved:
            saved.save()
        self.learner.save()
        if not self.sessions:
            self.learner.close()

    def pupil(self, name: str, part: Part, device: Device, weighed: bool) -> Pupil:
        """What a draft model that can learn has learnt, and learns. device: that of its training steps.

        weighed: whether what these take is measured, where nobody knows it.
        """

        def made() -> Pupil:
            graph, opened = self.graph(str(part.training), part, device, 1)
            step = TrainingStep(graph, part)
            if weighed and opened is not None and graph.before == len(self._graphs) - 1:
                weigh_step(step_key(self.bundle, part), opened, step)
            return Pupil(name, step, part.vocab, self.sides(part))

        return self.learner.pupil(name, pair_of(self.bundle.manifest, part), made)

    def drop_graphs(self, parts: Iterable[Part], device: Device | None = None) -> None:
        """Let go of the graphs of these parts, or those on one device: no session may run them any more."""
        target = self.bundle.manifest.target
        every = [
            p for part in parts for p in (part, *(first_layers(target, part, layer) for layer in part.exits))
        ]
        paths = {path for part in every for path in part.graphs}
        with self._lock:
            self._graphs = {
                key: graph
                for key, graph in self._graphs.items()
                if key[0] not in paths or (device is not None and key[1] != device.name)
            }

    def store(self, path: Path) -> SuffixStore:
        """The user's suffix store. Raises ValueError for a file that is none."""
        with self._lock:
            if self._store is None:
                vocab = self.bundle.manifest.target.vocab
                self._store = SuffixStore.open(path, self.text.fingerprint, vocab=vocab)
            return self._store
