"""Which prompts each GRPO step sees."""

from collections.abc import Iterator, Sized
from itertools import islice

import torch
from torch.utils.data import Sampler


def shuffled_forever(size: int, *, shuffle: bool, seed: int) -> Iterator[int]:
    """The numbers below `size` again and again, each pass in an order of its own if shuffled."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        if shuffle:
            yield from torch.randperm(size, generator=generator).tolist()
        else:
            yield from range(size)


class RolloutSampler(Sampler[int]):
    """Yields the row numbers of every rollout batch of a run, in order.

    Prompts come in a shuffled order, reshuffled once all have been seen; a rollout batch may span
    two passes, so no prompt is dropped at the end of one. Each prompt stands `group_size` times in
    a row, and each rollout batch is yielded once per optimizer update on it, because the training
    loop draws one batch for each update.

    The whole run is one sequence that depends on the seed alone: a resumed run skips to its place
    in it and sees what it would have seen.

    A ValueError if the training set has fewer prompts than one rollout batch.
    """

    def __init__(
        self,
        data_source: Sized,
        *,
        prompts_per_rollout_batch: int,
        group_size: int,
        updates_per_grpo_step: int,
        n_grpo_steps: int,
        shuffle: bool,
        seed: int,
    ) -> None:
        self.num_prompts = len(data_source)
        self.prompts_per_rollout_batch = prompts_per_rollout_batch
        self.group_size = group_size
        self.updates_per_grpo_step = updates_per_grpo_step
        self.n_grpo_steps = n_grpo_steps
        self.shuffle = shuffle
        self.seed = seed
        if self.num_prompts < prompts_per_rollout_batch:
            raise ValueError(
                f"the training set has {self.num_prompts} prompts, but a rollout batch needs "
                f"{prompts_per_rollout_batch} different ones (rollout_batch_size / group_size); "
                "use a larger training set or a smaller rollout_batch_size"
            )

    def prompts_of(self, grpo_step: int) -> list[int]:
        """The row numbers of one rollout batch, each prompt once; steps count from 0."""
        prompts = shuffled_forever(self.num_prompts, shuffle=self.shuffle, seed=self.seed)
        start = grpo_step * self.prompts_per_rollout_batch
        return list(islice(prompts, start, start + self.prompts_per_rollout_batch))

    def __iter__(self) -> Iterator[int]:
        prompts = shuffled_forever(self.num_prompts, shuffle=self.shuffle, seed=self.seed)
        for _ in range(self.n_grpo_steps):
            batch = [next(prompts) for _ in range(self.prompts_per_rollout_batch)]
            for _ in range(self.updates_per_grpo_step):
                for prompt in batch:
                    yield from [prompt] * self.group_size

    def __len__(self) -> int:
        return (
            self.n_grpo_steps
            * self.updates_per_grpo_step
            * self.prompts_per_rollout_batch
            * self.group_size
        )
