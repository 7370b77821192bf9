"""Which interface gloo uses."""

import socket

import psutil
import pytest

from trl_r1zero.common.network import address_towards, choose_gloo_interface

TWO_MACHINES = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_the_way_to_this_machine_is_its_loopback_interface(host):
    try:
        address = address_towards(host)
    except OSError as error:
        pytest.skip(f"no {host} here: {error}")
    assert address in ("127.0.0.1", "::1")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        {**TWO_MACHINES, "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "ib0"},
        TWO_MACHINES,  # without an address there is nothing to choose by
    ],
)
def test_what_needs_no_choice_stays(environ):
    after = dict(environ)
    choose_gloo_interface(after)
    assert after == environ


def test_over_several_machines_the_interface_towards_the_first_is_chosen():
    loopback = next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any((one.family, one.address) == (socket.AF_INET, "127.0.0.1") for one in addresses)
    )
    environ = {**TWO_MACHINES, "MASTER_ADDR": "127.0.0.1"}
    choose_gloo_interface(environ)
    assert environ["GLOO_SOCKET_IFNAME"] == loopback
