"""Opens the text side of a bundle with the runtime that must use it, before the bundle appears."""

from __future__ import annotations

from pathlib import Path

from paceline.export.errors import ExportError
from paceline.runtime.bundle.generation import GENERATION, read_generation
from paceline.runtime.manifest import BundleError
from paceline.runtime.template.chat_template import TEMPLATE, ChatTemplate
from paceline.runtime.text.text import Text

_TALK = ("Hello, how are you?", "Fine, thank you.", "What is the time?")


def open_text(work: Path) -> tuple[Text, list[str]]:
    """The tokenizer as a session has it, and in words what will not work with the chat template.

    A template that cannot be read is taken out of the bundle, so that chats are refused and raw text runs. Raises
    ExportError for a tokenizer or generation settings that every session would refuse.
    """
    try:
        text = Text.load(work, read_generation(work / GENERATION))
    except BundleError as error:
        raise ExportError(_without(work, error)) from None
    try:
        template = ChatTemplate.load(work, text)
    except BundleError as error:
        (work / TEMPLATE).unlink()
        return text, [f"left out, so chats will be refused and raw text runs: {_without(work, error)}"]
    return text, [] if template is None else _try(template)


def _try(template: ChatTemplate) -> list[str]:
    talk = [{"role": role, "content": said} for role, said in zip(_ROLES, _TALK, strict=True)]
    try:
        template.render(talk[:1])
        template.render(talk)
    except (BundleError, ValueError) as error:
        return [f"chats may be refused (raw text runs): {error}"]
    return []


def tokens_beyond(work: Path, text: Text, rows: int, plain: str) -> list[str]:
    """In words, what of the tokenizer has no row in a model with a vocabulary of `rows`.

    Raises ExportError where plain text has none.
    """
    if (worst := max(text.encode(plain))) >= rows:
        raise ExportError(
            f"the tokenizer writes plain text with the id {worst}, the model has a vocabulary of {rows}: "
            "this tokenizer belongs to another model"
        )
    beyond = [i for i in range(rows, text.vocab_size) if text.token(i) is not None]
    if not beyond:
        return []
    first = f"{text.token(beyond[0])!r} (id {beyond[0]})"
    found = [
        f"{len(beyond)} tokens of the tokenizer, from {first} on, are beyond the model's vocabulary of {rows}: "
        "text that holds them is refused"
    ]
    template = ChatTemplate.load(work, text)
    if template is not None:
        try:
            ids = text.encode_marked(template.render([{"role": _ROLES[0], "content": _TALK[0]}]))
        except (BundleError, ValueError):
            return found  # said before
        if max(ids, default=0) >= rows:
            found = [
                f"every chat will be refused: the chat template writes {text.token(max(ids))!r} (id {max(ids)}), "
                f"beyond the model's vocabulary of {rows}; resize its embeddings and export again, or use raw text"
            ]
    return found


_ROLES = ("user", "assistant", "user")


def _without(work: Path, error: BundleError) -> str:
    """The message without the name of the folder, which will be gone, and without its advice to export."""
    said = str(error).replace(f"{work}/", "").replace(f"{work}\\", "")
    for advice in ("; export the model again", ": export the model again", ": export again"):
        said = said.removesuffix(advice)
    return said
