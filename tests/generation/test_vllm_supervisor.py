"""The supervisor of a server, with a family of processes that is quick to start."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from trl_r1zero.generation import vllm_compat
from trl_r1zero.generation.vllm_server import VLLMServer

FAMILY = """
    import os, subprocess, sys, time
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    subprocess.Popen(sleep, start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:  # a daemon: its parent ends at once
            time.sleep(600)
        os._exit(0)
    print("ready", file=sys.stderr, flush=True)
    time.sleep(600)
"""


class Supervised:
    def __init__(self, tmp_path, code: str) -> None:
        self.log = tmp_path / "log"
        script = str(Path(vllm_compat.__file__).with_name("vllm_supervisor.py"))
        command = [sys.executable, "-I", script, str(os.getpid()), "5"]
        command += [vllm_compat.PROCESS_PREFIX, vllm_compat.SOCKETS_VARIABLE]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, sys.executable, "-c", textwrap.dedent(code)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.pid = int(self.process.stdout.readline())

    def family(self) -> list[psutil.Process]:
        deadline = time.monotonic() + 20
        while "ready" not in self.log.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)  # the daemon's parent ends
        return [
            one
            for one in psutil.Process(self.process.pid).children(recursive=True)
            if one.status() != psutil.STATUS_ZOMBIE
        ]

    def close(self) -> int:
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(20)


@pytest.mark.skipif(
    sys.platform != "linux", reason="orphans come back to a subreaper on Linux only"
)
@pytest.mark.parametrize("how", ["stop", "server killed"])
def test_supervisor_ends_those_who_left_the_session_too(how, tmp_path):
    supervised = Supervised(tmp_path, FAMILY)
    family = supervised.family()
    assert len(family) == 3  # the command, its child, its daemon
    if how == "server killed":
        os.kill(supervised.pid, signal.SIGKILL)
        supervised.process.wait(20)
        assert "vllm_supervisor.py: the server was ended by SIGKILL" in supervised.log.read_text()
    assert supervised.close() == 128 + (signal.SIGTERM if how == "stop" else signal.SIGKILL)
    assert not [one for one in family if psutil.pid_exists(one.pid)]


@pytest.mark.skipif(sys.platform != "linux", reason="process titles are read from /proc")
def test_supervisor_ends_a_server_that_lost_its_engine(tmp_path):
    """As vLLM's may: it has requests left, and waits for them for ever."""
    code = """
        import subprocess, sys, time
        sleep = ["VLLM::EngineCore", "-c", "import time; time.sleep(600)"]
        engine = subprocess.Popen(sleep, executable=sys.executable)
        time.sleep(1)
        print("ready", file=sys.stderr, flush=True)
        time.sleep(600)
    """
    supervised = Supervised(tmp_path, code)
    (engine,) = [one for one in supervised.family() if one.pid != supervised.pid]
    engine.kill()
    assert supervised.process.wait(20) == 128 + signal.SIGTERM
    assert "the server lost its VLLM::EngineCore" in supervised.log.read_text()
    supervised.close()


@pytest.mark.skipif(sys.platform != "linux", reason="process titles are read from /proc")
def test_supervisor_takes_no_forked_child_for_an_engine(tmp_path):
    """A worker forks to run a program; until it does the child has the worker's title."""
    code = f"""
        import subprocess, sys, time
        fork = '''if True:
            import os, sys, time
            if os.fork():
                time.sleep(600)
            print("ready", file=sys.stderr, flush=True)
            while not os.path.exists({str(tmp_path / "end")!r}):
                time.sleep(0.05)
        '''
        subprocess.Popen(["VLLM::Worker", "-c", fork], executable=sys.executable)
        time.sleep(600)
    """
    supervised = Supervised(tmp_path, code)
    assert len(supervised.family()) == 3
    time.sleep(1)  # the supervisor has looked
    (tmp_path / "end").touch()
    with pytest.raises(subprocess.TimeoutExpired):
        supervised.process.wait(8)  # longer than a server without its engine is given
    assert len(supervised.family()) == 2  # the child has ended, the others go on
    supervised.close()


@pytest.mark.parametrize("too_long", [False, True])
def test_supervisor_clears_the_sockets_away(too_long, tmp_path, tmp_path_factory, monkeypatch):
    base = tmp_path / ("long" * 20) if too_long else tmp_path_factory.mktemp("b")
    base.mkdir(exist_ok=True)
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", str(base))
    code = """
        import os, socket, sys, time, uuid
        folder = os.environ["VLLM_RPC_BASE_PATH"]
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(f"{folder}/{uuid.uuid4()}")
        print(folder, "ready", file=sys.stderr, flush=True)
        time.sleep(600)
    """
    supervised = Supervised(tmp_path, code)
    supervised.family()
    folder = Path(supervised.log.read_text().split()[0])
    assert folder.parent == (Path("/tmp") if too_long else base)
    assert len(list(folder.iterdir())) == 1
    assert folder.stat().st_mode & 0o077 == 0
    supervised.close()
    assert not folder.exists()


def test_supervisor_hands_on_the_exit_status(tmp_path):
    supervised = Supervised(tmp_path, "raise SystemExit(7)")
    assert supervised.process.wait(20) == 7
    assert supervised.close() == 7


def test_a_forked_child_does_not_stop_its_parents_server(tmp_path, monkeypatch):
    server = VLLMServer("m")
    supervised = Supervised(tmp_path, FAMILY)
    server._supervisor = supervised.process
    monkeypatch.setattr(server, "_owner", os.getpid() + 1)  # as in a child
    server.stop()
    assert supervised.process.poll() is None
    supervised.close()
