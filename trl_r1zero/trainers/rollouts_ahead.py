"""One step off: the server samples the next rollout batch while this one trains.

At GRPO step k (from 0) the trainer waits for the rollouts of step k, gives the server the weights
that it has now, lets it begin with the rollouts of step k + 1, and trains on those of step k. So
from step 1 on, rollouts are of the policy before the last step; prompts and seeds are those of a
synchronous run. Step 0, and the first step of a resumed run, are sampled in place.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trl_r1zero.generation import Completion, SamplingConfig, row_seeds

from .sampling_trainer import SamplingTrainer


@dataclass
class _Ahead:
    """The rollouts of one GRPO step, under way on the server or done."""

    step: int
    prompt_ids: list[list[int]]
    seeds: list[int]
    completions: list[Completion] | None = None


class RolloutsAheadMixin(SamplingTrainer):
    """Comes before TRL's trainer among the bases.

    Attributes:
        rollout_sampling: How rollouts are sampled.
    """

    rollout_sampling: SamplingConfig
    _ahead: _Ahead | None = None
    _server_idle_seconds: float = 0.0

    def _set_up_sampling(self) -> None:
        super()._set_up_sampling()
        if not self.args.one_step_off or self.server is None or not self.server.sleep_level:
            return
        # Its own stays awake for that (`resolve_server`): this one is somebody else's.
        raise ValueError(
            "one_step_off lets the vLLM server sample while the trainer trains, but the one at "
            f"{self.args.vllm_server_base_url or self.args.vllm_server_host} sleeps then; start it "
            "without --enable-sleep-mode, on a device of its own, or set one_step_off to false"
        )

    def _sample_rollouts(
        self, step: int, prompts: list[str], seeds: Sequence[int]
    ) -> tuple[list[list[int]], list[Completion]]:
        """Token ids of the prompts of this process, and a completion for each.

        With `one_step_off` those of the next step are begun, too.
        """
        if not self.args.one_step_off:
            return self._sample_here(step, prompts, seeds)
        ahead = self._ahead
        if ahead is None or ahead.step != step:
            prompt_ids, completions = self._sample_here(step, prompts, seeds)
        else:
            with self.timer.part("rollout_wait"):
                self._finish_ahead()
            assert ahead.completions is not None
            rank, processes = self._rank_and_size()
            share = len(ahead.seeds) // processes
            local = slice(rank * share, (rank + 1) * share)
            prompt_ids, completions = ahead.prompt_ids[local], ahead.completions[local]
        self._ahead = None
        if step + 1 < self.args.n_grpo_steps:
            self._begin_ahead(step + 1)
        return prompt_ids, completions

    def _sample_here(
        self, step: int, prompts: list[str], seeds: Sequence[int]
    ) -> tuple[list[list[int]], list[Completion]]:
        return self._sample_completions(
            prompts,
            self.rollout_sampling,
            list(seeds),
            description=f"Rollouts of GRPO step {step + 1}",
        )

    def _begin_ahead(self, step: int) -> None:
        self._sync_server()
        assert self.server is not None
        questions = self._prompts_of_step(step)
        prompt_ids = [
            ids for ids in self._prompt_ids(questions) for _ in range(self.args.group_size)
        ]
        seeds = row_seeds(self.args.seed, "rollout", step, range(len(prompt_ids)))
        self._ahead = _Ahead(step, prompt_ids, list(seeds))
        self._server_idle_seconds = time.perf_counter() - self.server.last_answer
        self.server.begin(prompt_ids, self.rollout_sampling, self._ahead.seeds)

    def _finish_ahead(self) -> None:
        """Wait for what the server was told to begin with, and keep it; nothing if it is there."""
        ahead = self._ahead
        if ahead is None or ahead.completions is not None:
            return
        assert self.server is not None
        ahead.completions = self.server.finish(ahead.prompt_ids, self.rollout_sampling, ahead.seeds)

    def _sync_server(self) -> None:
        self._finish_ahead()  # nobody else may ask the server before
        super()._sync_server()

    def _prompts_of_step(self, step: int) -> list[str]:
        """The prompts of a rollout batch of all processes, each once."""
        raise NotImplementedError

    def _ahead_metrics(self) -> dict[str, Any]:
        """Seconds that the trainer waited for rollouts, and the server for work before them."""
        if not self.args.one_step_off:
            return {}
        return {"server_idle_seconds": self._server_idle_seconds}
