"""Where a run's own vLLM server goes: its settings, with what they leave open decided.

A pure function of settings and facts, so that the same answer can be had for a machine that is not
here.
"""

from dataclasses import dataclass, replace

from trl_r1zero.devices import MachineFacts, Placement, memory_share, place

from .vllm_server_config import VLLMServerConfig


@dataclass(frozen=True)
class TrainerFacts:
    """What a server's place depends on besides its settings and the machine."""

    num_trainers: int  # trainer processes on this machine
    trainer_on_cuda: bool  # whether they compute on GPUs
    server_on_cuda: bool  # whether the installed vLLM does
    trainer_bytes: int  # what a trainer keeps on its device while the server samples
    others_bytes: int = 0  # what other programs take of that device
    samples_while_training: bool = False  # with `max_staleness`, so that the server cannot sleep
    ipc_works: bool = True  # whether two processes can share memory of a GPU here


def resolve_server(
    config: VLLMServerConfig, machine: MachineFacts, trainer: TrainerFacts
) -> tuple[VLLMServerConfig, Placement]:
    """Decide what a server's settings leave open (devices, memory share, sleep level, weight
    transfer), and say who is where; what the settings say stays.

    Raises:
        ValueError: There are too few devices, no room for a server, or settings contradict one
            another or where the processes are.
    """
    placement = place(
        machine.visible,
        num_trainers=trainer.num_trainers,
        trainer_on_cuda=trainer.trainer_on_cuda,
        server_on_cuda=trainer.server_on_cuda,
        server_devices=None if config.devices is None else str(config.devices),
        num_server_devices=config.num_devices,
        ipc_works=trainer.ipc_works,
    )
    sleep_level = placement.sleep_level if config.sleep_level is None else config.sleep_level
    if trainer.samples_while_training:
        check_awake(config.sleep_level)
        sleep_level = 0
    placement = replace(placement, sleep_level=sleep_level)
    if config.weight_transfer not in ("auto", placement.weight_transfer):
        _check_transfer(config.weight_transfer, placement)
        placement = replace(
            placement, weight_transfer=config.weight_transfer, why="as the recipe says"
        )
    share = config.gpu_memory_utilization
    if share is None and placement.server:
        total = machine.total_bytes(placement.server)
        mine, others = trainer.trainer_bytes, trainer.others_bytes
        share = memory_share(placement, total, mine, sleep_level, others)
    resolved = replace(
        config,
        devices=",".join(map(str, placement.server)) or None,
        gpu_memory_utilization=share,
        sleep_level=sleep_level,
        weight_transfer=placement.weight_transfer,
    )
    return resolved, placement


def check_awake(sleep_level: int | None) -> None:
    """A ValueError if a server would sleep while it has to sample (`max_staleness`)."""
    if sleep_level:
        raise ValueError(
            "max_staleness lets the server sample while the trainer trains, but vllm_server has "
            f"sleep_level: {sleep_level}, so it sleeps then; set sleep_level to 0, or "
            "max_staleness to 0"
        )


def _check_transfer(wanted: str, placement: Placement) -> None:
    on_gpus, sender = bool(placement.server), placement.trainers[:1]
    same = sender == placement.server if on_gpus else not sender
    reason = None
    if wanted == "none":
        reason = "the trainer has to send its weights"
    elif wanted == "nccl" and (not on_gpus or not sender):
        reason = "NCCL needs trainer and server on GPUs"
    elif wanted == "nccl" and sender[0] in placement.server:
        reason = f"NCCL refuses two processes on one GPU, and both are on GPU {sender[0]}"
    elif wanted == "ipc" and not same:
        reason = "it needs trainer and server on one device"
    if reason is not None:
        raise ValueError(
            f"vllm_server has weight_transfer: {wanted}, but {reason}; set auto, or other devices"
        )
