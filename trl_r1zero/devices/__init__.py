"""Which device does what: decisions as pure functions, and what they are decided from."""

from .facts import DeviceFacts, MachineFacts, machine_facts
from .placement import Placement, memory_share, place
from .visible import VisibleDevices, visible_devices

__all__ = [
    "DeviceFacts",
    "MachineFacts",
    "Placement",
    "VisibleDevices",
    "machine_facts",
    "memory_share",
    "place",
    "visible_devices",
]
