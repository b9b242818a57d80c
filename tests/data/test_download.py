"""Downloads from a server on this machine that behaves well, badly, or not at all."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop.data import RemoteFile, RemoteSet, download, fetch, load
from gpubackprop.data.download import REMOTE_SETS
from gpubackprop.errors import ConfigError

pytest.importorskip("pooch", reason="the extra 'download' (pooch) is not installed")

CONTENT = np.random.default_rng(0).bytes(300_000)
PACKED = gzip.compress(CONTENT, mtime=0)


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT, whole or not, by the first folder of the path."""

    requests: list[str] = []
    files: dict[str, bytes] = {}

    def do_GET(self) -> None:  # noqa: N802 (the name is the library's)
        self.requests.append(self.path)
        _, kind, name = self.path.split("/", 2)
        body = self.files.get(name, PACKED)
        if kind == "absent":
            self.send_error(404)
            return
        self.send_response(200)
        if kind not in ("cut-unsized", "endless"):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind in ("cut", "cut-unsized"):
            self.wfile.write(body[: len(body) // 2])
        elif kind == "wrong":
            self.wfile.write(body[:-1] + bytes([body[-1] ^ 1]))
        elif kind == "endless":
            self.stream(bytes(1 << 16), 1000, 0.0)
        elif kind == "slow":
            self.stream(body[: 1 << 12], 1000, 0.05)
        else:
            self.wfile.write(body)

    def stream(self, piece: bytes, times: int, pause: float) -> None:
        try:
            for _ in range(times):
                self.wfile.write(piece)
                time.sleep(pause)
        except OSError:
            pass  # The client hung up, as it should.

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    Handler.requests.clear()
    # A proxy of the machine has no business with a server on the loopback.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def remote(
    *mirrors: str, unpacked: bool = False, sha256: str = "", max_bytes: int = 1 << 20
) -> RemoteSet:
    known = hashlib.sha256(CONTENT if unpacked else PACKED).hexdigest()
    file = RemoteFile("file.gz", sha256 or known, unpacked, max_bytes)
    return RemoteSet("toy", mirrors, (file,))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("unpacked", [False, True])
def test_downloads_once_and_keeps(unpacked: bool, server: str, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "cache"
    assert fetch(remote(f"{server}/ok", unpacked=unpacked), folder) == folder
    assert (folder / "file.gz").read_bytes() == PACKED
    assert names(folder) == ["file.gz"]
    fetch(remote(f"{server}/ok", unpacked=unpacked), folder)
    assert Handler.requests == ["/ok/file.gz"]


def test_a_damaged_file_in_the_cache_is_fetched_again(server: str, tmp_path: Path) -> None:
    (tmp_path / "file.gz").write_bytes(PACKED[:1000])
    fetch(remote(f"{server}/ok"), tmp_path)
    assert (tmp_path / "file.gz").read_bytes() == PACKED


def test_content_counts_and_not_its_packing(server: str, tmp_path: Path) -> None:
    (tmp_path / "file.gz").write_bytes(gzip.compress(CONTENT, 1))
    fetch(remote(f"{server}/ok", unpacked=True), tmp_path)
    assert Handler.requests == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("absent", "the server answered 404 Not Found"),
        ("cut", "the connection broke off after"),
        ("cut-unsized", "its SHA-256 is not"),
        ("wrong", "its SHA-256 is not"),
        ("endless", "sends more data than the file has"),
    ],
)
def test_bad_servers(kind: str, words: str, server: str, tmp_path: Path, data_error: Any) -> None:
    with data_error("cannot download file.gz of toy", f"{server}/{kind}", words, "--data-dir"):
        fetch(remote(f"{server}/{kind}"), tmp_path)
    # Nothing is left that could be taken for the file, nor anything else.
    assert names(tmp_path) == []


def test_a_wrong_checksum_keeps_nothing(server: str, tmp_path: Path, data_error: Any) -> None:
    with data_error("its SHA-256 is not 0000"):
        fetch(remote(f"{server}/ok", sha256="0" * 64), tmp_path)
    assert names(tmp_path) == []


def test_the_next_mirror_helps(server: str, tmp_path: Path, data_error: Any) -> None:
    fetch(remote(f"{server}/absent", f"{server}/cut", f"{server}/ok/"), tmp_path)
    assert Handler.requests == ["/absent/file.gz", "/cut/file.gz", "/ok/file.gz"]
    assert (tmp_path / "file.gz").read_bytes() == PACKED
    (tmp_path / "file.gz").unlink()
    with data_error("answered 404", "broke off"):
        fetch(remote(f"{server}/absent", f"{server}/cut"), tmp_path)


def test_no_network(tmp_path: Path, data_error: Any) -> None:
    # Nobody listens on the discard port.
    with data_error("no connection to the server (is there a network?)"):
        fetch(remote("http://127.0.0.1:9"), tmp_path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(1 << 24))
    (tmp_path / "bomb").write_bytes(bomb)
    known = hashlib.sha256(bytes(1 << 24)).hexdigest()
    checksum = download.checksum
    assert checksum(tmp_path / "bomb", unpacked=True, max_bytes=1 << 24) == known
    assert checksum(tmp_path / "bomb", unpacked=True, max_bytes=1 << 20) == ""
    (tmp_path / "bomb").write_bytes(bomb[:-5])
    assert checksum(tmp_path / "bomb", unpacked=True, max_bytes=1 << 24) == ""


def test_full_disk(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_error: Any
) -> None:
    def full(sink: Any, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download._Sink, "write", full)
    with data_error("cannot keep toy in", str(tmp_path), "no space left on the device"):
        fetch(remote(f"{server}/ok"), tmp_path)
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the platform has no /dev/full")
def test_full_disk_for_real(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_error: Any
) -> None:
    # A device that is always full stands in for the partial file.
    monkeypatch.setattr(
        download.tempfile,
        "mkstemp",
        lambda **_: (os.open("/dev/full", os.O_WRONLY), str(tmp_path / "partial")),
    )
    with data_error("no space left on the device"):
        fetch(remote(f"{server}/ok"), tmp_path)


def test_folder_that_cannot_be_made(server: str, tmp_path: Path, data_error: Any) -> None:
    (tmp_path / "file").touch()
    with data_error("cannot keep toy in"):
        fetch(remote(f"{server}/ok"), tmp_path / "file")
    with data_error("a part of the path is not a folder"):
        fetch(remote(f"{server}/ok"), tmp_path / "file" / "below")


def test_killed_on_the_way(server: str, tmp_path: Path) -> None:
    program = f"""
        from gpubackprop.data import RemoteFile, RemoteSet, fetch
        file = RemoteFile("file.gz", "0" * 64, False, 1 << 20)
        fetch(RemoteSet("toy", ("{server}/slow",), (file,)), {str(tmp_path)!r})
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    try:
        deadline = time.monotonic() + 30
        while not any(path.stat().st_size for path in tmp_path.glob(".*.part")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith(".file.gz.") and partial.name.endswith(".part")
    # The next call gets the file. It leaves the fresh remains alone, which may be in use by
    # another process, and removes them when they are old.
    fetch(remote(f"{server}/ok"), tmp_path)
    assert names(tmp_path) == [partial.name, "file.gz"]
    os.utime(partial, (0, 0))
    fetch(remote(f"{server}/ok"), tmp_path)
    assert names(tmp_path) == ["file.gz"]


def test_two_processes_at_once(server: str, tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=fetch, args=(remote(f"{server}/ok"), tmp_path)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["file.gz"]
    assert (tmp_path / "file.gz").read_bytes() == PACKED


def test_pooch_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_error: Any) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with data_error("pip install 'gpubackprop[download]'", "--data-dir"):
        fetch("mnist", tmp_path)
    with data_error("downloading mnist needs the package pooch"):
        load("mnist")


def test_unknown_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mnist'"):
        fetch("minst", tmp_path)


@pytest.mark.data
def test_checksums_of_mnist_are_those_of_real_files(mnist_folder: Path) -> None:
    for file in REMOTE_SETS["mnist"].files:
        path = mnist_folder / file.name
        assert download.checksum(path, unpacked=True, max_bytes=file.max_bytes) == file.sha256


def test_load_downloads_into_the_cache(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = {}
    for stem in ("train", "t10k"):
        images = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (5, 28, 28))
        bodies[f"{stem}-images-idx3-ubyte.gz"] = gzip.compress(images + b"\xff" * 5 * 784)
        labels = b"\0\0\x08\x01" + (5).to_bytes(4, "big") + bytes([0, 1, 2, 3, 9])
        bodies[f"{stem}-labels-idx1-ubyte.gz"] = gzip.compress(labels)
    files = tuple(
        RemoteFile(name, hashlib.sha256(body).hexdigest(), False, 1 << 20)
        for name, body in bodies.items()
    )
    monkeypatch.setattr(Handler, "files", bodies)
    monkeypatch.setitem(REMOTE_SETS, "mnist", RemoteSet("mnist", (f"{server}/ok",), files))
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / project)
    data = load("mnist")
    assert len(data.train) == 5 and data.train.array("target").tolist() == [0, 1, 2, 3, 9]
    assert data.source == f"MNIST from {tmp_path / 'gpubackprop' / 'mnist'}"
    assert len(Handler.requests) == 4
    load("mnist")
    assert len(Handler.requests) == 4
