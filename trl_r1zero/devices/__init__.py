"""Which device does what: decisions as pure functions, and the facts that they follow from."""

from .facts import DeviceFacts, MachineFacts, machine_facts
from .placement import Placement, memory_share, place
from .visible import VisibleDevices, visible_devices

__all__ = [name for name in globals() if not name.startswith("_")]
