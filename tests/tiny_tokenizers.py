"""Small tokenizers of the usual kinds, trained on the spot, with control tokens, as bundle folders."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CONTROLS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
]
SEEN = [
    "Once upon a time there was a little dog. The dog had a red ball, and it was the best ball of all.",
    "Tell me a story about naïve cafés, 日本語 and 😀 😀 faces.\n\nThe end.\n",
    "user assistant system [INST] [/INST] def f(x):\n    return x + 1\n",
    "<< >> | < > im_start im_end think tool_call 0123456789 {} \" ' \\ , . ! ?",
]


def byte_level() -> Tokenizer:
    """Byte-level BPE with a pattern for words, as GPT-2, Qwen and Llama 3 have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"'s|\s?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=CONTROLS[:1],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SEEN, trainer)
    tokenizer.add_special_tokens(CONTROLS[1:])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>", "    ")])
    return tokenizer


def _bytes_as_tokens() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece_bpe() -> Tokenizer:
    """BPE with byte fallback, a space put before the text, and a beginning token, as Llama 2 has it."""
    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.Replace(" ", "▁")
    learnt.train_from_iterator(SEEN, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(learnt.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *_bytes_as_tokens(), *sorted(model["vocab"], key=model["vocab"].get)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, rstrip=True) for t in CONTROLS])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return tokenizer


def unigram() -> Tokenizer:
    """Unigram with byte fallback; its vocabulary holds the control tokens, one space before the text."""
    learnt = Tokenizer(models.Unigram())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    learnt.train_from_iterator(
        SEEN, trainers.UnigramTrainer(vocab_size=150, show_progress=False, unk_token="<unk>")
    )
    pieces = [tuple(p) for p in json.loads(learnt.to_str())["model"]["vocab"] if p[0] != "<unk>"]
    controls = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<|im_start|>", 0.0), ("<|im_end|>", 0.0)]
    bytes_too = [(token, -20.0) for token in _bytes_as_tokens()]
    tokenizer = Tokenizer(models.Unigram([*controls, *bytes_too, *pieces], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t, _ in controls])
    return tokenizer


def metaspace() -> Tokenizer:
    """The same vocabulary with a Metaspace decoder."""
    tokenizer = unigram()
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return tokenizer


def wordpiece(cleanup: bool = True, prefix: str = "##") -> Tokenizer:
    """WordPiece as BERT has it: small letters, no blanks, and what goes on with a word is marked."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", continuing_subword_prefix=prefix))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=prefix, cleanup=cleanup)
    trainer = trainers.WordPieceTrainer(
        vocab_size=160,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        continuing_subword_prefix=prefix,
        show_progress=False,
    )
    tokenizer.train_from_iterator([*SEEN, "don't do not she's we've they're I'm '"], trainer)
    tokenizer.add_tokens(["n't", "'s", "'ve", " do not", "'"])
    return tokenizer


KINDS = {
    "byte-level": byte_level,
    "sentencepiece": sentencepiece_bpe,
    "unigram": unigram,
    "metaspace": metaspace,
}


def folder_of(tokenizer: Tokenizer, folder: Path, template: str | None = None) -> Path:
    """A folder with tokenizer.json and, if given, chat_template.jinja."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder
