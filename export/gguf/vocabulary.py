"""The tokenizer of a GGUF file, of the tokenizers library: the ids are those of the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from paceline.export.errors import ExportError
from paceline.export.gguf.reader import Gguf
from paceline.export.gguf.splitting import SPLITS
from paceline.runtime.native_calls import native_call
from paceline.runtime.text.parts import let_through

_SPACE = "▁"
_CONTROL, _USER = 3, 4
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_ENDS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <end_of_turn> <|endoftext|> <|eom_id|> <EOT> _<EOT> [EOT] "
    "[EOS] <|end_of_text|> <end_of_utterance> <eos>".split()
)
"""Control tokens that llama.cpp takes for an end, whatever the file says."""
_LONGEST = 4096
"""Characters of a token: cutting one up takes time that grows with their square."""
_NO_TOKEN = (-1, 2**32 - 1)
"""What converters write for a token that a model lacks."""
_PHI3_PLAIN = ("<unk>", "<s>", "<|endoftext|>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """special: texts by transformers' names. ends: ids that end an answer, the file's own first."""

    tokenizer: Tokenizer
    special: dict[str, str]
    ends: list[int]


def read_vocabulary(file: Gguf) -> Vocabulary:
    """Build the tokenizer that a file describes. Raises ExportError."""
    source = _Source(file)
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if source.model not in builders:
        raise ExportError(
            f"{file.path}: its tokenizer is of the kind {str(source.model)[:40]!r}, and byte-level BPE (gpt2) and "
            "SentencePiece BPE (llama) are carried: export the Hugging Face model that the file was made from"
        )
    try:
        with native_call():
            made, begins = builders[source.model](source)
            _add_tokens(made, source)
            _add_frame(made, source, begins)
    except ExportError:
        raise
    except BaseException as error:
        let_through(error)
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise source.wrong(f"its tokenizer cannot be built ({said})") from None
    special = {name: source.tokens[i] for name, key in _SPECIAL.items() if (i := source.id(key)) is not None}
    return Vocabulary(made, special, source.ends())


class _Source:
    """What the metadata say of the tokenizer, looked over."""

    def __init__(self, file: Gguf) -> None:
        self.file = file
        self.model = self.get("model")
        self.tokens: list[str] = self.get("tokens")
        if not isinstance(self.tokens, list) or not self.tokens:
            raise self.wrong("it holds no vocabulary")
        if (longest := max(map(len, self.tokens))) > _LONGEST:
            raise self.wrong(f"a token has {longest} characters, and {_LONGEST} at most are taken")
        if len(set(self.tokens)) != len(self.tokens):
            seen: set[str] = set()
            twice = next(t for t in self.tokens if t in seen or seen.add(t))  # type: ignore[func-returns-value]
            raise self.wrong(f"two of its tokens are {twice[:40]!r}")
        self.kinds = self._numbers("token_type", np.ones(len(self.tokens), np.int32))
        self.scores = self._numbers("scores", np.zeros(len(self.tokens), np.float32))

    def get(self, key: str) -> Any:
        return self.file.metadata.get(f"tokenizer.ggml.{key}")

    def id(self, key: str) -> int | None:
        found = self.get(f"{key}_token_id")
        if found is None or found in _NO_TOKEN:
            return None
        if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < len(self.tokens):
            raise self.wrong(
                f"tokenizer.ggml.{key}_token_id {str(found)[:40]} is none of {len(self.tokens)} tokens"
            )
        return found

    def flag(self, key: str, otherwise: bool) -> bool:
        found = self.get(key)
        return found if isinstance(found, bool) else otherwise

    def of_kind(self, *kinds: int) -> Iterable[tuple[int, str]]:
        return ((int(i), self.tokens[i]) for i in np.flatnonzero(np.isin(self.kinds, kinds)))

    def ends(self) -> list[int]:
        named = [self.id(key) for key in ("eos", "eot", "eom")]
        known = [i for i, token in self.of_kind(_CONTROL, _USER) if token in _ENDS]
        return list(dict.fromkeys(i for i in [*named, *known] if i is not None))

    def wrong(self, what: str) -> ExportError:
        return ExportError(f"{self.file.path}: {what}: fetch it again, or convert the model again")

    def _numbers(self, key: str, otherwise: Any) -> Any:
        found = self.get(key)
        if found is None:
            return otherwise
        if not isinstance(found, np.ndarray) or len(found) != len(self.tokens):
            raise self.wrong(f"tokenizer.ggml.{key} is no list of one number for each token")
        return found


def _byte_level(source: _Source) -> tuple[Tokenizer, bool]:
    name = source.get("pre")
    split = SPLITS.get(name) if isinstance(name, str) else None
    if split is None:
        raise ExportError(
            f"{source.file.path}: how its tokenizer cuts text (tokenizer.ggml.pre {str(name)[:40]!r}) is not carried: "
            "convert the model again with a new llama.cpp, or export the Hugging Face model"
        )
    merges = source.get("merges")
    pairs = [tuple(merge.split(" ")) for merge in merges] if isinstance(merges, list) else []
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise source.wrong("its merges are absent, or not pairs")
    made = Tokenizer(models.BPE(_ids(source.tokens), pairs, ignore_merges=split.whole_words))
    if (normalizer := split.normalizer()) is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = split.pre_tokenizer()
    made.decoder = decoders.ByteLevel()
    return made, split.begins


def _sentencepiece(source: _Source) -> tuple[Tokenizer, bool]:
    gemma = str(source.file.metadata.get("general.architecture")).startswith("gemma")
    # The converter writes the spaces of added tokens as spaces; in the model's own vocabulary they are marked.
    tokens = [_SPACE * len(t) if t and not t.strip(" ") else t for t in source.tokens]
    if len(set(tokens)) != len(tokens):
        tokens = source.tokens
    source.tokens = tokens
    ids = _ids(tokens)
    places = {t: float(-i) for t, i in ids.items()}
    scores = places if gemma else dict(zip(tokens, source.scores.tolist(), strict=True))
    unknown = source.id("unknown")
    made = Tokenizer(
        models.BPE(
            ids,
            _merges(ids, scores, {token for _, token in source.of_kind(_CONTROL)}),
            unk_token=tokens[unknown if unknown is not None else 0],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = source.flag("add_space_prefix", True)
    steps: list[Any] = [normalizers.Prepend(_SPACE)] if prefix else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    parts: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return made, True


def _ids(tokens: list[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def _merges(ids: dict[str, int], scores: dict[str, float], whole: set[str]) -> list[tuple[str, str]]:
    """Pairs of tokens that make a token, the best-scored first, as tokenizer.json of Llama and its heirs has them."""
    found = []
    for token in ids:
        if token not in whole:
            halves = ((token[:i], token[i:]) for i in range(1, len(token)))
            found += [(scores[token], a, b) for a, b in halves if a in ids and b in ids]
    found.sort(key=lambda item: -item[0])
    return [(a, b) for _, a, b in found]


def _add_tokens(made: Tokenizer, source: _Source) -> None:
    """Control tokens and the user's are found whole in a text."""
    phi3 = source.file.metadata.get("general.architecture") == "phi3" and source.model == "llama"
    unknown = source.id("unknown")
    control = {i for i, _ in source.of_kind(_CONTROL)} | ({unknown} if unknown is not None else set())
    user = [(i, token) for i, token in source.of_kind(_USER) if not set(token) <= {_SPACE}]
    added = [(i, source.tokens[i]) for i in control] + user
    for i, token in sorted(added):
        if token:
            strips = phi3 and token not in _PHI3_PLAIN and (i in control or token == "</s>")
            ready = AddedToken(token, normalized=False, special=i in control, rstrip=strips)
            (made.add_special_tokens if i in control else made.add_tokens)([ready])


def _add_frame(made: Tokenizer, source: _Source, begins: bool) -> None:
    """The tokens before and behind a text, as llama.cpp puts them."""
    first = source.id("bos") if source.flag("add_bos_token", begins) else None
    last = source.id("eos") if source.flag("add_eos_token", False) else None
    frame = [(source.tokens[i], i) for i in (first, last) if i is not None]
    if not frame:
        return
    before = [source.tokens[first]] if first is not None else []
    behind = [source.tokens[last]] if last is not None else []
    made.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *behind], pair=[*before, "$A", *before, "$B", *behind], special_tokens=frame
    )
