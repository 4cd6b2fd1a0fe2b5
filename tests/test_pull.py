"""`paceline pull` from a hub on loopback: what arrives, how it resumes, and what never appears."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import call
from hub_server import COMMIT, FILES, LARGEST, Hub, changed, hub_for, serving
from interruption import ctrl_c, moments
from terminal import Terminal, needs_terminal

import paceline
from paceline.store import models_folder, names, unfinished


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_for(tmp_path, monkeypatch) as hub:
        yield hub


def test_a_bundle_arrives_whole_and_is_used_by_its_name(hub: Hub) -> None:
    hub.add("me/Tale", {"setup.py": b"raise SystemExit", "pytorch_model.bin": b"x" * 99})
    done = call("pull", "me/Tale")
    assert (done.code, done.err) == (0, ""), done.err
    assert "next: paceline run -b Tale" in done.out
    place = models_folder() / "Tale"
    held = {p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*") if p.is_file()}
    about = json.loads(held.pop(".source.json"))
    assert held == FILES
    assert (about["repository"], about["commit"], about["file"]) == ("me/Tale", COMMIT, None)
    assert sorted(hub.fetched()) == sorted(FILES)
    assert unfinished() == {}
    assert os.listdir(models_folder()) == ["Tale"]


def test_afterwards_nothing_is_asked_of_the_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("pull", "me/Tale").code == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.asked.clear()
    expected = call("run", "--raw", "-n", "12", "Once upon a time")
    for words in (["-b", "Tale"], ["Tale"]):
        named = call("run", "--raw", "-n", "12", *words, "Once upon a time")
        assert (named.code, named.out) == (0, expected.out), named.err
    assert call("inspect", "Tale", "--json").json()["folder"] == str(models_folder() / "Tale")
    assert call("plan", "-b", "Tale", "--json").json()["bundle"] == "storyteller"
    assert call("chat", "Tale", stdin="Tell me a story.\n").code == 0
    assert call("bench", "-b", "Tale", "--perplexity", __file__).code == 0
    with paceline.load("Tale") as session:
        assert session.bundle.folder == models_folder() / "Tale"
    assert hub.asked == []


def test_a_subfolder_a_revision_and_a_name(hub: Hub) -> None:
    hub.add("me/many", FILES, "int4/small")
    hub.revisions.add("v1.0")
    assert call("pull", "me/many/int4/small@v1.0", "--name", "tiny").code == 0
    assert names() == ["tiny"]
    assert hub.asked[0] == "GET /api/models/me/many/revision/v1.0"
    [tiny] = [m for m in call("list", "--json").json()["models"] if m["name"] == "tiny"]
    assert tiny["source"]["subfolder"] == "int4/small"


def test_a_cut_connection_goes_on_where_it_broke(hub: Hub) -> None:
    hub.cuts = [3 << 20, 2 << 20]
    assert call("pull", "me/Tale").code == 0
    again = [line for line in hub.asked if "bytes=" in line]
    assert [int(line.rpartition("=")[2].rstrip("-")) % (1 << 20) for line in again] == [0] * len(again)
    assert len(again) == 2
    assert (models_folder() / "Tale" / LARGEST).read_bytes() == FILES[LARGEST]


def test_a_hub_without_ranges_sends_everything_again(hub: Hub) -> None:
    hub.cuts, hub.ranges = [3 << 20], False
    assert call("pull", "me/Tale").code == 0
    assert (models_folder() / "Tale" / LARGEST).read_bytes() == FILES[LARGEST]


def command(hub: Hub, *words: str) -> subprocess.Popen[str]:
    """In a process of its own, as users have it."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(models_folder().parent / "hf")}
    return subprocess.Popen(
        [sys.executable, "-m", "paceline", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_a_new_process_goes_on_where_an_old_one_ended(hub: Hub, how: str) -> None:
    hub.stall_after = 5 << 20
    first = command(hub, "pull", "me/Tale")
    until = time.monotonic() + 60
    part = models_folder() / ".unfinished" / "Tale" / "parts" / hashlib.sha256(FILES[LARGEST]).hexdigest()
    while not part.exists() or part.stat().st_size < (4 << 20):
        assert first.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL if how == "kill" else signal.SIGINT)
    hub.stalled.set()
    out, err = first.communicate(timeout=60)
    assert out == ""
    if how == "interrupt":
        assert first.returncode == 130
        assert err == "paceline: stopped; what came is kept, and pulling me/Tale again goes on from there\n"
    assert names() == []
    kept = part.stat().st_size
    shown = call("list")
    assert "Tale is not complete" in shown.err
    assert "Tale" not in shown.out
    hub.stall_after = None
    hub.asked.clear()
    second = command(hub, "pull", "me/Tale")
    out, err = second.communicate(timeout=120)
    assert (second.returncode, err) == (0, "")
    [resumed] = [line for line in hub.asked if "bytes=" in line]
    assert int(resumed.rpartition("=")[2].rstrip("-")) == kept >= (4 << 20)
    assert names() == ["Tale"]
    assert unfinished() == {}


def test_what_came_damaged_before_is_fetched_again(hub: Hub) -> None:
    place = models_folder() / ".unfinished" / "Tale" / "parts"
    place.mkdir(parents=True)
    (place / hashlib.sha256(FILES[LARGEST]).hexdigest()).write_bytes(b"wrong" * 99)
    assert call("pull", "me/Tale").code == 0
    asked = [line for line in hub.asked if line.partition(" bytes")[0].endswith(LARGEST)]
    assert [line.partition(" bytes=")[2] for line in asked] == ["495-", ""]


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.token = "hf_secret"
    with serving(Hub(files=hub.files)) as other:
        hub.through = other.url.replace("127.0.0.1", "localhost")
        assert call("pull", "me/Tale").code == 0
        assert {token for _, token in hub.tokens} == {"Bearer hf_secret"}
        assert [token for _, token in other.tokens] == [None] * len(other.tokens)
        assert other.tokens != []


def test_pulling_again_renews_what_changed_and_links_the_rest(hub: Hub) -> None:
    assert call("pull", "me/Tale").code == 0
    hub.asked.clear()
    again = call("pull", "me/Tale")
    assert again.code == 0
    assert "Tale is up to date" in again.err
    assert hub.fetched() == []
    hub.commit = hashlib.sha1(b"second").hexdigest()
    hub.add("me/Tale", changed(generation_json=b'{"eos_ids":[0]}'))
    assert call("pull", "me/Tale").code == 0
    assert sorted(hub.fetched()) == ["generation.json", "manifest.json"]
    assert (models_folder() / "Tale" / "generation.json").read_bytes() == b'{"eos_ids":[0]}'


def test_a_name_is_one_sources_without_force(hub: Hub) -> None:
    hub.add("you/Tale", changed(generation_json=b"{}"))
    assert call("pull", "me/Tale").code == 0
    clash = call("pull", "you/Tale")
    assert clash.code == 1
    assert "there is a model Tale already, from me/Tale" in clash.err
    assert "--name" in clash.err
    assert call("pull", "you/Tale", "--force").code == 0
    assert (models_folder() / "Tale" / "generation.json").read_bytes() == b"{}"


def test_the_old_one_stays_where_the_new_one_fails(hub: Hub) -> None:
    assert call("pull", "me/Tale").code == 0
    hub.commit = hashlib.sha1(b"second").hexdigest()
    hub.add("me/Tale", changed(tokenizer_json=b"{}"))
    hub.swapped["tokenizer.json"] = b"[]"
    failed = call("pull", "me/Tale")
    assert failed.code == 1
    assert "tokenizer.json did not arrive as it should" in failed.err
    assert call("run", "-b", "Tale", "-n", "3", "Hello").code == 0


@needs_terminal
def test_a_terminal_gets_a_bar(hub: Hub) -> None:
    with Terminal("pull", "me/Tale", columns=100, HF_ENDPOINT=hub.url) as terminal:
        shown = terminal.rest()
    assert "Tale" in shown
    assert "15.7/15.7 MB" in shown
    assert "MB/s" in shown


def test_two_pulls_of_a_name_do_not_meet(hub: Hub) -> None:
    hub.stall_after = 1 << 20
    first = command(hub, "pull", "me/Tale")
    until = time.monotonic() + 60
    while not unfinished():
        assert first.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    second, removal = call("pull", "me/Tale"), call("rm", "Tale", "--yes")
    hub.stall_after = None
    hub.stalled.set()
    assert "Tale is being pulled already" in second.err
    assert "Tale is being pulled already" in removal.err
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert names() == ["Tale"]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it may come while a generator ends
def test_ctrl_c_at_any_moment_leaves_nothing_half(hub: Hub) -> None:
    assert call("pull", "me/Tale", "--name", "first").code == 0  # what is imported once is
    with ctrl_c(0) as press:
        assert call("pull", "me/Tale").code == 0
    for at in moments(press.calls, 12):
        assert call("rm", "Tale", "--yes").code == 0
        with ctrl_c(at) as press:
            done = call("pull", "me/Tale")
        assert done.code == (130 if press.came else 0), press.came
        if "Tale" in names():
            assert call("inspect", "Tale").code == 0, press.came
        assert call("pull", "me/Tale").code == 0, press.came
        assert unfinished() == {}, press.came
        assert call("inspect", "Tale").code == 0


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it may come while a generator ends
def test_ctrl_c_at_any_moment_of_a_renewal_leaves_the_old_one_or_the_new_one(hub: Hub) -> None:
    texts = [b'{"eos_ids":[0]}', b'{"eos_ids":[3]}']
    hub.add("me/Tale", changed(generation_json=texts[0]))
    assert call("pull", "me/Tale").code == 0
    with ctrl_c(0) as press:
        assert call("pull", "me/Tale", "--force").code == 0
    for count, at in enumerate(moments(press.calls, 8), 1):
        hub.commit = hashlib.sha1(b"%d" % count).hexdigest()
        hub.add("me/Tale", changed(generation_json=texts[count % 2]))
        with ctrl_c(at) as press:
            call("pull", "me/Tale")
        held = (models_folder() / "Tale" / "generation.json").read_bytes()
        assert held in texts, press.came
        assert call("inspect", "Tale").code == 0, press.came
        assert call("pull", "me/Tale").code == 0, press.came
        assert (models_folder() / "Tale" / "generation.json").read_bytes() == texts[count % 2]
        assert unfinished() == {}
