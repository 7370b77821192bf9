"""Bounded staleness: the server samples the next rollout batches while this one trains.

Policy version v are the weights after v GRPO steps; a row's *staleness* is the version that trains
on it less the one that sampled its first token. Batch j (from 0) is asked for once version j - k is
there, k the setting `max_staleness`, so no row is older than k. With k = 1 no row sees a change of
weights; with k > 1 rows go on over it, behind one another. A checkpoint has what is under way; what
it lacks (of a dead server, or the first batch of a run) is sampled in place. See docs/vllm.md.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from trl_r1zero.evaluation.files import write_atomically
from trl_r1zero.generation import Completion, SamplingConfig
from trl_r1zero.generation.vllm_server import VLLMServerError

from .sampling import PolicySampler
from .server_setup import ServerRequest
from .timing import StepTimer

AHEAD_FILE = "rollouts_ahead.json"  # in a checkpoint


@dataclass
class RolloutsAhead:
    """Rollouts by a server that samples those of the next steps meanwhile.

    Attributes:
        sampler: Of a server that stays awake.
        sampling: How to sample.
        batch_of_step: The prompts, each as often as it is sampled, and the seeds of all processes
            at a step, from 0.
        num_steps: Steps of the run.
        max_staleness: Steps to sample ahead, at least 1.
        updates_per_step: Optimizer updates of a step.
        timer: Gets the seconds of `rollout_wait`.
        server_idle_seconds: How long the server had nothing to do before its newest work.

    Raises:
        ValueError: The server sleeps while the trainer trains.
    """

    sampler: PolicySampler
    sampling: SamplingConfig
    batch_of_step: Callable[[int], tuple[Sequence[str], Sequence[int]]]
    num_steps: int
    max_staleness: int
    updates_per_step: int
    timer: StepTimer
    server_idle_seconds: float = 0.0

    def __post_init__(self) -> None:
        assert self.sampler.server is not None  # the config sees to it
        self._server = self.sampler.server
        self._server.keeps_running = self.max_staleness > 1
        self._ahead: dict[int, ServerRequest] = {}
        if self._server.sleep_level:
            # A server of its own stays awake for that (`resolve_server`).
            args = self.sampler.policy.args
            raise ValueError(
                f"max_staleness: {self.max_staleness} lets the vLLM server sample while the "
                "trainer trains, but the one at "
                f"{args.vllm_server_base_url or args.vllm_server_host} sleeps then; start it "
                "without --enable-sleep-mode, on a device of its own, or set max_staleness to 0"
            )

    def sample(
        self, step: int, prompts: Sequence[str], seeds: Sequence[int], description: str
    ) -> tuple[list[list[int]], list[Completion]]:
        """As `PolicySampler.sample`, for a step; the rollouts of the next ones are begun, too."""
        if self.max_staleness > 1 and step in self._ahead:
            self._begin_after(step)
        request = self._ahead.pop(step, None)
        self._ahead = {number: one for number, one in self._ahead.items() if number > step}
        if request is None:
            ids, completions = self.sampler.sample(prompts, self.sampling, seeds, description)
            ages = [0] * len(prompts)
        else:
            with self.timer.part("rollout_wait"):
                self._server.finish(request)
            start = self.sampler.policy.accelerator.process_index * len(prompts)
            local = slice(start, start + len(prompts))
            ids, completions = request.prompt_ids[local], request.completions[local]
            updates = self.sampler.num_updates()
            ages = [(updates - seen) // self.updates_per_step for seen in request.versions[local]]
        for completion, age in zip(completions, ages, strict=True):
            completion.staleness = age
        self._begin_after(step)
        return ids, completions

    def _begin_after(self, step: int) -> None:
        ahead = range(step + 1, min(step + self.max_staleness + 1, self.num_steps))
        for number in ahead:
            if number not in self._ahead:
                self.sampler.sync_server()
                request = self._request(number)
                self.server_idle_seconds = self._server.clock.free_seconds()
                self._server.begin(request)
                self._ahead[number] = request

    def _request(self, step: int) -> ServerRequest:
        prompts, seeds = self.batch_of_step(step)
        return ServerRequest(self.sampler.prompt_ids(prompts), self.sampling, list(seeds))

    # Checkpoints

    def save(self, folder: Path) -> None:
        """Wait for what is under way, and write it into a checkpoint's folder; a collective call.

        What a server owes that is gone for good is left out.
        """
        with suppress(VLLMServerError):  # the run knows of it, or will at its next step
            self._server.finish()
        self._ahead = {step: one for step, one in self._ahead.items() if one.completions}
        there = [
            {"step": step, "versions": one.versions, "rows": [asdict(c) for c in one.completions]}
            for step, one in self._ahead.items()
        ]
        if self.sampler.policy.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / AHEAD_FILE, json.dumps(there).encode())

    def load(self, folder: Path) -> None:
        """Go on with what `save` left; nothing if the checkpoint is of a run without staleness."""
        self._ahead = {}
        file = folder / AHEAD_FILE
        for saved in json.loads(file.read_text(encoding="utf-8")) if file.is_file() else ():
            if saved["step"] < self.num_steps:
                request = self._request(saved["step"])
                request.completions = [Completion(**row) for row in saved["rows"]]
                request.versions = saved["versions"]
                self._ahead[saved["step"]] = request
