"""One step off: the server samples the next rollout batch while this one trains.

At GRPO step k (from 0) the trainer waits for the rollouts of step k, gives the server the weights
that it has now, lets it begin with the rollouts of step k + 1, and trains on those of step k. So
from step 1 on, rollouts are of the policy before the last step; prompts and seeds are those of a
synchronous run. Step 0, and the first step of a resumed run, are sampled in place.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trl_r1zero.generation import Completion, SamplingConfig

from .sampling import PolicySampler
from .server_setup import ServerRequest
from .timing import StepTimer


@dataclass
class RolloutsAhead:
    """Rollouts by a server that samples those of the next step meanwhile.

    Attributes:
        sampler: Of a server that stays awake.
        sampling: How to sample.
        batch_of_step: The prompts, each as often as it is sampled, and the seeds of all processes
            at a step, from 0.
        num_steps: Steps of the run.
        timer: Gets the seconds of `rollout_wait`.
        server_idle_seconds: How long the server had nothing to do before its newest work.

    Raises:
        ValueError: The server sleeps while the trainer trains.
    """

    sampler: PolicySampler
    sampling: SamplingConfig
    batch_of_step: Callable[[int], tuple[Sequence[str], Sequence[int]]]
    num_steps: int
    timer: StepTimer
    server_idle_seconds: float = 0.0

    def __post_init__(self) -> None:
        assert self.sampler.server is not None  # the config sees to it
        self._server = self.sampler.server
        self._ahead: tuple[int, ServerRequest] | None = None
        if self._server.sleep_level:
            # A server of its own stays awake for that (`resolve_server`).
            args = self.sampler.policy.args
            raise ValueError(
                "one_step_off lets the vLLM server sample while the trainer trains, but the one at "
                f"{args.vllm_server_base_url or args.vllm_server_host} sleeps then; start it "
                "without --enable-sleep-mode, on a device of its own, or set one_step_off to false"
            )

    def sample(
        self, step: int, prompts: Sequence[str], seeds: Sequence[int], description: str
    ) -> tuple[list[list[int]], list[Completion]]:
        """As `PolicySampler.sample`, for a step; the rollouts of the next one are begun, too."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[0] != step:
            prompt_ids, completions = self.sampler.sample(
                prompts, self.sampling, seeds, description
            )
        else:
            request = ahead[1]
            with self.timer.part("rollout_wait"):
                self._server.finish()
            start = self.sampler.policy.accelerator.process_index * len(prompts)
            local = slice(start, start + len(prompts))
            prompt_ids, completions = request.prompt_ids[local], request.completions[local]
        if step + 1 < self.num_steps:
            self._begin(step + 1)
        return prompt_ids, completions

    def _begin(self, step: int) -> None:
        self.sampler.sync_server()
        prompts, seeds = self.batch_of_step(step)
        ids = self.sampler.prompt_ids(prompts)
        self.server_idle_seconds = time.perf_counter() - self._server.last_answer
        self._ahead = step, self._server.begin(ids, self.sampling, list(seeds))
