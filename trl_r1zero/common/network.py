"""Which of this machine's addresses and interfaces lead to another machine."""

import socket
from collections.abc import MutableMapping

__all__ = ["address_towards", "choose_gloo_interface"]

_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


def address_towards(host: str) -> str:
    """This machine's address on the way to `host`; no packet is sent."""
    family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def choose_gloo_interface(environ: MutableMapping[str, str]) -> None:
    """Let gloo listen where the run's other machines reach it, before its first process group.

    By itself it listens at the address of the machine's name, which /etc/hosts often says to be a
    loopback one; a run over several machines then waits until a timeout. A run on one machine, and
    a `GLOO_SOCKET_IFNAME` that is set, stay as they are.

    Args:
        environ: The environment as torchrun sets it.
    """
    here, everywhere = (int(environ.get(key, "1")) for key in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if everywhere <= here or "MASTER_ADDR" not in environ or _GLOO_INTERFACE in environ:
        return
    import psutil

    address = address_towards(environ["MASTER_ADDR"])
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            environ[_GLOO_INTERFACE] = name
            return
