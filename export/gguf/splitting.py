"""How byte-level tokenizers cut text into words, by the names that llama.cpp gives to them (tokenizer.ggml.pre)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_FIRST = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = f"{_FIRST}{_UPPER}*{_LOWER}+|{_FIRST}{_UPPER}+{_LOWER}*" + r"|\p{N}" + _TAIL
_GPT4O = f"{_FIRST}{_UPPER}*{_LOWER}+{_SHORT}|{_FIRST}{_UPPER}+{_LOWER}*{_SHORT}" + r"|\p{N}{1,3}" + _TAIL


@dataclass(frozen=True, slots=True)
class Split:
    """One way. regex: None is GPT-2's. digits: each stands alone. composed: text is brought to NFC before."""

    regex: str | None = None
    digits: bool = False
    composed: bool = False
    whole_words: bool = False
    """A word that is a token is taken without merges."""
    begins: bool = False
    """The first token is put before a text where the file does not say whether."""

    def pre_tokenizer(self) -> Any:
        """What cuts, and turns bytes into letters."""
        if self.regex is not None:
            cut = pre_tokenizers.Split(Regex(self.regex), behavior="isolated")
            return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        if self.digits:
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_])
        return bytes_

    def normalizer(self) -> Any:
        """None where text stays as it is."""
        return normalizers.NFC() if self.composed else None


SPLITS = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jina-es", "jina-de", "gigachat"), Split()),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "minerva-7b"), Split(digits=True)),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3"), Split(_LLAMA3, whole_words=True, begins=True)
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Split(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), Split(_QWEN2, composed=True)),
    "tekken": Split(_TEKKEN, whole_words=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Split(_GPT4O)),
}
