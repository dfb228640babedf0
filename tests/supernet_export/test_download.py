"""Downloads from a real HTTP server that breaks off, resumes or lies."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rigs.supernets import random_state_dict

from fleetnas.fleet_protocol.errors import DownloadError, UsageError
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.checkpoints.download import (
    PublishedFile,
    cache_directory,
    download,
    mirrors_from_environment,
)
from fleetnas.supernet_export.checkpoints.published import PUBLISHED, PublishedSupernet, published
from fleetnas.supernet_export.export import export_published, file_sha256
from fleetnas.supernet_export.spaces.ofa_proxyless import OfaProxylessSpace

CONTENT = np.random.default_rng(0).bytes(1_500_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` under any name; keeps the first byte asked for by each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.breaks_after: list[int] = []  #: bytes after which the next answers break off
        self.ranges = True
        self.says_length = True
        self.endless = False
        self.status = 200
        self.asked: list[int] = []

    def handle_error(self, *args: object) -> None:
        """A client that hangs up is part of these tests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        server.asked.append(first)
        if server.status != 200:
            self.send_error(server.status)
            return
        if not server.ranges:
            first = 0
        if first >= len(server.content) > 0:
            self.send_error(416)
            return
        body = server.content[first:]
        self.send_response(206 if first else 200)
        if first:
            whole = len(server.content)
            self.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
        if server.says_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        while server.endless:  # until the client hangs up, which is an error of the socket
            self.wfile.write(bytes(1 << 20))
        self.wfile.write(body[: server.breaks_after.pop(0)] if server.breaks_after else body)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def file(server: Server, kind: str = "sha256") -> PublishedFile:
    if kind == "git-blob":
        digest = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
        return PublishedFile("weights", f"{server.url}/weights", len(CONTENT), "git-blob", digest)
    return PublishedFile("weights", f"{server.url}/weights", None, "sha256", hashlib.sha256(CONTENT).hexdigest())


@pytest.mark.parametrize("kind", ["sha256", "git-blob"])
def test_a_file_is_fetched_once(server: Server, tmp_path: Path, kind: str) -> None:
    steps: list[tuple[int, int]] = []
    path = download(file(server, kind), cache=tmp_path, mirrors=[], progress=lambda *step: steps.append(step))
    assert path.read_bytes() == CONTENT
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert steps == sorted(steps)
    assert download(file(server, kind), cache=tmp_path, mirrors=[]) == path
    assert server.asked == [0]


def test_a_git_blob_id_is_gits(tmp_path: Path) -> None:
    """`printf 'hello\\n' | git hash-object --stdin`, as everyone's git prints it."""
    (tmp_path / "hello").write_bytes(b"hello\n")
    assert PublishedFile("hello", "", 6, "git-blob", "ce013625030ba8dba906f756967f9e9ca394464a").is_in(
        tmp_path / "hello"
    )


def test_broken_answers_are_resumed_where_they_broke(server: Server, tmp_path: Path) -> None:
    server.breaks_after = [400_000, 300_000]
    assert download(file(server), cache=tmp_path, mirrors=[]).read_bytes() == CONTENT
    assert server.asked == [0, 400_000, 700_000]


def test_a_later_run_resumes(server: Server, tmp_path: Path) -> None:
    server.breaks_after = [100_000] * 4
    with pytest.raises(DownloadError, match="broke off after 400,000 of 1,500,000 bytes"):
        download(file(server), cache=tmp_path, mirrors=[])
    server.asked.clear()
    assert download(file(server), cache=tmp_path, mirrors=[]).read_bytes() == CONTENT
    assert server.asked == [400_000]


def test_a_server_without_ranges_is_asked_for_all(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "weights.part").write_bytes(CONTENT[:1000])
    assert download(file(server), cache=tmp_path, mirrors=[]).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"x" * 1000, CONTENT + b"more", b"y" * len(CONTENT)])
def test_a_bad_remainder_of_an_earlier_run_is_dropped(server: Server, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "weights.part").write_bytes(left)
    assert download(file(server), cache=tmp_path, mirrors=[]).read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["sha256", "git-blob"])
def test_an_answer_that_does_not_say_its_length_is_taken(server: Server, tmp_path: Path, kind: str) -> None:
    server.says_length = False
    assert download(file(server, kind), cache=tmp_path, mirrors=[]).read_bytes() == CONTENT


@pytest.mark.parametrize(("kind", "most"), [("sha256", "2,000,000"), ("git-blob", "1,500,000")])
def test_an_answer_without_end_fills_no_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, most: str
) -> None:
    """Of a file of unknown size a fixed number of bytes is taken, of another one its size."""
    monkeypatch.setattr("fleetnas.supernet_export.checkpoints.published_file.MAX_BYTES", 2_000_000)
    server.says_length, server.endless = False, True
    with pytest.raises(DownloadError, match=f"does not end after {most} bytes"):
        download(file(server, kind), cache=tmp_path, mirrors=[])
    assert server.asked == [0]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


def test_an_answer_that_says_too_great_a_length_is_not_begun(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetnas.supernet_export.checkpoints.published_file.MAX_BYTES", 1_000_000)
    with pytest.raises(DownloadError, match="1,500,000 bytes in all, at most 1,000,000 are taken"):
        download(file(server), cache=tmp_path, mirrors=[])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mirror", ["http://[", "http://\u2028/", "http://a\x00b/", f"http://{'a' * 300}.invalid/"])
def test_a_mirror_that_is_no_address_is_passed_over(server: Server, tmp_path: Path, mirror: str) -> None:
    assert download(file(server), cache=tmp_path, mirrors=[mirror]).read_bytes() == CONTENT


def test_an_altered_file_is_never_kept(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(DownloadError, match="does not have the sha256"):
        download(file(server), cache=tmp_path, mirrors=[])
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(CONTENT[:-1])
    assert download(file(server), cache=tmp_path, mirrors=[]).read_bytes() == CONTENT


def test_mirrors_are_asked_first_and_the_official_address_last(server: Server, tmp_path: Path) -> None:
    with Server() as closed:
        pass
    mirrors = [closed.url, "ftp://127.0.0.1"]
    assert download(file(server), cache=tmp_path / "a", mirrors=mirrors).read_bytes() == CONTENT
    elsewhere = PublishedFile("weights", f"{closed.url}/weights", None, "sha256", file(server).digest)
    assert download(elsewhere, cache=tmp_path / "b", mirrors=[f"{server.url}/mirror/"]).read_bytes() == CONTENT


def test_every_address_is_named_when_none_serves(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(DownloadError) as caught:
        download(file(server), cache=tmp_path, mirrors=[f"{server.url}/mirror"])
    message = str(caught.value)
    assert message.count("HTTP 404") == 2
    assert "FLEETNAS_MIRRORS" in message
    assert "\n" not in message


def test_the_wrong_size_is_refused_before_it_is_fetched(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT * 2
    with pytest.raises(DownloadError, match="were expected"):
        download(file(server, "git-blob"), cache=tmp_path, mirrors=[])


def test_a_cache_that_cannot_be_written_is_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="choose another cache directory"):
        download(file(server), cache=tmp_path / "file", mirrors=[])


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("FLEETNAS_MIRRORS", "http://a/b, http://c")
    assert cache_directory() == tmp_path / "fleetnas" / "checkpoints"
    assert mirrors_from_environment() == ["http://a/b", "http://c"]


def test_the_catalogue_names_each_file_once() -> None:
    files = [supernet.checkpoint for supernet in PUBLISHED.values()]
    assert len({item.name for item in files}) == len({item.digest for item in files}) == len(files)
    for item in files:
        assert len(item.digest) == {"sha256": 64, "git-blob": 40}[item.digest_kind]
    with pytest.raises(UsageError, match=r"ofa-mbv3-w1\.0"):
        published("ofa-mbv3")


def test_a_published_supernet_becomes_a_bundle(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, with random weights published under a name of their own."""
    torch = pytest.importorskip("torch")
    space = OfaProxylessSpace()
    state = {name: torch.from_numpy(array) for name, array in random_state_dict(space).items()}
    torch.save({"state_dict": state}, tmp_path / "checkpoint")
    server.content = (tmp_path / "checkpoint").read_bytes()
    server.breaks_after = [1_000_000]
    weights = PublishedFile("random", f"{server.url}/random", None, "sha256", file_sha256(tmp_path / "checkpoint"))
    monkeypatch.setattr(
        "fleetnas.supernet_export.checkpoints.published.PUBLISHED",
        {"random": PublishedSupernet(weights, space.name, {"width": 1.3})},
    )
    sha256 = export_published("random", tmp_path / "random.supernet", cache=tmp_path / "cache", mirrors=[])
    bundle = SupernetBundle.open(tmp_path / "random.supernet", expected_sha256=sha256)
    assert bundle.space.options == space.options
    assert bundle.manifest.provenance.source == weights.url
    assert bundle.manifest.provenance.sha256 == weights.digest
    assert bundle.accuracy_predictor() is None
    assert server.asked == [0, 1_000_000]
