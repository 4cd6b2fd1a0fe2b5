"""The slash commands of a chat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from paceline.chat_completion import complete
from paceline.chat_settings import WORDS, plain_name
from paceline.conversation import Conversation
from paceline.errors import one_line
from paceline.runtime.drafters.words import closest


@dataclass(frozen=True, slots=True)
class Command:
    """names[0] is the one that /help shows; `act` gets the rest of the line."""

    names: tuple[str, ...]
    usage: str
    help: str
    act: Callable[[Conversation, str], None]


def perform(chat: Conversation, line: str) -> None:
    """Do what a line that starts with `/` asks. Raises ValueError for an unknown command."""
    word, _, rest = line[1:].strip().partition(" ")
    for command in COMMANDS:
        if word.lower() in command.names:
            command.act(chat, rest.strip())
            return
    known = {name: f"/set {plain_name(name)}" for name in ("temperature", *_settings(chat))}
    known |= {name: f"/{name}" for command in COMMANDS for name in command.names}
    raise ValueError(
        f"no command /{word:.40}: {_meant(word, known)}/help lists them (a space before the / sends it to the "
        "model)"
    )


def completions(chat: Conversation, line: str) -> tuple[int, list[str]]:
    """What Tab offers for a line that begins with a slash: where the unfinished part begins, and its ends."""

    words = {**WORDS, "drafter": ("auto", *chat.session.drafter_names())}
    settings = {name: words.get(name, ()) for name in _settings(chat)}
    return complete(line, [c.names[0] for c in COMMANDS], settings)


def _meant(word: str, known: Mapping[str, str]) -> str:
    """A question for the one that is meant; known: what to ask for, by the name."""
    close = closest(word.lower(), known)
    return f"did you mean {known[close]}? " if close else ""


def _help(chat: Conversation, rest: str) -> None:
    for command in COMMANDS:
        chat.screen.tell(f"  {'/' + command.usage:<18} {command.help}", " " * 21)
    for line in _KEYS:
        chat.screen.tell(f"  {line}", "  ")


_KEYS = (
    'Pasted lines are one message, and so is what stands between two """.',
    "Alt-Enter begins another line; so does Enter behind a backslash.",
    "Tab completes commands, the up arrow brings back what was typed.",
    "Ctrl-C stops an answer and keeps the chat, Ctrl-D leaves.",
)


def _leave(chat: Conversation, rest: str) -> None:
    chat.over = True


def _clear(chat: Conversation, rest: str) -> None:
    chat.clear()
    chat.screen.note("history cleared" + ("; the system prompt stays" if chat.system else ""))


def _reset(chat: Conversation, rest: str) -> None:
    chat.reset()
    chat.screen.note("history, settings and system prompt are as at the start")


def _history(chat: Conversation, rest: str) -> None:
    names = {"system": "system", "user": "you", "assistant": "model"}
    if not chat.with_system():
        chat.screen.note("nothing was said yet")
    for message in chat.with_system():
        chat.screen.tell(f"{names[message['role']]}: {message['content']}")


def _stats(chat: Conversation, rest: str) -> None:
    from paceline.stats_text import statistics_lines

    if rest not in ("", "full"):
        raise ValueError(f"/stats or /stats full, not /stats {rest:.40}")
    if not chat.session.stats.rounds:
        raise ValueError("no answer yet: /stats describes the last one")
    for line in statistics_lines(chat.session.stats, rest == "full"):
        chat.screen.tell(line)


def _set(chat: Conversation, rest: str) -> None:
    name, _, value = rest.partition(" ")
    name, value = plain_name(name), value.strip()
    if not name:
        for each, now in _settings(chat).items():
            chat.screen.tell(f"  {each:<18} {now}", " " * 21)
        return
    if name == "system":
        chat.system = None if value in ("", "none") else value
    elif name not in _settings(chat):
        known = {each: each for each in _settings(chat)}
        raise ValueError(f"no setting {name!r:.40}: {_meant(name, known)}there are {', '.join(known)}")
    elif not value:
        raise ValueError(f"/set {name} needs a value: /set alone shows them all")
    elif name == "drafter":
        chat.session.set_drafter(value)
    else:
        chat.settings = chat.settings.with_value(name, value)
    chat.screen.note(f"{name} is now {_settings(chat)[name]}")


def _settings(chat: Conversation) -> dict[str, str]:
    """Names and values as they are shown."""
    return {
        **dict(chat.settings.shown()),
        "drafter": chat.session.drafter_name,
        "system": chat.system or "none",
    }


def _save(chat: Conversation, rest: str) -> None:
    from paceline.transcript import Transcript, check_place, save

    bundle = chat.session.bundle.manifest.name
    path = _file(rest, "save")
    check_place(path)
    replaces = path.exists() and path.resolve() != chat.file
    if replaces and chat.screen.interactive:
        chat.file = path.resolve()
        raise ValueError(f"{rest} holds another chat: the same /save once more replaces it")
    new_folder = not path.parent.exists()
    save(path, Transcript(chat.system, tuple(chat.messages), bundle))
    chat.file = path.resolve()
    if replaces:
        chat.screen.warn(f"{rest} held another chat, which was replaced")
    made = f" (in a new folder, {path.absolute().parent})" if new_folder else ""
    chat.screen.note(f"saved {len(chat.messages)} messages to {rest}{made}")
    try:
        size = chat.session.save(_beside(path))
    except (ValueError, OSError, MemoryError) as error:
        chat.screen.warn(f"{one_line(error)}; the messages are saved, and /load will read them again")
    else:
        chat.screen.note(f"and the cache to {rest}{_CACHE} ({size / 1e6:.1f} MB)")


def _load(chat: Conversation, rest: str) -> None:
    from paceline.transcript import load

    path = _file(rest, "load")
    transcript = load(path)
    chat.clear()
    chat.system = transcript.system
    chat.messages.extend(transcript.messages)
    chat.file = path.resolve()
    chat.screen.note(f"loaded {len(chat.messages)} messages from {rest}")
    if _beside(path).exists():
        try:
            restored = chat.session.restore(_beside(path))
        except ValueError as error:
            chat.screen.warn(f"{error}; the chat is read again")
        else:
            chat.screen.note(f"and a cache of {restored} tokens")


_CACHE = ".cache"


def _beside(path: Path) -> Path:
    """Where the cache of a saved chat lies."""
    return path.with_name(path.name + _CACHE)


def _file(rest: str, command: str) -> Path:
    if not rest:
        raise ValueError(f"/{command} needs a file name")
    try:
        return Path(rest).expanduser()
    except RuntimeError:
        raise ValueError(f"{rest}: there is no such home folder; write the path out") from None


def _regenerate(chat: Conversation, rest: str) -> None:
    chat.regenerate()


def _keep(chat: Conversation, rest: str) -> None:
    chat.keep()
    chat.screen.note("kept in the place of the answer before it")


def _adapt(chat: Conversation, rest: str) -> None:
    from paceline.adapt_text import learned_lines

    for line in learned_lines(chat.session.learner.learned()):
        chat.screen.tell(line)


def _forget(chat: Conversation, rest: str) -> None:
    from paceline.runtime.adaptation.saved import folder_of_adapters

    if not chat.session.learner.learned():
        where = folder_of_adapters()
        by_hand = "" if where is None else f", or delete {where} and all that was ever learnt"
        raise ValueError(
            "no draft model learns here, so there is nothing to forget: start with --adapt on and the same bundles"
            f"{by_hand}"
        )
    try:
        chat.session.learner.forget()
    except OSError as error:
        raise ValueError(
            f"{error.filename} cannot be deleted ({error.strerror}): delete it yourself"
        ) from None
    chat.screen.note("what draft models learnt is forgotten, and its files are deleted")


COMMANDS = (
    Command(("help", "?"), "help, /?", "this list", _help),
    Command(("exit", "quit", "bye"), "exit", "leave (also /quit, /bye, Ctrl-D)", _leave),
    Command(("clear",), "clear", "forget what was said, keep the system prompt", _clear),
    Command(("reset",), "reset", "forget everything, settings too", _reset),
    Command(("history",), "history", "show what was said", _history),
    Command(("stats",), "stats [full]", "statistics of the last answer; full: all of them", _stats),
    Command(("set",), "set NAME VALUE", "change a setting; /set alone shows them", _set),
    Command(("save",), "save FILE", "write the conversation and its cache", _save),
    Command(("load",), "load FILE", "go on with a saved conversation", _load),
    Command(("regen",), "regen", "answer the last question again", _regenerate),
    Command(("adapt",), "adapt", "what draft models learnt from use (--adapt on)", _adapt),
    Command(("forget",), "forget", "forget that, and delete its files", _forget),
    Command(("keep",), "keep", "take what a stopped /regen said", _keep),
)
