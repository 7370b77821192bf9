"""A vLLM server as the sampler of a trainer with any number of processes.

The first process talks to the server; prompts are gathered to it, completions go back from it.
After each attempt all processes learn how it went: an error is raised by all of them, and a server
that died is started again, given the current weights (gathering sharded ones takes all processes)
and asked again, at the same point of the program everywhere.

A server that shares the trainer's device sleeps while that trains (`release`), and wakes up before
it is asked for anything.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from trl_r1zero.generation import Completion, SamplingConfig, in_order
from trl_r1zero.generation.server_sleep import Memory, Request, ServerState
from trl_r1zero.generation.vllm_client import VLLMServerEngine
from trl_r1zero.generation.vllm_server import VLLMServerConfig, VLLMServerError
from trl_r1zero.generation.weight_sync import StuckTransferError, WeightSync, open_weight_sync
from trl_r1zero.generation.weight_transfer import TensorInfo

from .timing import StepTimer

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A server that dies so often without an answer in between will do it again.
_MAX_RESTARTS_IN_A_ROW = 3
# After so long none is begun any more: the other processes wait in a collective call meanwhile, and
# give up after half an hour (ddp_timeout).
_MAX_SECONDS_OF_RESTARTS = 900.0

# How far the server's and the trainer's log-probabilities of a token may differ on average, in
# nats, by the coarser dtype of the two. With the same weights they differ by the order of sums: by
# 1e-6 in float32 on the quickstart's model.
PROBE_TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True)
class ServerAddress:
    """Where a server that somebody else started is to be found.

    Attributes:
        base_url: Such as `http://127.0.0.1:8000`.
        wait_seconds: How long to wait for it to come up.
    """

    base_url: str
    wait_seconds: float


class ServerGeneration:
    """Samples with the current policy from a vLLM server. Every method is a collective call.

    Attributes:
        last_answer: When the server last finished what it was asked to sample (`perf_counter`), on
            the first process.
        sleep_level: 0 if the server stays awake while the trainer trains; else see
            `VLLMServerConfig`.

    Args:
        model: The policy, unwrapped.
        accelerator, tokenizer: The trainer's.
        server: The settings of a server to start (and, should it die, to start again), or the
            address of one that somebody else runs.
        model_path: What a server of its own is started with; its weights are replaced at once.
        log_path: Log of a server of its own.
        group_port: See `open_weight_sync`.
        request_timeout_seconds: For each completion, and for each step of a weight update.
        timer: Gets the seconds of `weight_sync`, `server_sleep` and `server_wake`.

    Raises:
        VLLMServerError: The server does not come up, or takes no weights.
    """

    def __init__(
        self,
        model: Any,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        server: VLLMServerConfig | ServerAddress,
        *,
        model_path: str,
        log_path: Path,
        group_port: int | None,
        request_timeout_seconds: float,
        timer: StepTimer | None = None,
    ) -> None:
        from .policy_weights import PolicyWeights  # and vLLM: only where there is a server

        self.accelerator = accelerator
        self.weights = PolicyWeights(model, accelerator, tokenizer, mode="server")
        self._tokenizer = tokenizer
        self._server = server
        self._model_path = model_path
        self._log_path = log_path
        self._group_port = group_port
        self._request_timeout_seconds = request_timeout_seconds
        self._timer = timer or StepTimer(accelerator.device)
        self._infos: list[TensorInfo] | None = None
        self._engine: VLLMServerEngine | None = None  # of the first process alone
        self._sync: WeightSync | None = None
        self._restarts = 0
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollouts")
        self._under_way: Future[list[Completion]] | None = None  # on the first process alone
        self.last_answer = time.perf_counter()
        self.sleep_level = 0
        self._state = ServerState()  # the same on all processes
        # A server that starts on the trainer's device counts what is free there.
        clear_device_cache(garbage_collection=True)
        self._connect_everywhere()
        self.sleep_level, self._state = self._from_main((self.sleep_level, self._state))

    def sync_weights(self) -> None:
        """Give the server the policy's weights; it is awake then.

        Raises:
            VLLMServerError: The server refused them, or is gone for good.
        """
        self._state = self._state.with_old_weights()
        self.wake_up()

    def wake_up(self) -> None:
        """Make the server ready to sample: awake, and with the policy's weights if it has none.

        Raises:
            VLLMServerError: The server refused, or is gone for good.
        """
        while requests := self._state.before_sampling():
            for request in requests:
                if not self._do(request):
                    break  # a new server, which wants other things

    def release(self) -> None:
        """Let the server give up its memory before the trainer takes it; nothing if it does not
        sleep, or does already.

        Raises:
            VLLMServerError: The server refused, or is gone for good.
        """
        while self.sleep_level and self._state.memory is Memory.ALL:
            self._do(Request.SLEEP)

    def sample(
        self,
        prompt_ids: list[list[int]],
        sampling: SamplingConfig,
        seeds: list[int],
        *,
        description: str,
        show_progress: bool,
    ) -> list[Completion]:
        """One completion for each prompt of this process; equally many on each.

        Raises:
            VLLMServerError: The server refused a request, or is gone for good.
        """
        all_ids, all_seeds = gather_object(prompt_ids), gather_object(seeds)
        progress = tqdm(
            total=len(all_ids),
            desc=description,
            unit="completion",
            leave=False,
            delay=2,
            disable=not show_progress,
        )
        with progress:
            completions = self._ask(lambda: self._stream(all_ids, sampling, all_seeds, progress))
        start = self.accelerator.process_index * len(prompt_ids)
        return completions[start : start + len(prompt_ids)]

    def begin(
        self, all_ids: list[list[int]], sampling: SamplingConfig, all_seeds: list[int]
    ) -> None:
        """Let the server sample, with the weights that it has, while the trainer does other work.

        `finish` must be called before anything else is asked of the server.

        Args:
            all_ids: The prompts of all processes, the same on each.
            sampling: How to sample.
            all_seeds: One for each.
        """
        self._state.after(Request.SAMPLE, self.sleep_level)
        if self.accelerator.is_main_process:
            self._under_way = self._executor.submit(self._stream, all_ids, sampling, all_seeds)

    def finish(
        self, all_ids: list[list[int]], sampling: SamplingConfig, all_seeds: list[int]
    ) -> list[Completion]:
        """What `begin` was asked for, on every process; waits for it.

        A server that died meanwhile is started again, and samples with the current weights.

        Raises:
            VLLMServerError: The server refused a request, or is gone for good.
        """
        begun, self._under_way = self._under_way, None
        first = [begun]

        def wait() -> list[Completion]:
            future = first.pop() if first else None
            return self._stream(all_ids, sampling, all_seeds) if future is None else future.result()

        return self._ask(wait)

    def _stream(
        self,
        prompt_ids: list[list[int]],
        sampling: SamplingConfig,
        seeds: list[int],
        progress: tqdm | None = None,
    ) -> list[Completion]:
        assert self._engine is not None
        rows = []
        for row in self._engine.stream(prompt_ids, sampling, seeds):
            rows.append(row)
            if progress is not None:
                progress.update()
        self.last_answer = time.perf_counter()
        return in_order(rows)

    def check_probe(self, token_ids: list[int], trainer_log_probs: Tensor, dtype: str) -> float:
        """Compare the server's log-probabilities of a sequence with the trainer's.

        Args:
            token_ids: The sequence, of T + 1 tokens.
            trainer_log_probs: (T,) of its tokens but the first, at temperature 1, in nats.
            dtype: What the trainer computes in, such as `bfloat16`.

        Returns:
            The mean absolute difference, in nats.

        Raises:
            VLLMServerError: It is above what the coarser of the two dtypes explains.
        """

        def compare() -> float:
            assert self._engine is not None
            server_T = torch.tensor(self._engine.log_probs(token_ids), dtype=torch.float64)
            difference = (server_T - trainer_log_probs.double().cpu()).abs().mean().item()
            dtypes = (dtype, self._engine.dtype())
            tolerance = max(PROBE_TOLERANCES[name] for name in dtypes)
            if not difference <= tolerance:  # a NaN is no agreement either
                raise VLLMServerError(
                    f"after a synchronisation the vLLM server at {self._engine.base_url} does not "
                    f"have the trainer's weights: their log-probabilities of a probe differ by "
                    f"{difference:.3g} nats a token, more than {tolerance:g} ({dtypes[0]} trainer, "
                    f"{dtypes[1]} server). Does it serve the same model? vllm_check_syncs: 0 "
                    "trains regardless"
                )
            return difference

        return self._ask(compare)

    def close(self) -> None:
        """Stop the server if it is this trainer's own."""
        if self._sync is not None:
            self._sync.close()
        if self._engine is not None:
            self._engine.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    # The first process

    def _connect(self) -> None:
        self._state = ServerState()
        timeout = self._request_timeout_seconds
        if self._sync is not None:
            self._sync.close()  # its server is gone
        if isinstance(self._server, ServerAddress):
            self._engine = VLLMServerEngine(
                self._server.base_url,
                self._tokenizer,
                read_timeout_seconds=timeout,
                wait_seconds=self._server.wait_seconds,
            )
            self.sleep_level = 2 if self._engine.can_sleep() else 0
            if self._engine.is_sleeping():  # its last trainer left it so
                self._state = ServerState(Memory.NOTHING)
        else:
            self._engine = VLLMServerEngine.start(
                self._model_path,
                self._server,
                self._tokenizer,
                log_path=self._log_path,
                read_timeout_seconds=timeout,
            )
            self.sleep_level = self._server.sleep_level or 0
        self.weights.server_dtype = getattr(torch, self._engine.dtype())
        self._sync = open_weight_sync(
            self._engine,
            self.accelerator.device,
            port=self._group_port,
            timeout_seconds=timeout,
        )

    def _send_weights(self) -> None:
        tensors = self.weights.tensors()
        try:
            if self.accelerator.is_main_process:
                assert self._sync is not None and self._infos is not None
                self._sync.update(self._infos, tensors)
        finally:
            # To the end in any case: gathering sharded weights waits for every process.
            for _ in tensors:
                pass

    def _mend(self, error: VLLMServerError) -> VLLMServerError | None:
        """Start the server again if it is gone and this trainer's own; else what to tell people."""
        assert self._engine is not None
        server = self._engine.server
        if isinstance(error, StuckTransferError) or server is None:
            return error  # another server would not help, or it is not ours to start again
        if not self._engine.is_down(within_seconds=5.0):
            return error  # it lives and refuses, and would again
        began = time.monotonic()
        while (
            self._restarts < _MAX_RESTARTS_IN_A_ROW
            and time.monotonic() - began < _MAX_SECONDS_OF_RESTARTS
        ):
            self._restarts += 1
            logger.warning(
                "the vLLM server died (%s; its log: %s); it is started again with current weights",
                error,
                server.first_error() or "no error",
            )
            self._engine.close()
            # On this device it starts only if it finds the memory that it was promised.
            clear_device_cache(garbage_collection=True)
            try:
                self._connect()
            except VLLMServerError as failure:
                error = failure
            else:
                return None
        return VLLMServerError(
            f"the vLLM server was started again {self._restarts} times without an answer in "
            f"between; at last: {error}\nIts log: {server.log_path}"
        )

    # All processes

    def _do(self, request: Request) -> bool:
        """Ask the server for a change of its state. False if it was started again instead."""
        after = self._state.after(request, self.sleep_level)

        def on_main(action: Callable[[VLLMServerEngine], None]) -> Callable[[], None]:
            return lambda: action(self._engine) if self._engine is not None else None

        if request is Request.SEND_WEIGHTS:
            if self._infos is None:
                self._infos = self.weights.infos()
            part, action = "weight_sync", self._send_weights
        elif request is Request.SLEEP:
            part, action = "server_sleep", on_main(lambda engine: engine.sleep(self.sleep_level))
        elif request is Request.WAKE_WEIGHTS:
            part, action = "server_wake", on_main(lambda engine: engine.wake_up("weights"))
        else:
            part, action = "server_wake", on_main(lambda engine: engine.wake_up("kv_cache"))
        with self._timer.part(part):
            if request in (Request.WAKE_WEIGHTS, Request.WAKE_CACHE):
                # What the trainer has freed is still its own, to be used again: give it back.
                clear_device_cache(garbage_collection=True)
                self.accelerator.wait_for_everyone()
            done = self._attempt(action)
        # A new server is awake, with the weights of its folder.
        self._state = after if done else ServerState()
        return done

    def _ask(self, action: Callable[[], T]) -> T:
        """What `action` says on the first process, if need be after a restart of the server."""
        answers: list[T] = []

        def ask() -> None:
            if self.accelerator.is_main_process:
                answers[:] = [action()]

        self.wake_up()
        while not self._attempt(ask):
            self._state = ServerState()  # a new server has the weights of its folder
            self.wake_up()
        self._restarts = 0
        return self._from_main(answers)[0]

    def _attempt(self, action: Callable[[], object]) -> bool:
        """Run `action` everywhere. True if it went well, False if the server was started again.

        Raises:
            VLLMServerError: On every process, if it failed for good.
        """
        failed = False
        failure: Exception | None = None
        try:
            try:
                action()
            except VLLMServerError as error:  # on the first process alone
                failed, failure = True, self._mend(error)
        except Exception as error:
            failed, failure = True, error
        failed = self._from_main(failed)
        self._fail_alike(failure)
        return not failed

    def _connect_everywhere(self) -> None:
        failure = None
        if self.accelerator.is_main_process:
            try:
                self._connect()
            except Exception as error:
                failure = error
        self._fail_alike(failure)

    def _fail_alike(self, failure: Exception | None) -> None:
        """Raise the first process's error on all of them, whatever its class.

        One that left them alone would have them wait for it until their group's timeout.
        """
        expected = failure is None or isinstance(failure, VLLMServerError)
        words = "" if expected else "what the first process asked of the vLLM server failed: "
        words += "" if expected else f"{type(failure).__name__}: "
        message = self._from_main(None if failure is None else f"{words}{failure}")
        if message is not None:
            raise VLLMServerError(message) from (None if expected else failure)
        if failure is not None:
            raise failure  # of another process

    def _from_main(self, value: T) -> T:
        values = [value]
        broadcast_object_list(values, from_process=0)
        return values[0]
