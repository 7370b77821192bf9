"""What the fault campaign puts around a run: a small disk, a server, a network, a clock."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import REPOSITORY

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
PLENTY = 2**30


class SmallDisk:
    """A file system of its own in a folder, by root alone.

    Args:
        folder: Made, and hidden by the disk until the `with` ends.
        size: In bytes.
    """

    def __init__(self, folder: Path, size: int = PLENTY) -> None:
        self.folder, self._size = folder, size

    def __enter__(self) -> "SmallDisk":
        self.folder.mkdir(parents=True)
        options = ["-o", f"size={self._size}", "tmpfs", str(self.folder)]
        done = subprocess.run(["mount", "-t", "tmpfs", *options], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("a disk that can be full needs the right to mount one")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)

    def fill(self) -> None:
        """Leave no room for another byte."""
        with contextlib.suppress(OSError), (self.folder / "filling").open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()

    def make_room(self) -> None:
        (self.folder / "filling").unlink(missing_ok=True)
        options = f"remount,size={PLENTY}"
        subprocess.run(["mount", "-o", options, str(self.folder)], check=True)


class StubProcess:
    """The tests' stand-in for a vLLM server as a process, at one port over all of its starts."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        code = "import sys, time, stub_vllm; stub_vllm.StubServer(port=int(sys.argv[1])); "
        self._process = subprocess.Popen(
            [sys.executable, "-c", code + "time.sleep(3600)", str(self.port)],
            cwd=REPOSITORY / "tests",
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert self._process.poll() is None
            time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


class Network:
    """A way to a port of this machine that can be slow, silent or cut.

    Attributes:
        state: `open`; `slow`, a tenth of a second for each piece; `silent`, where nothing arrives;
            or `cut`, where connections are closed.
    """

    def __init__(self, port: int) -> None:
        self.state = "open"
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.state = "cut"
        for one in self._open:
            self._end(one)

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            try:
                if self.state == "cut":
                    raise ConnectionError
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                self._end(near)
                continue
            self._open += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.state == "slow":
                    time.sleep(0.1)
                while self.state == "silent":
                    time.sleep(0.05)
                sink.sendall(data)
        for one in (source, sink):
            self._end(one)

    @staticmethod
    def _end(one: socket.socket) -> None:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


class Clock:
    """The wall clock that a run sees; durations are the machine's."""

    def __init__(self, file: Path) -> None:
        if not FAKETIME.is_file():
            pytest.skip("a clock that jumps needs libfaketime: apt-get install faketime")
        self._file = file
        self.jump(0)
        self.environment = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, seconds: int) -> None:
        """From now on the clock is so far from the machine's."""
        part = self._file.with_suffix(".part")
        part.write_text(f"{seconds:+d}\n")
        os.replace(part, self._file)
