"""Where the trainers of a run and its vLLM server are, how weights get from one to the other,
whether the server sleeps while the trainer trains, and how much memory it takes."""

from dataclasses import dataclass

from .facts import GIB
from .visible import VisibleDevices, parse_devices

WEIGHT_TRANSFERS = ("nccl", "ipc", "gloo")

# Of a device that is the server's own: the rest is for CUDA's context and for weights in transfer.
OWN_DEVICE_SHARE = 0.9
# Of a device that a trainer shares with a server that stays awake.
AWAKE_SHARE = 0.4
# CUDA's contexts of both processes, cuBLAS's work space, fragmentation.
RESERVED_BYTES = 3 * GIB
_LEAST_SHARE = 0.05
_KEY = "vllm_server's devices"


@dataclass(frozen=True)
class Placement:
    """The CUDA numbers of trainers' and server's devices (none on CPUs), and what follows."""

    trainers: tuple[int, ...]
    server: tuple[int, ...]
    # nccl: from one device to another; ipc: by memory of a device that both use; gloo: through the
    # host's memory.
    weight_transfer: str
    shared: bool  # the server is on a trainer's device, or all are on CPUs
    # 2: the server frees its memory while the trainer trains, and gets weights before it samples.
    sleep_level: int
    why: str  # the reason for `weight_transfer`, for the log

    def in_words(self) -> str:
        """One line for the log."""
        trainers = gpus_in_words(self.trainers)
        where = "the same" if self.server == self.trainers else gpus_in_words(self.server)
        sleeps = "sleeps while the trainer trains" if self.sleep_level else "stays awake"
        return (
            f"trainer{'s' if len(self.trainers) > 1 else ''} on {trainers}, vLLM server on {where}:"
            f" weights by {self.weight_transfer} ({self.why}); the server {sleeps}"
        )


def place(
    visible: VisibleDevices,
    *,
    num_trainers: int,
    trainer_on_cuda: bool,
    server_on_cuda: bool,
    server_devices: str | None = None,
    num_server_devices: int = 1,
    ipc_works: bool = True,
) -> Placement:
    """Decide where a server goes that a run starts, and what follows.

    Trainers have the first devices, one each. Unless `server_devices` (counted within `visible`,
    such as `2,3`) says otherwise, the server gets the next ones; where there are not enough, it
    shares the trainers', beginning with the first. `num_server_devices` is tensor x data parallel.
    Raises a ValueError if there are no such devices, or too few.
    """
    trainers = tuple(range(num_trainers)) if trainer_on_cuda else ()
    if len(trainers) > len(visible):
        raise ValueError(
            f"each trainer process wants a GPU, and there are {num_trainers} of them, but "
            f"{visible.in_words()}; start fewer (`accelerate launch --num_processes`), or show the "
            "run more"
        )
    if not server_on_cuda:
        if server_devices is not None:
            raise ValueError(
                f"{_KEY} is {server_devices!r}, but vLLM's build for CPUs is installed; remove the "
                "setting, or install vLLM for GPUs (docs/vllm.md)"
            )
        why = "vLLM's build for CPUs" if trainer_on_cuda else "both are on the CPU"
        return Placement(trainers, (), "gloo", not trainer_on_cuda, 0, why)
    server = _server_devices(visible, len(trainers), server_devices, num_server_devices)
    shared = bool(set(server) & set(trainers))
    if not trainer_on_cuda:
        transfer, why = "gloo", "the trainer is on the CPU"
    elif 0 not in server:  # the main process sends
        transfer, why = "nccl", "from one GPU to another"
    elif len(server) > 1:  # NCCL refuses the worker that is on the sender's device
        transfer = "gloo"
        why = "NCCL admits one process a GPU, and the server has other GPUs besides"
    elif ipc_works:
        transfer, why = "ipc", "both are on one GPU"
    else:
        transfer, why = "gloo", "both are on one GPU, and CUDA IPC does not work here"
    return Placement(trainers, server, transfer, shared, 2 if shared else 0, why)


def memory_share(
    placement: Placement,
    total_bytes: int,
    trainer_bytes: int,
    sleep_level: int,
    others_bytes: int = 0,
) -> float:
    """Which share of its devices' memory the server may take (`gpu_memory_utilization`).

    Of `total_bytes` of the smallest device, a trainer keeps `trainer_bytes` for weights and
    optimizer state, and other programs, such as a display, have `others_bytes`. Raises a ValueError
    if that leaves no room for a server.
    """
    if not placement.shared:
        return OWN_DEVICE_SHARE
    if not sleep_level:
        return AWAKE_SHARE
    share = (total_bytes - others_bytes - trainer_bytes - RESERVED_BYTES) / total_bytes
    if share < _LEAST_SHARE:
        raise ValueError(
            f"the device has {(total_bytes - others_bytes) / GIB:.1f} GiB to share, of which "
            f"weights and optimizer state of the trainer take {trainer_bytes / GIB:.1f}: there "
            "is no room for a vLLM server beside them. Set dtype: bfloat16 (a third of the bytes), "
            "train with LoRA (use_peft), or give the server a device of its own (vllm_server: "
            "{devices: ...})"
        )
    return min(OWN_DEVICE_SHARE, int(share * 100) / 100)


def _server_devices(
    visible: VisibleDevices, num_trainers: int, wanted: str | None, number: int
) -> tuple[int, ...]:
    wants = f"the server wants {number} (tensor_parallel_size x data_parallel_size)"
    if wanted is not None:
        devices = tuple(parse_devices(wanted, visible, _KEY))
        if len(devices) != number:
            raise ValueError(
                f"{_KEY} is {wanted!r}, which are {len(devices)}, but {wants}; let the two agree"
            )
        return devices
    if not visible.names:
        raise ValueError(
            f"vLLM for GPUs is installed, but {visible.in_words()}; show the run a GPU, or install "
            "vLLM's build for CPUs (make vllm)"
        )
    if number > len(visible):
        raise ValueError(f"{wants}, but {visible.in_words()}")
    first = num_trainers if num_trainers + number <= len(visible) else 0
    return tuple(range(first, first + number))


def gpus_in_words(numbers: tuple[int, ...]) -> str:
    """Such as `GPUs 0, 1`."""
    if not numbers:
        return "the CPU"
    return f"GPU{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
