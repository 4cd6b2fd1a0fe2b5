"""The text side of a bundle from a GGUF file: the tokenizer as it was built from the file, template and ends."""

from __future__ import annotations

import shutil
from pathlib import Path

from tokenizers import Tokenizer

from paceline.export.folder import read_json
from paceline.export.generation_settings import write_generation
from paceline.export.gguf.unpack import Unpacked
from paceline.runtime.manifest import TOKENIZER
from paceline.runtime.native_calls import native_call
from paceline.runtime.template.chat_template import TEMPLATE


def write_gguf_text(made: Unpacked, out: Path) -> tuple[Tokenizer, list[str]]:
    """Write tokenizer.json, generation.json and, if there is one, chat_template.jinja.

    Gives the tokenizer, and in words what of the settings was left out.
    """
    for name in (TOKENIZER, TEMPLATE):
        if (made.folder / name).is_file():
            shutil.copyfile(made.folder / name, out / name)
    with native_call():
        tokenizer = Tokenizer.from_file(str(out / TOKENIZER))
    special = read_json(made.folder / "tokenizer_config.json")
    eos = special.get("eos_token")
    end = None if eos is None else tokenizer.token_to_id(eos)
    return tokenizer, write_generation(made.folder, out, end, special.get("bos_token"), eos)
