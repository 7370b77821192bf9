"""The devices that the user made visible, and how a recipe names one of them.

A recipe counts devices as a CUDA program does: number 0 is the first one in CUDA_VISIBLE_DEVICES.
Another process is given a device by its entry in that list, which may be a number or a UUID.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class VisibleDevices:
    """The GPUs that this run may use, in the order in which CUDA numbers them.

    Attributes:
        names: For each, what CUDA_VISIBLE_DEVICES calls it: a physical number or a UUID.
        variable: What CUDA_VISIBLE_DEVICES is; None where it is not set.
    """

    names: tuple[str, ...]
    variable: str | None = None

    def __len__(self) -> int:
        return len(self.names)

    def number(self, device: str) -> int:
        """The number that CUDA gives a device here, from its number in this run or its UUID.

        Raises:
            ValueError: The run does not see it.
        """
        if device.isdecimal() and int(device) < len(self.names):
            return int(device)
        if not device.isdecimal() and device in self.names:
            return self.names.index(device)
        raise ValueError(f"there is no device {device!r}: {self.in_words()}")

    def variable_for(self, numbers: Sequence[int]) -> str:
        """CUDA_VISIBLE_DEVICES of a process that is to have the devices of these numbers."""
        return ",".join(self.names[number] for number in numbers)

    def in_words(self) -> str:
        """For messages, such as `this run sees 2 GPUs (CUDA_VISIBLE_DEVICES is '4,5')`."""
        count = len(self.names)
        number = "no GPU" if count == 0 else f"{count} GPU{'s' if count > 1 else ''}"
        said = "not set" if self.variable is None else repr(self.variable)
        return f"this run sees {number} ({VARIABLE} is {said})"


def visible_devices(environment: Mapping[str, str], count: int) -> VisibleDevices:
    """The devices that a process with this environment sees.

    Args:
        environment: Of the process; CUDA_VISIBLE_DEVICES counts.
        count: How many devices CUDA finds in it.
    """
    listed = environment.get(VARIABLE)
    if listed is None:
        return VisibleDevices(tuple(map(str, range(count))))
    # CUDA ends the list at its first entry that is no device: `count` says where.
    return VisibleDevices(tuple(_listed(listed)[:count]), listed)


def parse_devices(devices: str, visible: VisibleDevices, key: str = "devices") -> list[int]:
    """The numbers of the devices that a recipe's `'1'` or `'2,3'` names.

    Raises:
        ValueError: The text is no list of devices, names one twice, or one that is not there.
    """
    words = [word.strip() for word in devices.split(",")]
    try:
        numbers = [visible.number(word) for word in words]
    except ValueError as error:
        raise ValueError(
            f"{key} is {devices!r}, but {error}. Devices are counted from 0 within "
            f"{VARIABLE}; if `accelerate launch` was given gpu_ids, remove it: it hides the others"
        ) from None
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{key} is {devices!r}, which names a device twice")
    return numbers


def variable_for(devices: str, environment: Mapping[str, str]) -> str:
    """CUDA_VISIBLE_DEVICES of a process that is to have these devices, started from here.

    Whether there are such devices is not asked: the text alone counts.

    Args:
        devices: Counted within CUDA_VISIBLE_DEVICES of `environment`, such as `2,3`.
        environment: This process's.

    Raises:
        ValueError: CUDA_VISIBLE_DEVICES does not list so many, or one is named twice.
    """
    listed = environment.get(VARIABLE)
    if listed is None:
        return ",".join(word.strip() for word in devices.split(","))
    visible = VisibleDevices(tuple(_listed(listed)), listed)
    return visible.variable_for(parse_devices(devices, visible))


def _listed(variable: str) -> list[str]:
    """The entries of CUDA_VISIBLE_DEVICES, up to a -1, with which people end the list."""
    names = [name.strip() for name in variable.split(",")]
    return [name for name in names[: names.index("-1") if "-1" in names else None] if name]
