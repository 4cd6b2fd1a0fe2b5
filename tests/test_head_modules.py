"""Draft heads in torch: what training computes is what drafting computes, and a checkpoint is what was saved."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from head_lessons import tiny_head  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from paceline.export.errors import ExportError  # noqa: E402
from paceline.export.heads.config import Method, read_config  # noqa: E402
from paceline.export.training.heads.checkpoint import METHODS, load_head, save_head  # noqa: E402
from paceline.export.training.heads.head import AttentiveHead, Lesson, OwnDrafts, at  # noqa: E402
from paceline.export.training.heads.kangaroo import Kangaroo  # noqa: E402
from paceline.export.training.heads.layers import Rows, attend, rotated  # noqa: E402

pytestmark = pytest.mark.export

DEPTH, LENGTH = 5, 11
OWN = [method for method, kind in METHODS.items() if issubclass(kind, OwnDrafts)]


def own_head(method: Method) -> OwnDrafts:
    head = tiny_head(method)
    assert isinstance(head, OwnDrafts)
    return head


def lesson(method: Method = "eagle3", seed: int = 1) -> Lesson:
    """Two texts; anchors out of order; the last one of all levels at the last place from which the text knows them."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 60, (2, LENGTH), generator=generator)
    features = torch.randn((2, LENGTH, 12 if method in ("eagle", "kangaroo") else 36), generator=generator)
    anchors = torch.tensor([[4, 0, LENGTH - 1 - DEPTH, 7], [2, 5, 1, 9]])
    return Lesson(tokens, features, anchors, 3, DEPTH)


def by_hand(head: OwnDrafts, tokens: torch.Tensor, features: torch.Tensor, depth: int) -> list[torch.Tensor]:
    """The rows of every level after the pairs of `tokens[n]` and `features[n - depth]`, as drafting gets them.

    Committed pairs are read one at a time, then each level is fed the token that stands in the text.
    """
    cache: Rows | None = None
    for pair in range(len(features)):
        state, cache = head.read(tokens[pair + 1 : pair + 2], features[pair : pair + 1], cache)
    row, rows, drafted = state[0], [], list[torch.Tensor]()
    for number in range(1, depth + 1):
        row, cache = head.level(number, state[0], row, drafted, cache)
        rows.append(row)
        if number < depth:
            drafted.append(tokens[len(features) + number])
    return rows


@pytest.mark.parametrize("method", OWN)
def test_states_of_training_are_those_of_drafting(method: Method) -> None:
    head, given = own_head(method), lesson(method)
    with torch.no_grad():
        levels = head.states(given)
        assert [level.shape[1] for level in levels] == [3 if method == "dflash" else 4, 3, 3, 3, 3]
        for row, anchors in enumerate(given.anchors.tolist()):
            for column, anchor in enumerate(anchors[: levels[0].shape[1]]):
                depth = min(DEPTH if column < given.deep else 1, LENGTH - 1 - anchor)
                known = given.features[row, : anchor + 1]
                for level, meant in zip(levels, by_hand(head, given.tokens[row], known, depth), strict=False):
                    close = 1e-4 * max(1.0, float(meant.abs().max()))  # states without a last norm grow
                    torch.testing.assert_close(level[row, column], meant, rtol=1e-4, atol=close)


@pytest.mark.parametrize("method", OWN)
def test_no_level_sees_what_comes_later(method: Method) -> None:
    head, given = tiny_head(method), lesson(method)
    anchor, level = 4, 3
    changed = given._replace(tokens=given.tokens.clone(), features=given.features.clone())
    changed.features[0, anchor + 1 :] += 1
    changed.tokens[0, anchor + level + 1 :] = (changed.tokens[0, anchor + level + 1 :] + 3) % 60
    for before, after in zip(head.states(given)[:level], head.states(changed)[:level], strict=True):
        assert torch.equal(before[0, 0], after[0, 0])
    if method not in ("medusa", "dflash"):
        given.tokens[0, anchor + level], changed.tokens[0, anchor + level] = 1, 4
        one, other = (head.states(asked)[level - 1][0, 0] for asked in (given, changed))
        assert not torch.equal(one, other)


@pytest.mark.parametrize("method", OWN)
def test_a_draft_follows_its_own_tokens_and_obeys_noise(method: Method) -> None:
    head, given = own_head(method), lesson(method)
    tokens, features = given.tokens[0], given.features[0, :6]
    with torch.no_grad():
        state, cache = head.read(tokens[1:7], features)
        drafted = head.draft(state[-1], cache, DEPTH)
        text = torch.cat([tokens[:7], drafted.tokens])
        for level, row in enumerate(by_hand(head, text, features, DEPTH)):
            logits = row @ head.head_weight.T
            torch.testing.assert_close(drafted.scores[level], logits, rtol=1e-4, atol=1e-4)
            assert drafted.tokens[level] == head.vocabulary[logits.argmax()]
        noise = torch.zeros(DEPTH, 20)
        noise[1, 7] = 1000.0
        pushed = head.draft(state[-1], cache, DEPTH, noise)
        assert pushed.tokens[0] == drafted.tokens[0]
        assert pushed.tokens[1] == head.vocabulary[7]


def test_a_glance_shows_the_token_of_the_text_where_first_levels_are_wrong() -> None:
    """The second level of a draft is one of two: as in use, or that of a step which knows the token."""
    head, given = tiny_head("falcon"), lesson("falcon")
    given = given._replace(anchors=torch.tensor([[4], [2]]), deep=1)
    with torch.no_grad():
        plain = head.states(given)
        said = head.vocabulary[(plain[0][:, 0] @ head.head_weight.T).argmax(-1)].long()
        rows, places = torch.arange(2), given.anchors[:, 0] + 2
        wrong, right = given.tokens.clone(), given.tokens.clone()
        wrong[rows, places], right[rows, places] = torch.where(said == 1, 4, 1), said
        others = []
        for seed in range(24):
            chance = torch.Generator().manual_seed(seed)
            shown = head.states(given._replace(tokens=wrong, chance=chance))
            assert torch.equal(shown[0], plain[0])
            others += [
                row for row, same in zip(shown[1], plain[1], strict=True) if not torch.equal(row, same)
            ]
            sure = given._replace(tokens=right)
            for one, other in zip(head.states(sure), head.states(sure._replace(chance=chance)), strict=True):
                assert torch.equal(one, other)
    assert 8 < len(others) < 40
    assert len({tuple(row[0].tolist()) for row in others}) == 2


def test_a_level_of_kangaroo_is_the_row_of_the_token_before_it() -> None:
    """Each level by torch's own attention over all rows up to its own, which the target computed of the text."""
    head, given = tiny_head("kangaroo"), lesson("kangaroo")
    assert isinstance(head, Kangaroo)
    config = head.config
    with torch.no_grad():
        levels = head.states(given)
        assert [level.shape[1] for level in levels] == [4, 3, 3, 3, 3]
        x = head.state_norm(given.features)
        places = torch.arange(LENGTH)
        q = head.layer.queries(x, places, config.rope_theta).transpose(1, 2)
        keys, values = (side.transpose(1, 2) for side in head.layer.rows(x, places, config.rope_theta))
        seen = torch.nn.functional.scaled_dot_product_attention(
            q, keys, values, is_causal=True, enable_gqa=True
        )
        whole = head.final_norm(given.features + head.layer.o(seen.transpose(1, 2).flatten(2)))
        for number, level in enumerate(levels, 1):
            rows = (given.anchors[:, : level.shape[1]] + number).clamp(max=LENGTH - 2)
            torch.testing.assert_close(level, at(whole, rows), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(levels[0][:, :3], levels[1], atol=0.1)
    assert not head.head.weight.requires_grad


def test_reading_at_once_is_reading_one_by_one() -> None:
    head, given = own_head("eagle3"), lesson()
    tokens, features = given.tokens[0], given.features[0]
    with torch.no_grad():
        whole, cache = head.read(tokens[1:], features[:-1])
        first, part = head.read(tokens[1:4], features[:3])
        rest, part = head.read(tokens[4:], features[3:-1], part)
    torch.testing.assert_close(torch.cat([first, rest]), whole)
    assert cache is not None
    assert part is not None
    torch.testing.assert_close(cache.keys, part.keys)


def test_attention_is_the_softmax_of_torch() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 5, 4, 6), torch.randn(1, 5, 2, 6), torch.randn(1, 5, 2, 6)
    meant = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
    )
    seen = attend(q, Rows(k, v), torch.arange(5)[None])
    torch.testing.assert_close(seen, meant.transpose(1, 2).flatten(2))


def test_rotation_is_that_of_llama() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    x, positions = torch.randn(1, 7, 2, 8), torch.arange(3, 10)
    angles = positions[:, None] * 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    table = torch.cat([angles, angles], -1)[None]
    meant, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), table.cos(), table.sin())
    torch.testing.assert_close(rotated(x, positions, 10000.0), meant.transpose(1, 2))


def test_unknown_tokens_share_a_row() -> None:
    head = tiny_head("eagle3")
    assert isinstance(head, AttentiveHead)
    assert head.rows_of(torch.tensor([0, 1, 2, 4, 58, 59])).tolist() == [20, 0, 20, 1, 19, 20]
    assert torch.equal(head.embedded(torch.tensor(0)), head.embedded(torch.tensor(59)))


@pytest.mark.parametrize("ids", [range(19), [*range(19), 60], [5, *range(6, 24), 5], [-1, *range(19)]])
def test_a_vocabulary_that_is_none_is_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        tiny_head("eagle3").know(torch.tensor(list(ids)))


@pytest.mark.parametrize(
    ("method", "tied"),
    [
        ("eagle", False),
        ("eagle3", True),
        ("eagle3", False),
        ("hydra", True),
        ("medusa", False),
        ("dflash", True),
        ("clover", True),
        ("falcon", False),
    ],
)
def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path, method: Method, tied: bool) -> None:
    head, given = tiny_head(method, tied=tied), lesson(method)
    save_head(head, tmp_path, [0.5, 0.25])
    again = load_head(tmp_path)
    assert again.config.acceptance == [0.5, 0.25]
    assert read_config(tmp_path) == again.config
    for one, other in zip(head.states(given), again.states(given), strict=True):
        assert torch.equal(one, other)
    held = load_file(tmp_path / "model.safetensors")
    assert held["vocabulary"].dtype == torch.int32
    assert ("head.weight" in held) == (not tied)
    if method == "eagle3":
        assert held.keys() - {"head.weight"} == {
            *(f"tap_norms.{i}.weight" for i in range(3)),
            *(f"layer.{part}.weight" for part in "q k v o gate up down".split()),
            *(f"{norm}_norm.weight" for norm in "token state mlp final".split()),
            *("embed.weight", "fc.weight", "vocabulary"),
        }
        assert held["layer.q.weight"].shape == (24, 24)
        assert held["embed.weight"].shape == (21, 12)


def test_a_checkpoint_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no head at"):
        load_head(tmp_path / "none")
    save_head(tiny_head("hydra"), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    save_file({name: value for name, value in whole.items() if name != "fc.weight"}, path)
    with pytest.raises(ExportError, match=r"lacks fc\.weight"):
        load_head(tmp_path)
