"""A vLLM server as the sampler of a trainer with any number of processes.

The first process talks to the server; prompts are gathered to it, completions go back from it.
After each attempt all processes learn how it went: an error is raised by all of them, and a server
that died is started again, given the current weights (gathering sharded ones takes all processes)
and asked again, at the same point of the program everywhere.

A server that shares the trainer's device sleeps while that trains (`release`), and wakes up before
it is asked for anything.
"""

import functools
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from trl_r1zero.common.processes import from_main, from_main_process
from trl_r1zero.generation import Completion, SamplingConfig, in_order
from trl_r1zero.generation.server_lock import weights_held
from trl_r1zero.generation.server_sleep import Memory, Request, ServerState
from trl_r1zero.generation.vllm_client import VLLMServerEngine
from trl_r1zero.generation.vllm_server import VLLMServerError
from trl_r1zero.generation.weight_sync import StuckTransferError, in_thread

from .collective import raise_alike
from .policy_weights import PolicyWeights
from .server_setup import ServerRequest, ServerSetup, compare_probe
from .server_weights import ServerWeights
from .timing import ServerClock, StepTimer

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A server that dies so often without an answer in between will do it again.
_MAX_RESTARTS_IN_A_ROW = 3
# After so long none is begun any more: the other processes wait in a collective call meanwhile, and
# give up after half an hour (ddp_timeout).
_MAX_SECONDS_OF_RESTARTS = 900.0

_ASKING = "what the first process asked of the vLLM server"


class ServerGeneration:
    """Samples with the current policy from a vLLM server. Every method is a collective call.

    Attributes:
        num_updates: Optimizer updates so far, as a trainer counts them.
        version: As many as the server's weights have seen.
        keeps_running: Whether requests that were begun go on while the weights are replaced, each
            with the new ones from its next token on.
        clock: On the first process, how busy the server is.
        sleep_level: 0 if the server stays awake while the trainer trains; else see
            `VLLMServerConfig`.

    Args:
        model: The policy, unwrapped.
        accelerator, tokenizer: The trainer's.
        setup: The server.
        timer: Gets the seconds of `weight_sync`, `server_sleep` and `server_wake`.

    Raises:
        VLLMServerError: The server does not come up, or takes no weights.
    """

    def __init__(
        self,
        model: Any,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        setup: ServerSetup,
        timer: StepTimer | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.weights = PolicyWeights(model, accelerator, tokenizer)
        self._tokenizer = tokenizer
        self._setup = setup
        self._timer = timer or StepTimer(accelerator.device)
        self._ways = ServerWeights(self.weights, setup, accelerator.device)
        self._engine: VLLMServerEngine | None = None  # of the first process alone
        self._restarts = 0
        self._held = ExitStack()
        weakref.finalize(self, self._held.close)  # of a trainer that never trains
        self._begun: list[ServerRequest] = []
        self.num_updates: Callable[[], int] = lambda: 0
        self.version = 0
        self.keeps_running = False
        self.clock = ServerClock()
        self.sleep_level = 0
        self._state = ServerState()  # the same on all processes
        # A server that starts on the trainer's device counts what is free there.
        clear_device_cache(garbage_collection=True)
        self._connect_everywhere()
        known = from_main((self.sleep_level, self._state, self.weights.adapters))
        self.sleep_level, self._state, self.weights.adapters = known

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
        self.settle()
        request = ServerRequest(gather_object(prompt_ids), sampling, gather_object(seeds))
        progress = tqdm(
            total=len(request.seeds),
            desc=description,
            unit="completion",
            leave=False,
            delay=2,
            disable=not show_progress,
        )
        with progress, self.clock.waiting():
            completions = self._ask(lambda: self._stream(request, progress))
        start = self.accelerator.process_index * len(prompt_ids)
        return completions[start : start + len(prompt_ids)]

    def begin(self, request: ServerRequest) -> None:
        """Let the server sample while the trainer does other work, behind what was begun before.

        `finish` fills the request in, which is the same on all processes; so may whatever else is
        asked of the server before.
        """
        self.settle()
        self._state.after(Request.SAMPLE, self.sleep_level)
        if self.accelerator.is_main_process:
            request.engine = self._engine
            request.future = in_thread(lambda: self._stream(request))
        self._begun.append(request)

    def settle(self) -> None:
        """What comes before other work: `finish`, unless requests may go on meanwhile."""
        if not self.keeps_running:
            self.finish()

    def finish(self, request: ServerRequest | None = None) -> None:
        """Wait for what `begin` was asked for, all of it or one request; nothing if it is there.

        A server that died meanwhile is started again, and samples with the current weights.

        Raises:
            VLLMServerError: The server refused a request, or is gone for good.
        """
        for one in list(self._begun):
            if one is request or request is None:
                self._begun.remove(one)
                with self.clock.waiting():
                    answer = self._ask(functools.partial(self._answer, one))
                one.completions, one.versions = answer

    def _answer(self, request: ServerRequest) -> tuple[list[Completion], list[int]]:
        future, request.future = request.future, None
        if future is not None and (
            future.exception() is None or request.engine is self._engine  # which waits for it
        ):
            completions = future.result()
        else:  # the server that was asked has died, and here is another one
            completions = self._stream(request)
        return completions, request.versions

    def _stream(self, request: ServerRequest, progress: tqdm | None = None) -> list[Completion]:
        rows, asked = [], (request.prompt_ids, request.sampling, request.seeds)
        request.versions = [self.version] * len(request.seeds)

        def on_first_token(row: int) -> None:
            request.versions[row] = self.version

        # A request keeps the adapter that it named; weights are what it finds at its turn.
        late = self.keeps_running and not self.weights.adapters
        with self.clock.request():
            for row in self._first_engine.stream(*asked, on_first_token if late else None):
                rows.append(row)
                if progress is not None:
                    progress.update()
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
            servers = self._first_engine.alive
            return max(compare_probe(one, token_ids, trainer_log_probs, dtype) for one in servers)

        return self._ask(compare)

    def close(self) -> None:
        """Stop the server if it is this trainer's own."""
        self._ways.close()
        if self._engine is not None:
            self._engine.close()
        self._held.close()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within it the server is no other trainer's, or it is a VLLMServerError; afterwards it may
        be."""
        from_main_process(self._hold)
        try:
            yield
        finally:
            self._held.close()

    # The first process

    def _hold(self) -> None:
        self._held.close()  # also that of a server that is gone
        urls = [one.base_url for one in self._first_engine.members]
        self._held.enter_context(weights_held(*urls))

    @property
    def _first_engine(self) -> VLLMServerEngine:
        assert self._engine is not None  # on the first process alone
        return self._engine

    def _connect(self) -> None:
        self._engine, self.sleep_level, self._state = self._setup.open(self._tokenizer)
        self._hold()
        self._ways.connect(self._engine, self.sleep_level)

    @property
    def _requests_run(self) -> bool:
        return any(one.future is not None and not one.future.done() for one in self._begun)

    def _recover(self, error: VLLMServerError) -> VLLMServerError | None:
        """Start the server again if it is gone and this trainer's own; else the error to raise."""
        engine = self._first_engine
        server = engine.server
        if isinstance(error, StuckTransferError) or server is None:
            return error  # another server would not help, or it is not ours to start again
        if not engine.is_down(within_seconds=5.0):
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
            self._first_engine.close()
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

        parts: dict[Request, tuple[str, Callable[[VLLMServerEngine], None]]] = {
            Request.SLEEP: ("server_sleep", lambda engine: engine.sleep(self.sleep_level)),
            Request.WAKE_WEIGHTS: ("server_wake", lambda engine: engine.wake_up("weights")),
            Request.WAKE_CACHE: ("server_wake", lambda engine: engine.wake_up("kv_cache")),
        }
        part, of_engine = parts.get(request, ("weight_sync", None))

        def action() -> None:
            if of_engine is None:
                self._ways.send(self._requests_run)
            elif self._engine is not None:  # on the first process alone
                of_engine(self._engine)

        with self._timer.part(part):
            if request in (Request.WAKE_WEIGHTS, Request.WAKE_CACHE):
                # What the trainer has freed is still its own, to be used again: give it back.
                clear_device_cache(garbage_collection=True)
                self.accelerator.wait_for_everyone()
            done = self._attempt(action)
        # A new server is awake, with the weights of its folder.
        self._state = after if done else ServerState()
        if done and request is Request.SEND_WEIGHTS:
            self.version = self.num_updates()
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
        return from_main(answers)[0]

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
                failed, failure = True, self._recover(error)
        except Exception as error:
            failed, failure = True, error
        failed = from_main(failed)
        raise_alike(failure, VLLMServerError, _ASKING)
        return not failed

    def _connect_everywhere(self) -> None:
        failure = None
        if self.accelerator.is_main_process:
            try:
                self._connect()
            except Exception as error:
                failure = error
        raise_alike(failure, VLLMServerError, _ASKING)
