"""The devices that the user made visible, and how a recipe names one of them.

A recipe counts devices as a CUDA program does: number 0 is the first one in CUDA_VISIBLE_DEVICES.
Another process is given a device by its entry in that list, which may be a number or a UUID.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class VisibleDevices:
    """The GPUs that this run may use, in the order in which CUDA numbers them."""

    names: tuple[str, ...]  # entries of CUDA_VISIBLE_DEVICES: physical numbers or UUIDs
    variable: str | None = None  # CUDA_VISIBLE_DEVICES itself, if set

    def __len__(self) -> int:
        return len(self.names)

    def variable_for(self, numbers: Sequence[int]) -> str:
        """CUDA_VISIBLE_DEVICES of a process that gets the devices of these numbers."""
        return ",".join(self.names[number] for number in numbers)

    def in_words(self) -> str:
        """For messages, such as `this run sees 2 GPUs (CUDA_VISIBLE_DEVICES is '4,5')`."""
        number = f"{len(self) or 'no'} GPU{'s' if len(self) > 1 else ''}"
        value = "not set" if self.variable is None else repr(self.variable)
        return f"this run sees {number} ({VARIABLE} is {value})"


def visible_devices(environment: Mapping[str, str], count: int) -> VisibleDevices:
    """The devices that a process with this environment sees, of which CUDA finds `count`."""
    listed = environment.get(VARIABLE)
    if listed is None:
        return VisibleDevices(tuple(map(str, range(count))))
    # CUDA ends the list at its first entry that is no device: `count` says where.
    return VisibleDevices(tuple(device_names(listed)[:count]), listed)


def parse_devices(devices: str, visible: VisibleDevices, key: str = "devices") -> list[int]:
    """The numbers of devices such as `2,3` or UUIDs; a ValueError for unknown or repeated ones."""
    numbers = []
    for word in (word.strip() for word in devices.split(",")):
        if word.isdecimal() and int(word) < len(visible):
            numbers.append(int(word))
        elif not word.isdecimal() and word in visible.names:
            numbers.append(visible.names.index(word))
        else:
            raise ValueError(
                f"{key} is {devices!r}, but there is no device {word!r}: {visible.in_words()}. "
                f"Devices are counted from 0 within {VARIABLE}; if `accelerate launch` was given "
                "gpu_ids, remove it: it hides the others"
            )
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{key} is {devices!r}, which names a device twice")
    return numbers


def variable_for(devices: str, environment: Mapping[str, str]) -> str:
    """CUDA_VISIBLE_DEVICES of a process that gets these devices; errors as `parse_devices`."""
    listed = environment.get(VARIABLE)
    if listed is None:
        return ",".join(word.strip() for word in devices.split(","))
    visible = VisibleDevices(tuple(device_names(listed)), listed)
    return visible.variable_for(parse_devices(devices, visible))


def device_names(listed: str) -> list[str]:
    """The entries of a list of devices, up to a -1, which ends it by convention."""
    names = [name.strip() for name in listed.split(",")]
    return [name for name in names[: names.index("-1") if "-1" in names else None] if name]
