"""The fault campaign: what strikes a run and where, and what must hold afterwards.

Each strike starts a run by the command that people use, strikes it at a random point of its way,
lets it go on by the same command until it ends, and compares what it leaves with what a run leaves
that nothing struck. What must hold besides, and is checked: a run ends by itself where it is asked
to, in words that a user can read; it does not end where nothing was lost.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from faults.kinds import KINDS, Inputs, Run
from faults.places import Clock, Network, SmallDisk, StubProcess

END_SECONDS = 900.0
ASKS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SIGNALS = (signal.SIGKILL, *ASKS)
# Which process: the one that works, by itself; the same below accelerate's launcher; the launcher,
# or a sweep, whose end is the end of what it has started.
ALONE, LAUNCHED, STARTER = "alone", "launched", "starter"
NO_SPACE, NAMES_SERVER = "No space left on device", r"vLLM server at http://127.0.0.1:\d+"
# What recipes have besides.
TIMEOUT_SECONDS = 6
THROUGH_SERVER = {
    "reward": "launch_rewards.odd_length",
    "use_vllm": True,
    "vllm_check_syncs": 0,
    "vllm_request_timeout": TIMEOUT_SECONDS,
}
IN_WORKERS = {"reward_workers": 1, "reward_deadline_seconds": 3.0}
NOTHING_FOR_E = {"reward": "launch_rewards.nothing_for_e", **IN_WORKERS}


@dataclass(frozen=True)
class Blow:
    """One of the faults that befall a run: at a share of its way; for a signal, which and where."""

    share: float
    number: int = 0
    at: str = ALONE

    def __str__(self) -> str:
        words = [signal.Signals(self.number).name, self.at] if self.number else []
        return "_".join([*words, f"{self.share:.2f}"])


@dataclass(frozen=True)
class Strike:
    """Faults that befall a run, one after the other."""

    fault: str
    kind: str
    blows: tuple[Blow, ...]
    seed: int

    def __str__(self) -> str:
        return "-".join([self.kind, self.fault.replace(" ", "_"), *map(str, self.blows)])


@dataclass
class Struck:
    """A run while it is struck: what a fault needs to know.

    Attributes:
        whole_progress, whole_bytes: Of a run that nothing strikes.
    """

    run: Run
    strike: Strike
    whole_progress: int = 0
    whole_bytes: int = 0

    def begin(self, blow: Blow | None = None) -> None:
        """Start the run, and wait until it is where it is to be struck."""
        self.run.start()
        wanted = (blow or self.strike.blows[0]).share * self.whole_progress
        _wait_for(lambda: self.run.progress() >= wanted or not self.run.runs())
        time.sleep(random.Random(self.strike.seed).uniform(0, 0.3))

    def end(self) -> int:
        """Wait for its end; the exit status."""
        _wait_for(lambda: not self.run.runs())
        assert self.run.process is not None
        return self.run.process.returncode

    def ends_well(self) -> None:
        assert self.end() == 0, self.said()[-3000:]

    def ends_well_or_in_words(self, words: str) -> None:
        """Either nothing was lost, or it says what, in a line and not in a traceback."""
        if self.end() == 0:
            return
        said = self.said()
        assert re.search(words, said), said[-3000:]
        assert "Traceback" not in said, said[-6000:]

    def said(self) -> str:
        return self.run.log.read_text(errors="replace")


# What strikes


@contextlib.contextmanager
def _signal(struck: Struck) -> Iterator[None]:
    run = struck.run
    for blow in struck.strike.blows:
        run.launched = run.kind.launches and blow.at != ALONE
        run.log.unlink(missing_ok=True)
        struck.begin(blow)
        worker = run.worker()
        assert run.process is not None
        target = psutil.Process(run.process.pid) if blow.at == STARTER else worker
        with contextlib.suppress(psutil.NoSuchProcess):
            if target is not None and run.runs():
                target.send_signal(blow.number)
        _wait_for(lambda: not run.runs())
        if worker is not None:  # nothing is left, though only one of its processes was struck
            psutil.wait_procs([worker], END_SECONDS)
            assert not worker.is_running()
        said = struck.said()
        if blow.number in ASKS and blow.at == ALONE and run.process.returncode:
            assert run.process.returncode in (128 + blow.number, -blow.number), said[-3000:]
            if run.process.returncode > 0:
                assert said.count("Stopped by") == 1
                assert "go on with: " in said
                assert "Traceback" not in said, said[-6000:]
    run.launched = False
    yield


@contextlib.contextmanager
def _disk_full(struck: Struck) -> Iterator[None]:
    with SmallDisk(struck.run.folder) as disk:
        struck.begin()
        disk.fill()
        struck.ends_well_or_in_words(NO_SPACE)
        disk.make_room()
        yield


@contextlib.contextmanager
def _disk_too_small(struck: Struck) -> Iterator[None]:
    # A page at least: a size of 0 would be no limit.
    size = max(4096, int(struck.strike.blows[0].share * struck.whole_bytes))
    with SmallDisk(struck.run.folder, size) as disk:
        struck.run.start()
        struck.ends_well_or_in_words(NO_SPACE)
        disk.make_room()
        yield


ServerFault = Callable[[Struck, StubProcess, Network], None]


def _through_server(befall: ServerFault) -> "Strikes":
    @contextlib.contextmanager
    def strike(struck: Struck) -> Iterator[None]:
        with served(struck.run) as (server, network):
            struck.begin()
            befall(struck, server, network)
            network.state = "open"
            server.kill()
            server.start()
            yield

    return strike


def _server_killed(struck: Struck, server: StubProcess, network: Network) -> None:
    server.kill()
    struck.ends_well_or_in_words(NAMES_SERVER)


def _server_paused(struck: Struck, server: StubProcess, network: Network) -> None:
    with server.paused():
        time.sleep(TIMEOUT_SECONDS / 3)
    struck.ends_well()


def _server_hangs(struck: Struck, server: StubProcess, network: Network) -> None:
    with server.paused():
        struck.ends_well_or_in_words(NAMES_SERVER)


def _server_slow(struck: Struck, server: StubProcess, network: Network) -> None:
    network.state = "slow"
    struck.ends_well()


def _network_cut(struck: Struck, server: StubProcess, network: Network) -> None:
    network.cut()
    struck.ends_well_or_in_words(NAMES_SERVER)


def _network_silent(struck: Struck, server: StubProcess, network: Network) -> None:
    network.state = "silent"
    struck.ends_well_or_in_words(NAMES_SERVER)


@contextlib.contextmanager
def _clock_jumps(struck: Struck) -> Iterator[None]:
    clock = Clock(struck.run.folder.with_name("clock"))
    struck.run.environment = clock.environment
    struck.begin()
    clock.jump(random.Random(struck.strike.seed).choice([-3600, 3600]))
    struck.ends_well()
    yield


def _reward(name: str) -> "Strikes":
    @contextlib.contextmanager
    def strike(struck: Struck) -> Iterator[None]:
        struck.run.changes["reward"] = f"launch_rewards.{name}"
        struck.run.start()
        struck.ends_well()
        yield

    return strike


@contextlib.contextmanager
def served(run: Run) -> Iterator[tuple[StubProcess, Network]]:
    """A server for a run, and the network between the two."""
    server = StubProcess()
    server.start()
    try:
        network = Network(server.port)
        run.changes["vllm_server_base_url"] = network.url
        yield server, network
    finally:
        server.kill()


# Strikes a run, and yields once that has ended; what it needs to go on is there until the `with`
# ends.
Strikes = Callable[[Struck], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """A line of the campaign's table.

    Attributes:
        where: What is struck.
        holds: What must hold, besides the outcome of a run that nothing struck.
        strike: Strikes a run.
        changes: Of the recipe, also of the run that nothing strikes.
        kinds: Of runs, each with how often it is struck in the whole campaign.
    """

    where: str
    holds: str
    strike: Strikes
    kinds: dict[str, int]
    changes: dict[str, Any] | None = None


FAULTS = {
    "signal": Fault(
        "the process that works, or the one that people started",
        "no process is left; one that was asked says in a line how to go on",
        _signal,
        {"grpo": 8, "sft": 7, "ei": 7, "dpo": 7, "eval": 7, "sweep": 4, "leaderboard": 2},
    ),
    "disk full": Fault(
        "the first write after a moment",
        "one line names the cause",
        _disk_full,
        {"grpo": 2, "sft": 1, "ei": 1, "dpo": 1, "eval": 1},
    ),
    "disk too small": Fault(
        "the write that does not fit",
        "one line names the cause",
        _disk_too_small,
        {"grpo": 3, "sft": 1, "ei": 1, "dpo": 1, "eval": 1},
    ),
    "server killed": Fault(
        "a server that runs by itself",
        "one line names the server",
        _through_server(_server_killed),
        {"grpo": 1},
        THROUGH_SERVER,
    ),
    "server paused": Fault(
        "SIGSTOP for less than the limit of a request, then SIGCONT",
        "the run does not end",
        _through_server(_server_paused),
        {"grpo": 1},
        THROUGH_SERVER,
    ),
    "server hangs": Fault(
        "SIGSTOP",
        "one line names the server",
        _through_server(_server_hangs),
        {"grpo": 1},
        THROUGH_SERVER,
    ),
    "server slow": Fault(
        "each piece of an answer",
        "the run does not end",
        _through_server(_server_slow),
        {"grpo": 1},
        THROUGH_SERVER,
    ),
    "network cut": Fault(
        "connections to the server are closed, and refused",
        "one line names the server",
        _through_server(_network_cut),
        {"grpo": 2},
        THROUGH_SERVER,
    ),
    "network silent": Fault(
        "nothing arrives at the server or from it",
        "one line names the server",
        _through_server(_network_silent),
        {"grpo": 1},
        THROUGH_SERVER,
    ),
    "clock jumps": Fault(
        "an hour ahead or back",
        "the run does not end",
        _clock_jumps,
        {"grpo": 1, "sft": 1, "eval": 1},
    ),
    "reward hangs": Fault(
        "on some responses",
        "these get 0",
        _reward("hangs_on_e"),
        {"grpo": 1, "ei": 1},
        NOTHING_FOR_E,
    ),
    "reward eats memory": Fault(
        "on some responses",
        "these get 0",
        _reward("eats_memory_on_e"),
        {"grpo": 1},
        NOTHING_FOR_E,
    ),
    "reward leaks": Fault(
        "some memory on each response",
        "none gets less for it",
        _reward("leaks"),
        {"grpo": 1, "ei": 1},
        NOTHING_FOR_E,
    ),
}
# What the tests strike each time.
SAMPLE = ("signal", "disk full", "network cut")


def strikes(seed: int = 0) -> Iterator[Strike]:
    """All strikes of the campaign, at random points; a run gets up to four signals."""
    chance = random.Random(seed)
    for name, fault in FAULTS.items():
        for kind, count in fault.kinds.items():
            blows = [Blow(chance.random()) for _ in range(count)]
            if name != "signal":
                for blow in blows:
                    yield Strike(name, kind, (blow,), chance.randrange(2**32))
                continue
            places = [ALONE, ALONE, LAUNCHED, STARTER] if KINDS[kind].launches else [ALONE]
            if KINDS[kind].depth:
                places = [LAUNCHED, STARTER]
            numbers = [SIGNALS[number % len(SIGNALS)] for number in range(count)]
            chance.shuffle(numbers)
            for start in range(0, count, 4):
                part = [
                    Blow(blow.share, numbers[start + number], chance.choice(places))
                    for number, blow in enumerate(
                        sorted(blows[start : start + 4], key=lambda blow: blow.share)
                    )
                ]
                yield Strike(name, kind, tuple(part), chance.randrange(2**32))


def num_blows(some: Iterable[Strike]) -> int:
    return sum(len(one.blows) for one in some)


def sample(seed: int = 0) -> list[Strike]:
    """One blow of each of some faults."""
    every = list(strikes(seed))
    first = [next(one for one in every if one.fault == name) for name in SAMPLE]
    return [replace(one, blows=one.blows[:1]) for one in first]


class Campaign:
    """Runs that nothing strikes, each made once, and strikes of others.

    Args:
        inputs: What runs start from.
        folder: Where.
    """

    def __init__(self, inputs: Inputs, folder: Path) -> None:
        self._inputs, self._folder = inputs, folder
        self._whole: dict[str, Run] = {}

    def whole(self, one: Strike) -> Run:
        """The run that nothing strikes."""
        changes = FAULTS[one.fault].changes or {}
        name = "-".join([one.kind, *changes])
        if name not in self._whole:
            run = Run(KINDS[one.kind], self._inputs, self._folder / name / "run", dict(changes))
            run.folder.parent.mkdir(parents=True)
            with served(run) if "use_vllm" in changes else contextlib.nullcontext():
                run.start()
                Struck(run, one).ends_well()
            self._whole[name] = run
        return self._whole[name]

    def strike(self, one: Strike, folder: Path) -> None:
        """Strike a run, let it go on to its end, and see that nothing is lost."""
        whole, fault = self.whole(one), FAULTS[one.fault]
        run = Run(KINDS[one.kind], self._inputs, folder / "run", dict(fault.changes or {}))
        size = sum(path.stat().st_size for path in whole.folder.rglob("*") if path.is_file())
        struck = Struck(run, one, whole.progress(), size)
        try:
            with fault.strike(struck):
                run.start()
                struck.ends_well()
                assert run.outcome() == whole.outcome()
        finally:
            run.kill()


def _wait_for(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)


def main() -> None:
    """Run the campaign's tests, and print figures for docs/reliability.md."""
    began = time.monotonic()
    environment = {**os.environ, "TRL_R1ZERO_STRIKES": "all"}
    command = [sys.executable, "-m", "pytest", "-q", str(Path(__file__).parent), *sys.argv[1:]]
    status = subprocess.run(command, env=environment, check=False).returncode
    minutes = (time.monotonic() - began) / 60
    print(json.dumps({"blows": num_blows(strikes()), "minutes": round(minutes, 1)}))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
