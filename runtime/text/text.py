"""Text to tokens and back for one bundle, with control tokens only where the template wrote them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from paceline.runtime.bundle.generation import GENERATION, Generation, read_generation
from paceline.runtime.channels import Markers
from paceline.runtime.detokenizer import read_decoder
from paceline.runtime.manifest import TOKENIZER, BundleError
from paceline.runtime.native_calls import native_call
from paceline.runtime.template.marked import Marked, foreign, written
from paceline.runtime.text.control_tokens import Disguised, Place, disguise
from paceline.runtime.text.parts import check_parts, let_through, try_out
from paceline.runtime.text.stops import StopStrings
from paceline.runtime.text.stream import Detokenizer, TextStream, TokenBytes

_SURROGATE = re.compile("[\ud800-\udfff]")
LARGEST_FILE = 2**28
"""Bytes."""
_PIECE = 8192
"""Characters."""


class Text:
    """A tokenizer. Made with `Text.load`."""

    def __init__(self, tokenizer: Tokenizer, disguised: Disguised, generation: Generation) -> None:
        self._tokenizer = tokenizer
        self._controls = disguised.controls
        self._spellings = {name: text for text, name in disguised.controls.names.items()}
        self._generation = generation
        self._fingerprint: str | None = None
        self.vocab_size = disguised.size
        """The highest id plus one; the model's logits may be wider."""
        self.special_ids = frozenset(token.id for token in disguised.added if token.special)
        """Ids that show no text."""
        self.control_ids = frozenset(t.id for t in disguised.added if t.content in disguised.controls.names)
        """Ids that ordinary text never becomes: the special ones and those that steer a chat."""
        # The tokenizer's own spelling, unless one is disguised that a text may show.
        spell = self.token if self.control_ids - self.special_ids else tokenizer.id_to_token
        self._bytes = TokenBytes(read_decoder(disguised.decoder), spell, self.special_ids, self._markers())
        self._prefix = self._find_prefix()

    @classmethod
    def load(cls, folder: Path, generation: Generation | None = None) -> Text:
        """The tokenizer of a bundle. Raises BundleError where it is absent or damaged.

        generation: what the folder's generation.json says, if it was read before.
        """
        path = folder / TOKENIZER
        raw = _read(path)
        generation = generation or read_generation(folder / GENERATION)
        try:
            disguised = disguise(raw, _template_source(folder), generation.eos_ids)
            check_parts(disguised.steps)
            with native_call():
                tokenizer = Tokenizer.from_str(disguised.json.decode())
                _check(tokenizer, disguised)
                try_out(tokenizer)
                return cls(tokenizer, disguised, generation)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from None
        except BaseException as error:  # tokenizers raises nothing more precise
            let_through(error)
            raise BundleError(f"{path} is damaged ({_line(error)}): export the model again") from None

    def encode(self, text: str, *, add_bos: bool | None = None, allow_special: bool = False) -> list[int]:
        """Tokens of a raw text.

        add_bos: None follows the tokenizer's own rule. allow_special: control tokens spelled in the text
        count; otherwise they are ordinary text. Raises ValueError for `add_bos=True` where the tokenizer
        knows none.
        """
        if add_bos and not self._prefix:
            raise ValueError("this tokenizer has no token for the beginning of a text: leave add_bos out")
        ids = self.encode_marked(written(text) if allow_special else foreign(text))
        return ids if add_bos is False else [*self._prefix, *ids]

    def encode_marked(self, marked: Marked) -> list[int]:
        """Tokens of a rendered chat: control tokens only where the template wrote them, nothing in front.

        A long one goes piece by piece, cut at control tokens: a tokenizer holds some hundred bytes for each of text.
        """
        ids: list[int] = []
        at = 0
        cuts = self._controls.written_in(marked) if len(marked) > _PIECE and not self._controls.unsure else ()
        for start, end in cuts:
            if start - at >= _PIECE:
                # The control token may take in white space before it, so it ends the one piece and begins the next.
                ids += self._encode_piece(marked[at:end])[:-1]
                at = start
        return ids + self._encode_piece(marked[at:] if at else marked)

    def _encode_piece(self, marked: Marked) -> list[int]:
        left: set[int] = set()
        while True:
            hidden, places = self._controls.hide(marked, left)
            try:
                with native_call():
                    encoding = self._tokenizer.encode(
                        _SURROGATE.sub("\ufffd", hidden), add_special_tokens=False
                    )
            except BaseException as error:  # tokenizers raises nothing more precise
                let_through(error)
                raise BundleError(f"the tokenizer failed ({_line(error)}): export the model again") from None
            ids: list[int] = encoding.ids
            missed = self._missed(ids, encoding.offsets, places) if self._controls.unsure else set()
            if not missed:
                return ids
            left |= missed

    def cuts(self, marked: Marked) -> list[int]:
        """Where the template wrote control tokens: what stands before each has the same tokens whatever follows.

        None where a control token is looked for in normalised text and may not be found.
        """
        return [] if self._controls.unsure else [start for start, _ in self._controls.written_in(marked)]

    @property
    def longest_control(self) -> int:
        """Characters of the longest control token and one more."""
        return max(map(len, self._controls.names), default=0) + 1

    def _missed(self, ids: list[int], offsets: list[tuple[int, int]], places: list[Place]) -> set[int]:
        """Numbers of the secret names that the tokenizer did not take for a control token."""
        taken = [span for i, span in zip(ids, offsets, strict=True) if i in self.control_ids]
        return {n for n, start, end in places if not any(a < end and start < b for a, b in taken)}

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these tokens; special ones and ids beyond the vocabulary show nothing."""
        detokenizer = self.detokenizer()
        return "".join(map(detokenizer.push, ids)) + detokenizer.flush()

    def detokenizer(self, prompt_ids: Sequence[int] = ()) -> Detokenizer:
        """Decodes an answer to `prompt_ids` token by token."""
        return Detokenizer(self._bytes, prompt_ids)

    def stream(self, prompt_ids: Sequence[int], stops: Sequence[str], eos: frozenset[int]) -> TextStream:
        """Makes events of the tokens of an answer, up to a stop string or to a token of `eos`.

        Raises ValueError for stop strings that are none.
        """
        finder = StopStrings(stops)
        # A special token shows no text that a stop string could be found in: its id ends the answer.
        known = {self.token_id(stop) for stop in stops}
        ends = eos | {token for token in known if token in self.special_ids}
        return TextStream(self.detokenizer(prompt_ids), finder if stops else None, ends)

    def pieces(self) -> list[bytes | None]:
        """What every token spells inside a text, None where it shows nothing or steers."""
        found = self._bytes.every(self._tokenizer.get_vocab(with_added_tokens=True), self.vocab_size)
        for token in self.control_ids:
            found[token] = None
        return found

    @property
    def leads(self) -> bool:
        """Whether a text loses the blank that its first token spells."""
        rules = self._bytes.rules
        return rules.gap == " " or bool(rules.dropped_at_start) or rules.stripped[0] == " "

    @property
    def prefix(self) -> tuple[int, ...]:
        """What the tokenizer puts before raw text."""
        return self._prefix

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return tuple(self._generation.eos_ids)

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it, None where there is none."""
        found: int | None = self._tokenizer.token_to_id(self._controls.names.get(token, token))
        return found

    def token(self, token_id: int) -> str | None:
        """The spelling of an id, None beyond the vocabulary."""
        if not 0 <= token_id < self.vocab_size:
            return None
        name: str | None = self._tokenizer.id_to_token(token_id)
        return None if name is None else self._spellings.get(name, name)

    @property
    def bos(self) -> str | None:
        """What templates write to begin: as `generation.json` says, else what the tokenizer puts before raw text."""
        return self._generation.bos_token or (self.token(self._prefix[0]) if self._prefix else None)

    @property
    def eos(self) -> str | None:
        """What templates write for the end of an answer: as `generation.json` says, else its first end id."""
        ends = self._generation.eos_ids
        return self._generation.eos_token or (self.token(ends[0]) if ends else None)

    @property
    def fingerprint(self) -> str:
        """sha256 of the vocabulary, for stores that outlive a session: equal where ids mean the same."""
        if self._fingerprint is None:
            known = sorted(self._tokenizer.get_vocab(with_added_tokens=True).items(), key=itemgetter(1))
            spelled = [self._spellings.get(name, name) for name, _ in known]
            content = msgspec.json.encode((spelled, [i for _, i in known]))
            self._fingerprint = hashlib.sha256(content).hexdigest()
        return self._fingerprint

    def _markers(self) -> Markers | None:
        ids = [self.token_id(f"<|{name}|>") for name in ("start", "channel", "message")]
        known = [i for i in ids if i is not None and i in self.special_ids]
        return Markers(*known) if len(known) == len(ids) else None

    def _find_prefix(self) -> tuple[int, ...]:
        encoding = self._tokenizer.encode("a", add_special_tokens=True)
        ids, added = encoding.ids, encoding.special_tokens_mask
        count = next((i for i, special in enumerate(added) if not special), 0)
        return tuple(ids[:count])


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise BundleError(
                f"{path} is larger than {LARGEST_FILE} bytes: this is no tokenizer, export again"
            )
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): export the model again") from None


def _template_source(folder: Path) -> str:
    path = folder / "chat_template.jinja"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _check(tokenizer: Tokenizer, disguised: Disguised) -> None:
    """Every added token must have got the id that the file gives it; tokenizers renumbers without a word."""
    for token in disguised.added:
        name = disguised.controls.names.get(token.content, token.content)
        if token.content and (found := tokenizer.token_to_id(name)) != token.id:
            raise BundleError(
                f"the token {token.content!r} should have id {token.id} and got {found}: export again"
            )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
