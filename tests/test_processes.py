"""What the processes of a run do together."""

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from trl_r1zero.common.processes import from_main_process


def fail() -> None:
    raise ValueError(f"of process {dist.get_rank()}")


def in_each_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    assert from_main_process(lambda: ["rank", rank]) == ["rank", 0]
    with pytest.raises(ValueError, match="of process 0"):
        from_main_process(fail)
    dist.destroy_process_group()


def test_every_process_has_what_the_main_one_makes(tmp_path):
    mp.spawn(in_each_process, args=(str(tmp_path),), nprocs=2)


def test_a_process_alone_makes_it_itself():
    assert from_main_process(lambda: 3) == 3
