"""The text side of a bundle from a GGUF file: the tokenizer as it was built from the file, template and ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from paceline.export.folder import read_json
from paceline.export.generation_settings import write_generation
from paceline.export.gguf.unpack import Unpacked
from paceline.runtime.manifest import TOKENIZER
from paceline.runtime.native_calls import native_call
from paceline.runtime.template.chat_template import TEMPLATE

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


def write_gguf_text(made: Unpacked, out: Path) -> tuple[Tokenizer, list[str]]:
    """Write tokenizer.json, generation.json and, if there is one, chat_template.jinja.

    Gives the tokenizer, and in words what of the settings was left out.
    """
    if (made.folder / TEMPLATE).is_file():
        shutil.copyfile(made.folder / TEMPLATE, out / TEMPLATE)
    special = read_json(made.folder / "tokenizer_config.json")
    tokenizer = _tokenizer(made.folder, [special[name] for name in _NAMED if name in special])
    tokenizer.save(str(out / TOKENIZER))
    eos = special.get("eos_token")
    end = None if eos is None else tokenizer.token_to_id(eos)
    return tokenizer, write_generation(made.folder, out, end, special.get("bos_token"), eos)


def _tokenizer(folder: Path, named: Iterable[str]) -> Tokenizer:
    """The file's tokenizer; tokens that it names for a purpose are special, as transformers has them."""
    with native_call():
        made = Tokenizer.from_file(str(folder / TOKENIZER))
        added = {token.content for token in made.get_added_tokens_decoder().values()}
        made.add_special_tokens(
            [AddedToken(token, normalized=False, special=True) for token in named if token not in added]
        )
    return made
