"""A model hub as `paceline pull` sees it: what a repository holds, and its files, fetched so that a break costs little.

huggingface_hub asks and fetches. Its own downloads begin a file anew in each process; this one appends to what an
earlier process left, and whoever asked compares the digest.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from paceline.memory.errors import Error

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REFERENCE = re.compile(rf"\A({_PART}/{_PART})((?:/{_PART})*)(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,200}}))?\Z")
_PAGES = ("https://huggingface.co/", "https://hf.co/", "huggingface.co/", "hf.co/")
_COMMIT = re.compile(r"\A[0-9a-f]{40}\Z")
_SHA256 = re.compile(r"\A[0-9a-f]{64}\Z")


_WAITS = "huggingface_hub.utils._http"
"""Who says that the hub is waited for."""


class PullError(Error):
    """A model that cannot be fetched; the message is one line that names the cause and the remedy."""


@dataclass(frozen=True, slots=True)
class Reference:
    """OWNER/REPO[/SUBFOLDER][@REVISION]."""

    repository: str
    subfolder: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises PullError for anything else."""
        plain = text
        for page in _PAGES:
            plain = plain.removeprefix(page)
        found = _REFERENCE.match(plain.rstrip("/"))
        if found is None or "/blob/" in plain or "/tree/" in plain or "/resolve/" in plain:
            raise PullError(
                f"{text!r:.200} names no model: write OWNER/REPO, OWNER/REPO/FOLDER or OWNER/REPO@REVISION"
            )
        return cls(found[1], found[2].lstrip("/"), found[3])

    @property
    def place(self) -> str:
        """Without the revision."""
        return f"{self.repository}/{self.subfolder}" if self.subfolder else self.repository

    @property
    def name(self) -> str:
        """What the model is called where nobody names it."""
        return self.place.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Listed:
    """A file as the hub lists it. sha256: None where it keeps none (small files)."""

    bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Repository:
    """One commit of a repository. files: all of it, by their paths."""

    reference: Reference
    commit: str
    files: dict[str, Listed]

    def within(self) -> dict[str, Listed]:
        """The files of the subfolder, by their paths in it."""
        place = f"{self.reference.subfolder}/" if self.reference.subfolder else ""
        return {path.removeprefix(place): file for path, file in self.files.items() if path.startswith(place)}


def look_up(reference: Reference) -> Repository:
    """Ask the hub for a repository. Raises PullError."""
    _prepare()
    with hub_errors(reference):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=_endpoint(), library_name="paceline")
        found = api.model_info(reference.repository, revision=reference.revision, files_metadata=True)
        commit, files = str(found.sha), found.siblings or []
        if not _COMMIT.match(commit):
            raise ValueError("a commit that is none")
        listed = {
            file.rfilename: Listed(file.size or 0, file.lfs.sha256 if file.lfs is not None else None)
            for file in files
        }
        if any(file.bytes < 0 or not _SHA256.match(file.sha256 or "0" * 64) for file in listed.values()):
            raise ValueError("a size or a digest that is none")
    for path in listed:
        if path.startswith("/") or "\\" in path or ".." in path.split("/"):
            raise PullError(
                f"{reference.repository} lists {path!r:.100}, a path that leaves it: do not use it"
            )
    return Repository(reference, commit, listed)


def fetch(
    repository: Repository,
    path: str,
    expected: int,
    into: Path,
    tell: Callable[[int], None] = lambda bytes: None,
) -> bool:
    """Fetch a file of `expected` bytes into `into`, behind what is there already; whether anything was.

    path: in the subfolder. tell: is told how many bytes there are, now and then. Raises PullError, OSError of the
    disk. What came before a failure stays.
    """
    _prepare()
    reference = repository.reference
    whole = f"{reference.subfolder}/{path}" if reference.subfolder else path
    into.parent.mkdir(parents=True, exist_ok=True)
    if into.is_symlink() or (into.exists() and into.stat().st_size > expected):
        into.unlink()
    try:
        with into.open("ab+") as file:
            afresh = False
            begun = most = file.seek(0, os.SEEK_END)
            tell(begun)
            while (there := file.seek(0, os.SEEK_END)) < expected:
                try:
                    with hub_errors(reference, path):
                        _get(
                            reference.repository, whole, repository.commit, _Sink(file, expected, tell), there
                        )
                except _BrokenOffError:  # not every version of huggingface_hub goes on by itself
                    if (there := file.seek(0, os.SEEK_END)) <= most:
                        raise
                    most = there
                except _TooLongError:  # where the whole came, and was put behind the part
                    if afresh or not there:
                        raise
                    file.truncate(0)
                    afresh = True
            file.flush()
            os.fsync(file.fileno())
    finally:
        if expected and not into.stat().st_size:
            into.unlink()
    return begun > 0


def _get(repository: str, path: str, commit: str, sink: _Sink, begun: int) -> None:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    if not begun and sink.most > (most := getattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", sink.most)):
        raise PullError(
            f"{repository}: {path} has more than {most / 1e9:.0f} GB, which no model for a device has"
        )
    url = hf_hub_url(repository, path, revision=commit, endpoint=_endpoint())
    headers = {**build_hf_headers(library_name="paceline"), "Accept-Encoding": "identity"}
    # A whole file, not a BinaryIO of io: it writes, and goes back where a server starts again from zero.
    http_get(url, sink, resume_size=begun, headers=headers, expected_size=sink.most)  # type: ignore[arg-type]


class _BrokenOffError(PullError):
    """The network failed; asking again may go on."""


class _TooLongError(PullError):
    """More came than was promised."""


class _Sink:
    """A file that takes so many bytes and no more, and tells how many it has."""

    def __init__(self, file: BinaryIO, most: int, tell: Callable[[int], None]) -> None:
        self._file, self.most, self._tell = file, most, tell

    def write(self, data: bytes) -> int:
        """Append. Raises _TooLongError."""
        if self._file.tell() + len(data) > self.most:
            raise _TooLongError
        written = self._file.write(data)
        self._tell(self._file.tell())
        return written

    def tell(self) -> int:
        """Bytes that are there."""
        return self._file.tell()

    def seek(self, place: int) -> int:
        """Go back, before `truncate`."""
        return self._file.seek(place)

    def truncate(self) -> int:
        """Forget what lies behind."""
        return self._file.truncate()


def _endpoint() -> str:
    from huggingface_hub import constants

    if not constants.ENDPOINT.startswith(("https://", "http://")):
        raise PullError(f"HF_ENDPOINT is {constants.ENDPOINT!r:.100}: it begins with https:// or http://")
    return constants.ENDPOINT


def _prepare() -> None:
    """huggingface_hub as a part of a command: no bars, no lines and no reports of its own."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.getLogger(_WAITS).setLevel(logging.WARNING)
    logging.getLogger(_WAITS).propagate = False
    from huggingface_hub import constants

    constants.DOWNLOAD_CHUNK_SIZE = 1 << 20  # what a break costs at most, and how often a bar moves


@contextmanager
def told_of_waits(say: Callable[[str], None]) -> Iterator[None]:
    """In the block, `say` is told when huggingface_hub waits for a hub that takes no more requests for now."""

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := re.search(r"(?:Waiting|Retrying in) ([0-9.]+) ?s", record.getMessage()):
                say(f"the hub asks to wait for {float(found[1]):.0f} s")

    handler, logger = Told(), logging.getLogger(_WAITS)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def hub_errors(reference: Reference, path: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises into a PullError of one line; errors of the disk stay what they are."""
    from huggingface_hub import constants, errors

    place = reference.repository
    what = f"{place}: {path}" if path else place
    network: type[Exception] = errors.HfHubHTTPError.__mro__[1]  # of the HTTP library that this version uses
    try:
        yield
    except _TooLongError:
        raise _TooLongError(f"{what} is longer than the hub says: do not use this repository") from None
    except errors.GatedRepoError:
        raise PullError(
            f"{place} is gated: accept its terms at {constants.ENDPOINT}/{place}, then set HF_TOKEN to a token of "
            "that account"
        ) from None
    except errors.DisabledRepoError:
        raise PullError(f"{place} was disabled by the hub: choose another repository") from None
    except errors.RevisionNotFoundError:
        raise PullError(
            f"{place} has no revision {reference.revision}: name a branch, a tag or a whole commit of it"
        ) from None
    except errors.RepositoryNotFoundError:
        raise PullError(
            f"{place}: the hub ({constants.ENDPOINT}) has no such model, or it is private: check the name; for a "
            "private one set HF_TOKEN"
        ) from None
    except errors.EntryNotFoundError:
        raise PullError(f"{what} is listed by the hub and cannot be fetched: try again later") from None
    except errors.OfflineModeIsEnabled:
        raise PullError(f"{place} cannot be fetched offline: unset HF_HUB_OFFLINE") from None
    except errors.HfHubHTTPError as error:
        raise PullError(_refusal(what, error)) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PullError(
            f"{place}: {constants.ENDPOINT} does not answer as a model hub does: check HF_ENDPOINT"
        ) from None
    except network as error:
        raise _BrokenOffError(_unreachable(what, error)) from None
    except OSError as error:
        if error.errno is not None and error.strerror and not isinstance(error, ConnectionError):
            raise
        raise _BrokenOffError(_unreachable(what, error)) from None


def _unreachable(what: str, error: Exception) -> str:
    from huggingface_hub import constants

    said = " ".join(str(error).split())[:120] or type(error).__name__
    return (
        f"{what}: the connection to {constants.ENDPOINT} failed ({said}): check the network, or HF_ENDPOINT; pulling "
        "again goes on where it stopped"
    )


def _refusal(what: str, error: Exception) -> str:
    """Why the hub did not answer, by its status."""
    from huggingface_hub import constants

    response = getattr(error, "response", None)
    status = int(getattr(response, "status_code", 0))
    if status == 429:
        wait = getattr(response, "headers", {}).get("Retry-After", "")
        pause = f"wait {wait} s" if wait.isdecimal() else "wait some minutes"
        return f"{what}: the hub takes no more requests for now: {pause} and pull again; HF_TOKEN has a higher limit"
    if status == 401:
        return f"{what}: the hub does not accept the token: renew HF_TOKEN, or unset it"
    if status == 403:
        return (
            f"{what}: the hub refuses it to this account: ask its owner for access, or set another HF_TOKEN"
        )
    if status >= 500:
        return f"{what}: {constants.ENDPOINT} has trouble (status {status}): pull again later"
    return f"{what}: {constants.ENDPOINT} refused it (status {status}): check the name and HF_ENDPOINT"
