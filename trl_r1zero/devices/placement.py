"""Where the trainers of a run and its vLLM server are, and what follows from it.

Three things follow: by which way weights get from the one to the other, whether the server sleeps
while the trainer trains, and how much of its devices' memory it takes.
"""

from dataclasses import dataclass

from .visible import VisibleDevices, parse_devices

WEIGHT_TRANSFERS = ("nccl", "ipc", "gloo")

# Of a device that is the server's own: the rest is for CUDA's context and for weights on their way.
OWN_DEVICE_SHARE = 0.9
# Of a device that a trainer shares with a server that stays awake.
AWAKE_SHARE = 0.4
# CUDA's contexts of both processes, cuBLAS's work space, what fragmentation takes.
RESERVED_BYTES = 3 * 2**30
_LEAST_SHARE = 0.05
_KEY = "vllm_server's devices"


@dataclass(frozen=True)
class Placement:
    """Who is where in a run with a server.

    Attributes:
        trainers: The CUDA number of each trainer's device on this machine; empty on CPUs.
        server: The CUDA numbers of the server's devices; empty on a CPU.
        weight_transfer: How weights get there: `nccl` (from one device to another), `ipc` (by
            memory of a device that both use) or `gloo` (through the host's memory).
        shared: Whether the server is on a trainer's device, or all are on CPUs.
        sleep_level: 2 if the server gives up its memory while the trainer trains (its weights are
            sent again before it samples), else 0.
        why: The reason for `weight_transfer`, for the log.
    """

    trainers: tuple[int, ...]
    server: tuple[int, ...]
    weight_transfer: str
    shared: bool
    sleep_level: int
    why: str

    def in_words(self) -> str:
        """One line for the log."""
        trainers = _devices_in_words(self.trainers)
        where = "the same" if self.server == self.trainers else _devices_in_words(self.server)
        sleeps = "sleeps while the trainer trains" if self.sleep_level else "stays awake"
        who = "trainers" if len(self.trainers) > 1 else "trainer"
        return (
            f"{who} on {trainers}, vLLM server on {where}: "
            f"weights by {self.weight_transfer} ({self.why}); the server {sleeps}"
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

    Trainers have the first devices, one each. Unless told otherwise, the server gets the next ones;
    where there are not enough, it shares those of the trainers, beginning with the first.

    Args:
        visible: The devices that the run sees.
        num_trainers: Trainer processes on this machine.
        trainer_on_cuda: Whether trainers compute on GPUs.
        server_on_cuda: Whether the installed vLLM does.
        server_devices: Where the server is to be, counted within `visible`, such as `2,3`; None to
            decide here.
        num_server_devices: How many devices the server wants (tensor x data parallel).
        ipc_works: Whether two processes can share memory of a GPU here.

    Raises:
        ValueError: There are no such devices, or too few.
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
    sleep_level = 2 if shared else 0
    if not trainer_on_cuda:
        return Placement(trainers, server, "gloo", shared, sleep_level, "the trainer is on the CPU")
    if trainers[0] not in server:  # the main process is who sends
        return Placement(trainers, server, "nccl", shared, sleep_level, "from one GPU to another")
    if len(server) > 1:
        # Only some of the workers are on the sender's device; NCCL refuses the one that is.
        why = "NCCL admits one process a GPU, and the server has other GPUs besides"
        return Placement(trainers, server, "gloo", shared, sleep_level, why)
    if ipc_works:
        return Placement(trainers, server, "ipc", shared, sleep_level, "both are on one GPU")
    why = "both are on one GPU, and CUDA IPC does not work here"
    return Placement(trainers, server, "gloo", shared, sleep_level, why)


def memory_share(
    placement: Placement,
    total_bytes: int,
    trainer_bytes: int,
    sleep_level: int,
    others_bytes: int = 0,
) -> float:
    """Which share of its devices' memory the server may take (`gpu_memory_utilization`).

    Args:
        placement: Who is where.
        total_bytes: Memory of the smallest of the server's devices.
        trainer_bytes: What a trainer keeps there while the server samples: weights and optimizer
            state.
        sleep_level: The server's; 0 if it stays awake.
        others_bytes: What other programs take there, such as a display.

    Raises:
        ValueError: The trainer leaves no room for a server.
    """
    if not placement.shared:
        return OWN_DEVICE_SHARE
    if not sleep_level:
        return AWAKE_SHARE
    share = (total_bytes - others_bytes - trainer_bytes - RESERVED_BYTES) / total_bytes
    if share < _LEAST_SHARE:
        raise ValueError(
            f"the device has {(total_bytes - others_bytes) / 2**30:.1f} GiB to share, of which "
            f"weights and optimizer state of the trainer take {trainer_bytes / 2**30:.1f}: there "
            "is no room for a vLLM server beside them. Set dtype: bfloat16 (a third of the bytes), "
            "train with LoRA (use_peft), "
            "or give the server a device of its own (vllm_server: {devices: ...})"
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
    free = tuple(range(num_trainers, len(visible)))
    return free[:number] if len(free) >= number else tuple(range(number))


def _devices_in_words(numbers: tuple[int, ...]) -> str:
    if not numbers:
        return "the CPU"
    return f"GPU{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
