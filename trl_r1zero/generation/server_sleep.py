"""The states of a vLLM server that sleeps while the trainer trains, and what may follow what.

On a device that both share, a step goes: sample, sleep, train, wake the memory of the weights, send
the weights, wake the key-value cache, sample. Sleeping gives up the memory of both; at level 1 the
server keeps a copy of its weights in the host's memory, at level 2 it forgets them.

A server that never sleeps goes through the same requests, but for three of them.
"""

from dataclasses import dataclass, replace
from enum import Enum


class Request(Enum):
    """What a trainer asks of a server."""

    SLEEP = "sleep"
    WAKE_WEIGHTS = "wake the memory of its weights"
    SEND_WEIGHTS = "take new weights"
    WAKE_CACHE = "wake its key-value cache"
    SAMPLE = "sample"


class Memory(Enum):
    """What of its device's memory a server has."""

    NOTHING = "asleep"
    WEIGHTS = "half awake, without its key-value cache"
    ALL = "awake"


# Request -> the memory that it wants, and the memory after it.
_STEPS = {
    Request.SLEEP: ({Memory.ALL}, Memory.NOTHING),
    Request.WAKE_WEIGHTS: ({Memory.NOTHING}, Memory.WEIGHTS),
    Request.SEND_WEIGHTS: ({Memory.WEIGHTS, Memory.ALL}, None),
    Request.WAKE_CACHE: ({Memory.WEIGHTS}, Memory.ALL),
    Request.SAMPLE: ({Memory.ALL}, None),
}


@dataclass(frozen=True)
class ServerState:
    """What a server has of its device's memory, and whether its weights are those that the trainer
    sent last. A server that has just started has those of its folder."""

    memory: Memory = Memory.ALL
    has_weights: bool = False

    def after(self, request: Request, sleep_level: int) -> "ServerState":
        """The state once a request has succeeded; a RuntimeError if it may not follow."""
        wanted, memory = _STEPS[request]
        if self.memory not in wanted:
            raise RuntimeError(
                f"a vLLM server that is {self.memory.value} cannot {request.value}; it has to be "
                f"{' or '.join(sorted(one.value for one in wanted))}"
            )
        if request is Request.SAMPLE and not self.has_weights:
            raise RuntimeError("a vLLM server without the trainer's weights cannot sample for it")
        forgets = request is Request.SLEEP and sleep_level != 1
        has_weights = request is Request.SEND_WEIGHTS or (self.has_weights and not forgets)
        return ServerState(memory or self.memory, has_weights)

    def before_sampling(self) -> list[Request]:
        """What has to come first, in this order.

        The weights are sent before the key-value cache is there: their copies on the way need room.
        """
        wanted = {
            Request.WAKE_WEIGHTS: self.memory is Memory.NOTHING,
            Request.SEND_WEIGHTS: not self.has_weights,
            Request.WAKE_CACHE: self.memory is not Memory.ALL,
        }
        return [request for request, wants in wanted.items() if wants]

    def with_old_weights(self) -> "ServerState":
        """The state once the trainer's weights are others."""
        return replace(self, has_weights=False)
