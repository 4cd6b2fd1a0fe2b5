"""A draft model of another bundle reads a chat in the frame of its own template."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from chat_families import CHATML
from small_checkpoints import small_tokenizer, write_checkpoint

from paceline.embedded import embedded_bundle
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.runtime.adaptation.laws import Episode
from paceline.runtime.adaptation.samples import samples_of
from paceline.runtime.loading import load
from paceline.runtime.request import Conversation, Sampling
from paceline.runtime.session import Session
from paceline.runtime.template.chat_template import ChatTemplate
from paceline.runtime.text.chat import ChatText
from paceline.runtime.text.text import Text
from paceline.runtime.translation.border import Border
from paceline.runtime.translation.frame import Frame
from paceline.runtime.translation.reading import LOOK_BEHIND, Reading

pytestmark = pytest.mark.export
ASKED = [{"role": "user", "content": "Tell me a story about a dog."}]
TURNS = [*ASKED, {"role": "assistant", "content": "A dog ran."}, {"role": "user", "content": "<|end|> More"}]
GUEST = "chain:storyteller.small"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model that chats in ChatML."""
    place = tmp_path_factory.mktemp("frames")
    tokenizer = small_tokenizer("Tell me a story", extra=("<|im_start|>", "<|im_end|>"))
    end = tokenizer.token_to_id("<|im_end|>")
    model = write_checkpoint(
        place / "model", tokenizer=tokenizer, eos_token_id=end, max_position_embeddings=256
    )
    (model / "chat_template.jinja").write_text(CHATML)
    export_bundle(Order(str(model)), place / "bundle")
    return place / "bundle"


@pytest.fixture(scope="module")
def guest() -> Text:
    return Text.load(embedded_bundle())


def framed(guest: Text, messages: list[dict[str, str]]) -> list[int]:
    """What the storyteller itself would be given."""
    template = ChatTemplate.load(embedded_bundle(), guest)
    assert template is not None
    return list(ChatText(guest, template).encode(messages))


def border_of(session: Session) -> Border:
    drafter = session._drafting.drafter
    assert isinstance(drafter, Border)
    return drafter


def read(session: Session) -> list[int]:
    return border_of(session)._reading.tokens


def test_a_chat_is_read_in_the_draft_models_own_frame(bundle: Path, guest: Text) -> None:
    with load(bundle, drafter="none") as plain, load(bundle, drafter_bundle=embedded_bundle()) as session:
        session.set_drafter(GUEST)
        for messages in (ASKED, TURNS):
            meant = plain.chat(messages, max_tokens=24, sampling=Sampling()).read()
            answer = session.chat(messages, max_tokens=24, sampling=Sampling()).read()
            assert answer.tokens == meant.tokens
            frame = framed(guest, messages)
            assert read(session)[: len(frame)] == frame
            begun = guest.decode(read(session)[len(frame) :])
            assert answer.text.startswith(begun)


@pytest.mark.parametrize("accept", ["coupled", "rejection", "block"])
def test_a_seed_gives_the_same_answer_whatever_was_framed_before(bundle: Path, accept: str) -> None:
    said = []
    for before in (False, True):
        with load(bundle, drafter_bundle=embedded_bundle(), drafter=GUEST) as session:
            if before:
                session.chat(TURNS, max_tokens=8, sampling=Sampling()).read()
            choices = {"sampling": Sampling(temperature=1.0), "accept": accept, "seed": 4}
            said.append(session.chat(ASKED, max_tokens=24, **choices).read().tokens)  # type: ignore[arg-type]
    assert said[0] == said[1]


def test_a_raw_text_has_no_frame(bundle: Path, guest: Text) -> None:
    with load(bundle, drafter_bundle=embedded_bundle(), drafter=GUEST) as session:
        session.chat(ASKED, max_tokens=4, sampling=Sampling()).read()
        answer = session.generate("Tell me a story", max_tokens=8, sampling=Sampling()).read()
        assert answer.stats.rounds
        assert guest.decode(read(session)).startswith("Tell me a story")
        assert not guest.control_ids.intersection(read(session)[1:])


def test_what_the_draft_models_template_refuses_is_read_as_text(guest: Text) -> None:
    refuses = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    fails = ChatTemplate("{{ messages[9].content.name }}")
    for template in (refuses, fails, ChatTemplate("")):
        assert Frame(guest, template).tokens(Conversation(ASKED)) is None
        assert Frame(guest, template).end() is None


def test_the_end_of_an_answer_is_the_one_that_the_template_writes(bundle: Path) -> None:
    """The storyteller ends a raw text with another token."""
    with load(embedded_bundle(), drafter_bundle=bundle) as session:
        own = Text.load(bundle)
        session.set_drafter(f"chain:{name_of(bundle)}")
        sides = border_of(session)._sides
        end = session.text.token_id("<|end|>")
        assert sides.target.roles["end"] == end != session.text.ends[0]
        assert sides.to_target[own.ends[0]] == end
        assert {sides.to_draft[token] for token in session.text.ends} == {own.ends[0]}


def name_of(bundle: Path) -> str:
    with load(bundle, drafter="none") as session:
        return session.bundle.manifest.name.lower()


def test_cutting_the_end_anew_keeps_the_frame(bundle: Path, guest: Text) -> None:
    with load(bundle, drafter_bundle=embedded_bundle(), drafter=GUEST) as session:
        sides, prompt = border_of(session)._sides, list(session.chat_tokens(ASKED))
        reading = Reading(sides, None)
        text = [*prompt, *session.encode("A dog ran and ran.")]
        assert len(text) - len(prompt) < LOOK_BEHIND
        reading.open(text, Conversation(ASKED), len(prompt))
        frame = framed(guest, ASKED)
        reading.follow(text)
        reading.settle()
        assert reading.tokens[: len(frame)] == frame
        assert guest.decode(reading.tokens[len(frame) :]) == "A dog ran and ran."
        assert guest.decode(reading.follow(prompt[:3])) == guest.decode(
            Reading(sides, None).follow(prompt[:3])
        )


def test_what_is_learnt_stands_behind_the_frame(bundle: Path, guest: Text) -> None:
    with load(bundle, drafter_bundle=embedded_bundle(), drafter=GUEST) as session:
        sides, prompt = border_of(session)._sides, list(session.chat_tokens(ASKED))
    text = [*prompt, 40, 50, 60, 70]
    places = np.arange(len(prompt) - 1, len(text) - 1, dtype=np.int32)
    laws = np.full((4, 1), 45, np.int32), np.ones((4, 1), np.float32)
    asked = Episode(text, places, *laws, Conversation(ASKED), len(prompt))
    frame = framed(guest, ASKED)
    sample = next(iter(samples_of(asked, len(sides.draft), sides)))
    assert sample["token_ids"][: len(frame)].tolist() == frame
    assert int(sample["weight"].argmax()) == len(frame) - 1
    assert asked.bytes > Episode(text, places, *laws).bytes


def test_a_context_that_slid_has_no_frame(bundle: Path, guest: Text) -> None:
    with load(
        bundle, drafter_bundle=embedded_bundle(), drafter=GUEST, context=64, overflow="slide"
    ) as session:
        told = [{"role": "user", "content": "Tell me a story about a dog and a cat and a red ball. " * 3}]
        answer = session.chat(told, max_tokens=60, sampling=Sampling()).read()
        assert answer.stats.slides
        frame = framed(guest, told)
        assert read(session)[: len(frame)] != frame
