"""Which device does what: decisions as pure functions, and what they are decided from."""

from .placement import Placement, place
from .visible import VisibleDevices, visible_devices

__all__ = ["Placement", "VisibleDevices", "place", "visible_devices"]
