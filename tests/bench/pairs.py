"""Models of different tokenizers draft for each other: texts keep their letters, and no answer changes.

    python tests/bench/pairs.py OUT [--shared DIR] [--smollm2 BUNDLE] [--qwen FILE] [--prompts 200] [--tokens 16]
        [--pairs DRAFT>TARGET,...]

Bundles are made in OUT once: of the models of DIR, and of small random models with its tokenizers; of a random Qwen2
with 151,936 rows where FILE has its tokenizer's ranks (`qwen.tiktoken`, as the package dashscope has it); without any
of them of one small random model. The storyteller is always among them. Prompts go round the pairs. Of each one it is
checked that the draft model reads the text that the target reads, and that greedy answers with chains and trees are
plain decoding's. OUT/pairs.json keeps what is done: the same command goes on from there. The exit status is 1 where
anything differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

from chat_families import CHATML  # noqa: E402
from hard_texts import HARD  # noqa: E402
from small_checkpoints import add_json, small_tokenizer, write_checkpoint  # noqa: E402
from tiktoken_file import qwen_tokenizer  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from paceline.embedded import embedded_bundle  # noqa: E402
from paceline.export.order import Order  # noqa: E402
from paceline.export.pipeline import export_bundle  # noqa: E402
from paceline.runtime.answer import Answer  # noqa: E402
from paceline.runtime.bundle.bundle import open_bundle  # noqa: E402
from paceline.runtime.bundle.guests import with_guest  # noqa: E402
from paceline.runtime.control.limits import FixedLimit  # noqa: E402
from paceline.runtime.loading import load  # noqa: E402
from paceline.runtime.request import Sampling  # noqa: E402
from paceline.runtime.session import Session  # noqa: E402
from paceline.runtime.text.text import Text  # noqa: E402
from paceline.runtime.translation.ngrams import NGRAM_BYTES, NgramCache  # noqa: E402
from paceline.runtime.translation.reading import Reading  # noqa: E402
from paceline.runtime.translation.sides import Sides  # noqa: E402
from paceline.runtime.translation.spelling import Spelling  # noqa: E402

MODELS = ("stories260K", "babyllama105")
TOKENIZERS = ("gpt2", "llama2_fast", "phi-3-mini")
QWEN_ROWS = 151_936
WIDTH, DEPTH = 6, 4


def main() -> int:
    """Print a line for each pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--qwen", type=Path)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--pairs", default="")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    bundles = bundles_of(args)
    pairs = [tuple(pair.split(">")) for pair in args.pairs.split(",") if pair] or every_pair(bundles)
    prompts = prompts_of(args)
    kept = args.out / "pairs.json"
    done = json.loads(kept.read_text()) if kept.is_file() else {}
    for number, (draft, target) in enumerate(pairs):
        name = f"{draft} > {target}"
        if name not in done:
            told = Pair(bundles[draft], bundles[target], args.tokens).run(prompts[number :: len(pairs)])
            done[name] = dataclasses.asdict(told)
            kept.write_text(json.dumps(done, indent=1))
        print(f"{name:<28} {Told(**done[name])}", flush=True)
    whole = [Told(**found) for found in done.values()]
    wrong = sum(told.changed + told.misread for told in whole)
    print(f"{sum(told.prompts for told in whole)} prompts, {len(whole)} pairs, {wrong} of them wrong")
    return 1 if wrong else 0


def prompts_of(args: argparse.Namespace) -> list[str]:
    """Hard texts first, then questions and stories in turn."""
    found = list(HARD)
    if args.shared is not None:
        asked = (args.shared / "prompts" / "gsm8k_test_200.jsonl").read_text().splitlines()
        stories = (args.shared / "corpora" / "tinystories_niklas6_sample.txt").read_text()
        questions = [json.loads(line)["question"][:300] for line in asked]
        openings = [story.strip()[:60] for story in stories.split("<|endoftext|>") if len(story) > 200]
        found += [text for both in zip(questions, openings, strict=False) for text in both]
    return (found * (args.prompts // len(found) + 1))[: args.prompts]


def bundles_of(args: argparse.Namespace) -> dict[str, Path]:
    """Bundles by name, the storyteller among them; missing ones are made."""
    found = {"storyteller": embedded_bundle()}
    sources: dict[str, Path] = {}
    if args.shared is not None:
        sources |= {name: args.shared / "models" / name for name in MODELS}
        for name in TOKENIZERS:
            file = args.shared / "tokenizers" / name / "tokenizer.json"
            sources[name] = random_model(args.out / name, Tokenizer.from_file(str(file)), "llama")
    if args.qwen is not None:
        sources["qwen2"] = random_model(args.out / "qwen2", qwen_tokenizer(args.qwen), "qwen2", QWEN_ROWS)
    if not sources and args.smollm2 is None:
        sources["tiny"] = random_model(args.out / "tiny", small_tokenizer(), "llama")
    for name, source in sources.items():
        found[name] = args.out / "bundles" / name
        if not found[name].is_dir():
            found[name].parent.mkdir(exist_ok=True)
            export_bundle(Order(str(source), name=name), found[name])
    return found if args.smollm2 is None else found | {"smollm2": args.smollm2}


def random_model(folder: Path, tokenizer: Tokenizer, kind: str, rows: int = 0) -> Path:
    """A checkpoint with random weights. rows: of its logits, else as many as there are tokens."""
    if folder.is_dir():
        return folder
    size = tokenizer.get_vocab_size()
    end = next(i for text in ("<|im_end|>", "</s>", "<|endoftext|>") if (i := tokenizer.token_to_id(text)))
    wide = {"hidden_size": 64, "num_hidden_layers": 4} if rows else {}
    write_checkpoint(
        folder,
        tokenizer=tokenizer,
        kind=kind,
        vocab_size=max(rows, size),
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=end,
        **wide,
    )
    add_json(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    if kind == "qwen2":
        (folder / "chat_template.jinja").write_text(CHATML)
    return folder


def every_pair(bundles: dict[str, Path]) -> list[tuple[str, ...]]:
    """Everybody drafts for everybody else."""
    return [(draft, target) for draft in bundles for target in bundles if draft != target]


@dataclasses.dataclass(slots=True)
class Told:
    """What became of a pair. unspelled: texts that the draft model has no tokens for, of which it reads the rest."""

    prompts: int = 0
    texts: int = 0
    tokens: int = 0
    changed: int = 0
    misread: int = 0
    unspelled: int = 0
    accepted: int = 0
    tested: int = 0

    def __str__(self) -> str:
        return (
            f"{self.misread} of {self.texts} texts misread ({self.unspelled} not all spelled); {self.prompts} prompts: "
            f"{self.changed} of {self.tokens} tokens changed, {self.accepted} of {self.tested} drafted ones accepted"
        )


class Pair:
    """A draft model and a target of two bundles."""

    def __init__(self, draft: Path, target: Path, tokens: int) -> None:
        self._draft, self._target, self._most = draft, target, tokens

    def run(self, prompts: Sequence[str]) -> Told:
        """Ask all of them."""
        told = Told(len(prompts))
        across = Across(*(Text.load(folder) for folder in (self._draft, self._target)))
        for text in (*HARD, *prompts):
            read, spelled = across.reads(text)
            told.texts += 1
            told.misread += not read
            told.unspelled += not spelled
        plain = list(self._answers("none", prompts, told))
        name = list(with_guest(*map(open_bundle, (self._target, self._draft))).guests)[-1]
        for drafter in (f"chain:{name}", f"tree:{name}"):
            for meant, found in zip(plain, self._answers(drafter, prompts, told), strict=True):
                told.tokens += len(meant)
                told.changed += sum(a != b for a, b in zip(meant, found, strict=False))
                told.changed += abs(len(meant) - len(found))
        return told

    def _answers(self, drafter: str, prompts: Sequence[str], told: Told) -> Iterator[list[int]]:
        guest = None if drafter == "none" else self._draft
        with load(self._target, drafter_bundle=guest, drafter=drafter) as session:
            if guest is not None:
                control = FixedLimit(WIDTH, DEPTH)
                session._drafting = dataclasses.replace(session._drafting, control=control)
            for number, prompt in enumerate(prompts):
                answer = self._asked(session, prompt, number)
                told.accepted += answer.stats.accepted
                told.tested += answer.stats.tested
                yield answer.tokens

    def _asked(self, session: Session, prompt: str, number: int) -> Answer:
        sampling, room = Sampling(), session.context - self._most - 40
        if session.has_template and number % 2 and len(session.encode(prompt)) < room:
            return session.chat(
                [{"role": "user", "content": prompt}], max_tokens=self._most, sampling=sampling
            ).read()
        return session.generate(
            session.encode(prompt)[:room], max_tokens=self._most, sampling=sampling
        ).read()


class Across:
    """The texts of one tokenizer as another one has them."""

    def __init__(self, draft: Text, target: Text) -> None:
        self._draft, self._target = draft, target
        self._sides = Sides(Spelling.of(draft), Spelling.of(target), NgramCache(NGRAM_BYTES))

    def reads(self, text: str) -> tuple[bool, bool]:
        """Whether the draft model reads what the target reads, at once and token by token; and whether it can spell it.

        What it cannot spell is left out of what it reads.
        """
        draft, ids = self._draft, self._target.encode(text)
        meant = self._target.decode(ids)
        spelled = self._sides.draft.cover(meant.encode()) is not None
        whole, grown = (Reading(self._sides, self._sides.ngrams) for _ in range(2))
        for size in range(1, len(ids) + 1):
            grown.follow(ids[:size])
        read = [draft.decode(tokens) for tokens in (whole.follow(ids), grown.tokens)]
        return all(found == meant if spelled else _within(found, meant) for found in read), spelled


def _within(text: str, whole: str) -> bool:
    """Whether a text is what is left of another one where letters are taken out."""
    letters = iter(whole)
    return all(letter in letters for letter in text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PACELINE_CACHE"] = cache
        sys.exit(main())
