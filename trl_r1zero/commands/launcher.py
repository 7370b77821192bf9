"""accelerate's launcher in this process, without its tracebacks: the processes that train say
themselves what was wrong, and how to go on."""

import logging
import os
import signal
import subprocess
from collections.abc import Sequence

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from trl_r1zero.common.stopping import LAUNCHER

# That a process failed, and which settings a configuration leaves to accelerate.
_TALKATIVE = ("torch.distributed.elastic.multiprocessing.api", "accelerate.commands.launch")


def launch(arguments: Sequence[str]) -> int:
    """Launch as the arguments of `accelerate launch` say.

    Returns:
        0, or the exit status of the first process that failed: 128 + n after signal n.
    """
    os.environ[LAUNCHER] = str(os.getpid())
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    status = 0
    try:
        launch_command(launch_command_parser().parse_args(list(arguments)))
    except subprocess.CalledProcessError as error:
        status = error.returncode
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
    except SignalException as error:
        status = -error.sigval
    except KeyboardInterrupt:
        status = -signal.SIGINT
    return status if status >= 0 else 128 - status
