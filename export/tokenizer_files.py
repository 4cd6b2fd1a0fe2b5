"""The text side of a bundle: tokenizer and chat template as transformers reads them, sampling defaults."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from paceline.export.candidate import harmless, quiet
from paceline.export.errors import ExportError, first_line
from paceline.export.folder import TEMPLATES, read_json
from paceline.export.generation_settings import write_generation
from paceline.runtime.manifest import TOKENIZER
from paceline.runtime.native_calls import native_call
from paceline.runtime.text.parts import let_through

TEMPLATE = "chat_template.jinja"
_READ = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".spm")
_TOKENIZERS = (TOKENIZER, "*.model", "*.spm", "*.tiktoken", "vocab*.json", "vocab*.txt", "tekken.json")
"""What holds a vocabulary, in one library or another."""
_OWN_FILES = ("_file", "_files", "_path", "auto_map")
"""How keys of tokenizer_config.json end that name other files, or code."""
_OWN_PARTS = {"vocab", "merges", "init_inputs", "sp_model_kwargs", "tokenizer_object"}
"""Keys whose values transformers may take for the names of files."""


def write_tokenizer(folder: Path, out: Path) -> PreTrainedTokenizerBase:
    """Write tokenizer.json as transformers understands a Hugging Face folder. Raises ExportError.

    That is more than the folder's own tokenizer.json: tokens may stand in tokenizer_config.json alone, and the class
    that it names decides how text is prepared.
    """
    made = _load(folder)
    made.backend_tokenizer.save(str(out / TOKENIZER))
    return made


def _load(folder: Path) -> PreTrainedTokenizerBase:
    if not any(path.is_file() and path.match(name) for path in folder.iterdir() for name in _TOKENIZERS):
        raise ExportError(
            f"{folder} has no tokenizer ({TOKENIZER}, tokenizer.model, vocab.json): copy the tokenizer's files from "
            "the model that it was made from"
        )
    if not (folder / TOKENIZER).is_file() and any(folder.glob("*.model")):
        for package in ("sentencepiece", "google.protobuf"):
            if importlib.util.find_spec(package.partition(".")[0]) is None:
                raise ExportError(
                    f"{folder} has its tokenizer in a SentencePiece model, and reading that needs the package "
                    f"{package.partition('.')[2] or package}: pip install {package.partition('.')[2] or package}"
                )
    if (folder / TOKENIZER).is_file():
        try:
            with native_call():
                Tokenizer.from_file(str(folder / TOKENIZER))
        except BaseException as error:
            let_through(error)
            raise ExportError(f"{folder / TOKENIZER} cannot be read: {first_line(error)}") from None
    with TemporaryDirectory() as place, quiet(), native_call():
        stage = Path(place)
        config = _stage(folder, stage)
        try:
            made: Any = AutoTokenizer.from_pretrained(
                stage, config=config, trust_remote_code=False, local_files_only=True
            )
            if not isinstance(made.backend_tokenizer, Tokenizer):
                raise ValueError(f"{type(made).__name__} is not one of the tokenizers library")
            made.backend_tokenizer.no_truncation()
            made.backend_tokenizer.no_padding()
            read: PreTrainedTokenizerBase = made
            return read
        except BaseException as error:
            let_through(error)
            said = first_line(error).replace(str(stage), str(folder))
            raise ExportError(
                f"the tokenizer of {folder} cannot be read ({said}): fetch it again, or save it with transformers"
            ) from None


def _stage(folder: Path, stage: Path) -> Any:
    """Copy what a tokenizer is made of, without what names files elsewhere; gives the model's configuration."""
    for path in [*folder.iterdir(), *(folder / TEMPLATES).glob("*.jinja")]:
        if path.is_file() and path.suffix in _READ and not path.name.endswith(".index.json"):
            to = stage / path.relative_to(folder)
            to.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, to)
    for name in ("tokenizer_config.json", "config.json"):
        if (folder / name).is_file():
            said = {
                key: value
                for key, value in harmless(read_json(folder / name)).items()
                if not key.endswith(_OWN_FILES) and key not in _OWN_PARTS
            }
            (stage / name).write_text(json.dumps(said), encoding="utf-8")
    try:
        config = AutoConfig.from_pretrained(stage, local_files_only=True)
    except (ValueError, OSError):  # said when the model is loaded
        return None
    except Exception as error:
        raise ExportError(f"{folder / 'config.json'} cannot be used: {first_line(error)}") from None
    # transformers knows some models by their name on the hub.
    hub = next((p.name for p in folder.absolute().parents if p.name.startswith("models--")), None)
    config._name_or_path = hub.removeprefix("models--").replace("--", "/") if hub else str(folder)
    return config


def chat_template(folder: Path, made: PreTrainedTokenizerBase) -> str | None:
    """The chat template that transformers takes by default, or that of a processor, if there is one."""
    known: Any = made.chat_template
    if isinstance(known, dict):
        known = known.get("default")
    if not known:
        known = read_json(folder / "chat_template.json").get("chat_template")
    return known if isinstance(known, str) and known else None


def write_text_files(folder: Path, out: Path) -> tuple[Tokenizer, list[str]]:
    """Write tokenizer.json, generation.json and, if there is one, chat_template.jinja. Raises ExportError.

    Gives the tokenizer, and in words what of the folder was left out.
    """
    made = write_tokenizer(folder, out)
    template = chat_template(folder, made)
    notes = []
    if template is not None:
        (out / TEMPLATE).write_text(template, encoding="utf-8", newline="")
    elif made.chat_template:
        notes.append("none of the chat templates is called default, so chats will be refused: raw text runs")
    end = made.eos_token_id if made.eos_token else None
    more = write_generation(folder, out, end, made.bos_token, made.eos_token)
    return made.backend_tokenizer, [*notes, *more]
