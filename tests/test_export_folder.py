"""What the exporter opens lies in the folder it was given."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from paceline.export.errors import ExportError
from paceline.export.folder import check_folder, find_folder
from paceline.export.source import load_model
from tests.small_checkpoints import write_checkpoint

INDEX = "model.safetensors.index.json"


def write_index(folder: Path, place: str) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": place}}))


@pytest.mark.parametrize(
    "place",
    ["../private.safetensors", "/tmp/private.safetensors", "sub/x.safetensors", "..", "C:x", "a\\b", ""],
)
def test_a_shard_has_the_bare_name_of_a_file(tmp_path: Path, place: str) -> None:
    write_index(tmp_path, place)
    with pytest.raises(ExportError, match=r"index\.json names .* not the name of a file"):
        check_folder(tmp_path)


def test_a_shard_beside_its_index_is_fine(tmp_path: Path) -> None:
    write_index(tmp_path, "model-2.safetensors")
    check_folder(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja",
        "vocab.txt",
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
        "any.bin",
    ],
)
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    (outside := tmp_path / "secret").write_text("secret")
    (folder := tmp_path / "model").mkdir()
    (folder / name).symlink_to(outside)
    with pytest.raises(ExportError, match="link to a place outside"):
        find_folder(str(folder))


def test_so_is_a_folder_of_templates_that_leads_out(tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (folder := tmp_path / "model").mkdir()
    (folder / "additional_chat_templates").symlink_to(elsewhere)
    with pytest.raises(ExportError, match="link to a place outside"):
        check_folder(folder)
    (folder / "additional_chat_templates").unlink()
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").symlink_to(elsewhere)
    with pytest.raises(ExportError, match="link to a place outside"):
        check_folder(folder)


def test_links_within_the_folder_and_into_a_hubs_blobs_go_on_working(tmp_path: Path) -> None:
    (blobs := tmp_path / "models--a--b" / "blobs").mkdir(parents=True)
    (folder := tmp_path / "models--a--b" / "snapshots" / "0f").mkdir(parents=True)
    (blobs / "d1").write_text("{}")
    (folder / "config.json").symlink_to(Path("../../blobs/d1"))
    (folder / "copy.json").symlink_to("config.json")
    check_folder(folder)
    (blobs / "d2").symlink_to(tmp_path)
    (folder / "vocab.txt").symlink_to(Path("../../blobs/d2"))
    with pytest.raises(ExportError, match="link to a place outside"):
        check_folder(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(ExportError, match="neither a file nor a folder"):
        check_folder(tmp_path)


def test_a_text_file_of_gigabytes_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "generation_config.json").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(ExportError, match=r"generation_config\.json has 2147483648 bytes"):
        check_folder(tmp_path)


def test_weights_named_by_the_configuration_and_a_huge_readme_are_passed_over(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "sub").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "sub" / "other.safetensors")
    config |= {"transformers_weights": "sub/missing.safetensors", "num_labels": 10**9}
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "README.md").open("w") as file:
        file.write("---\nlicense: mit\n---\n")
        file.truncate(2**32)
    assert load_model(str(folder)).licence == "mit"


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(ExportError, match=f"{name} is a pointer of git-lfs"):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**6}, "says 1000000 layers"),
        ({"num_attention_heads": 0}, r"config\.json"),
        ({"num_key_value_heads": 0}, r"config\.json"),
        ({"max_position_embeddings": 10**15}, r"config\.json"),
        (
            {"hidden_size": 10**9},
            r"embed_tokens\.weight has the shape \[320, 48\] in the weights and \[320, 10{9}\]",
        ),
        (
            {"vocab_size": 300},
            r"embed_tokens\.weight has the shape \[320, 48\] in the weights and \[300, 48\]",
        ),
    ],
)
def test_an_absurd_configuration_ends_in_one_line(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = write_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ExportError, match=words) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)
