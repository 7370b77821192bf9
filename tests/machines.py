"""Machines to test with: network namespaces with an address each, joined by a switch.

They share this machine's files, as those of a cluster do, and nothing of its network: each has a
loopback interface of its own, and `machine.address` is the only way to it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

INTERFACE = "net0"


@dataclass(frozen=True)
class Machine:
    """A network namespace, and its address that the others reach it at."""

    namespace: str
    address: str

    def command(self, arguments: Sequence[str]) -> list[str]:
        """What runs `arguments` on it."""
        return ["ip", "netns", "exec", self.namespace, *arguments]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _join(switch: str, made: Sequence[Machine]) -> None:
    _ip("netns", "add", switch)
    _ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
    _ip("-n", switch, "link", "set", "bridge0", "up")
    for index, machine in enumerate(made):
        own, port = machine.namespace, f"port{index}"
        _ip("netns", "add", own)
        _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", INTERFACE,
            "netns", own)  # fmt: skip
        _ip("-n", switch, "link", "set", port, "master", "bridge0", "up")
        _ip("-n", own, "address", "add", f"{machine.address}/24", "dev", INTERFACE)
        for name in (INTERFACE, "lo"):
            _ip("-n", own, "link", "set", name, "up")


@contextmanager
def machines(number: int) -> Iterator[list[Machine]]:
    """`number` machines; skips the test where a namespace cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip (Debian: iproute2)")
    prefix = f"r1z{os.getpid()}"
    switch = f"{prefix}-switch"
    made = [Machine(f"{prefix}-{index}", f"10.77.0.{index + 1}") for index in range(number)]
    try:
        try:
            _join(switch, made)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces can be joined here: {error.stderr.strip()}")
        yield made
    finally:
        for namespace in (*(machine.namespace for machine in made), switch):
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)
