"""A GGUF file as a checkpoint: the text files of a Hugging Face folder, and weights that are read when asked for."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from paceline.export.errors import ExportError
from paceline.export.gguf.families import FAMILIES, Config
from paceline.export.gguf.keys import Keys
from paceline.export.gguf.reader import Gguf, read_gguf
from paceline.export.gguf.vocabulary import read_vocabulary
from paceline.export.gguf.weights import Weights

_INSTEAD = "export the Hugging Face model that the file was made from"
_KINDS = {
    "adapter": "is a LoRA adapter: merge it into its model, and export that",
    "mmproj": "is a multimodal projector: name the file of the language model beside it",
    "imatrix": "holds statistics for quantising and no model: name the file of the model",
}
_ENCODERS = ("bert", "t5", "embedding", "jina", "wavtokenizer", "encoder")
_STATE_SPACE = (
    "mamba",
    "rwkv",
    "jamba",
    "lfm2",
    "plamo2",
    "falcon-h1",
    "granitehybrid",
    "kimi-linear",
    "qwen3next",
)
_NO_END = "the GGUF file names no token that ends an answer: answers run to --max-tokens or to the end of the context"
_NO_TEMPLATE = "the GGUF file has no chat template, so chats will be refused: raw text runs"


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Unpacked:
    """A file, and a folder with its text side and config.json, which goes when this is forgotten."""

    path: Path
    folder: Path
    name: str
    weights: Weights
    notes: tuple[str, ...]

    @contextmanager
    def named(self) -> Iterator[None]:
        """Within this block errors speak of the file where they would speak of the folder."""
        try:
            yield
        except ExportError as error:
            said = str(error).replace(f"{self.folder}/config.json", f"{self.path} (its metadata)")
            said = said.replace(str(self.folder), str(self.path)).replace("its config.json", "its metadata")
            raise ExportError(said.replace("config.json", "its metadata")) from None


def unpack(path: Path, readme: Path | None = None) -> Unpacked:
    """Read a GGUF model, all parts of it; `readme` may name a licence. Raises ExportError."""
    file = read_gguf(path)
    architecture = _check_kind(file)
    family = FAMILIES[architecture]
    keys = Keys(file, architecture)
    config = family.config(keys)
    keys.check_all_read()
    table = file.tensors["token_embd.weight"]
    config |= {"vocab_size": table.shape[0], "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    weights = Weights(file, family, config)
    vocabulary = read_vocabulary(file)
    if len(vocabulary.tokenizer.get_vocab()) > table.shape[0]:
        raise ExportError(
            f"{path} has {len(vocabulary.tokenizer.get_vocab())} tokens, and rows for {table.shape[0]}: fetch it again"
        )
    title = file.metadata.get("general.name")
    name = title if isinstance(title, str) and title.strip() else path.stem
    template = file.metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ExportError(
            f"{path}: tokenizer.chat_template is no text: fetch it again, or convert the model again"
        )
    unended = () if vocabulary.ends else (_NO_END,)
    notes = (*family.notes, *(() if template else (_NO_TEMPLATE,)), *unended)
    folder = Path(mkdtemp(prefix="paceline-gguf-"))
    made = Unpacked(path, folder, name, weights, notes)
    weakref.finalize(made, shutil.rmtree, folder, ignore_errors=True)
    vocabulary.tokenizer.save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **vocabulary.special}
    )
    _write(folder / "config.json", config | _licence(file))
    _write(folder / "generation_config.json", {"eos_token_id": vocabulary.ends} if vocabulary.ends else {})
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
    if readme is not None and readme.is_file():
        shutil.copyfile(readme, folder / "README.md")
    return made


def _write(path: Path, content: Config) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _licence(file: Gguf) -> dict[str, Any]:
    said = file.metadata.get("general.license")
    return {"license": said} if isinstance(said, str) and said else {}


def _check_kind(file: Gguf) -> str:
    """The architecture of a model that may be carried. Raises ExportError."""
    kind, architecture = file.metadata.get("general.type", "model"), file.metadata.get("general.architecture")
    known = str(architecture)[:40]
    if kind in _KINDS or architecture == "clip":
        raise ExportError(f"{file.path} {_KINDS.get(kind, _KINDS['mmproj'])}")
    if not isinstance(architecture, str) or not architecture:
        raise ExportError(f"{file.path} does not say its architecture: fetch it again")
    experts = file.metadata.get(f"{architecture}.expert_count", 0) != 0
    if experts or "moe" in architecture or any("_exps." in name for name in file.tensors):
        raise ExportError(f"{file.path} is a mixture of experts ({known}): not supported")
    if any(part in architecture for part in _ENCODERS) or not file.metadata.get(
        f"{architecture}.attention.causal", True
    ):
        raise ExportError(f"{file.path} is an encoder ({known}): only decoders can be exported")
    if any(part in architecture for part in _STATE_SPACE):
        raise ExportError(f"{file.path} is a state-space or hybrid model ({known}): not supported")
    if architecture not in FAMILIES:
        raise ExportError(
            f"{file.path}: GGUF files of the architecture {known!r} are not carried ({', '.join(sorted(FAMILIES))} "
            f"are): {_INSTEAD}"
        )
    if not file.tensors:
        raise ExportError(f"{file.path} holds a vocabulary and no weights: name the file of the model")
    if (
        len(table := file.tensors["token_embd.weight"].shape if "token_embd.weight" in file.tensors else ())
        != 2
    ):
        raise ExportError(
            f"{file.path} has no table of tokens (token_embd.weight {list(table)}): fetch it again"
        )
    return architecture
