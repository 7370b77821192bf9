"""When the CPU may be taken where nobody asked for it."""

import pytest

from trl_r1zero.devices import MachineFacts, visible_devices
from trl_r1zero.devices.facts import UnusableGPUError, check_accelerator


def machine(variable: str | None = None, **facts) -> MachineFacts:
    environment = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    return MachineFacts((), visible_devices(environment, 0), **facts)


CUDA = {"torch_cuda": "13.0"}
GPU = {"has_nvidia_device": True}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        # The driver is too old, or does not answer.
        (
            machine(**CUDA, **GPU, driver="535.183.01"),
            r"built for CUDA 13\.0.*driver is 535\.183\.01; CUDA 13\.0 wants 580 or newer; update",
        ),
        (
            machine(torch_cuda="12.8", driver="470.82.01", **GPU),
            r"driver is 470\.82\.01; CUDA 12\.8 wants 525 or newer",
        ),
        (
            machine(torch_cuda="13.2", driver="535.183.01", **GPU),
            r"driver is 535\.183\.01; CUDA 13\.2 wants 580 or newer",
        ),
        # For a CUDA of which the oldest driver is not known here.
        (machine(torch_cuda="11.8", driver="470.82.01", **GPU), r"driver is 470\.82\.01\? `nvidia"),
        (machine(**CUDA, **GPU), "no NVIDIA driver that answers; CUDA 13.0 wants 580"),
        # The variable hides all, or names what is not there.
        (machine("", **CUDA, **GPU, driver="580.65"), "CUDA_VISIBLE_DEVICES is '', which hides"),
        (machine("-1", **CUDA, **GPU, driver="580.65"), "is '-1', which hides them all"),
        (machine("-1,0", **CUDA, **GPU, driver="580.65"), "is '-1,0', which hides them all"),
        (machine("7", **CUDA, **GPU, driver="580.65"), "is '7': is that device there"),
        # Something else, about which nothing is known here.
        (machine(**CUDA, **GPU, driver="580.65"), r"driver is 580\.65; CUDA 13\.0 wants 580 or"),
        # A container without the GPU that is asked for.
        (machine("0", **CUDA), "is '0', but this machine has none.*--gpus all"),
        (machine("GPU-8932f937", **CUDA), "is 'GPU-8932f937', but this machine has none"),
    ],
)
def test_a_gpu_that_cannot_be_used(facts, message):
    with pytest.raises(UnusableGPUError, match=f"{message}.*set use_cpu: true"):
        check_accelerator(facts, use_cpu=False)
    assert check_accelerator(facts, use_cpu=True) is None


@pytest.mark.parametrize(
    "facts",
    [
        MachineFacts.assume("cpu"),
        MachineFacts.assume("2x80GB"),
        machine(),
        machine("0"),  # a torch for CPUs, no GPU
        machine(**CUDA),  # pip's default torch on a laptop
        machine("", **CUDA),
        machine("-1", **CUDA),
        machine(other_accelerator="mps"),
        machine(**CUDA, **GPU, other_accelerator="xpu"),
    ],
)
def test_nothing_to_say(facts):
    assert check_accelerator(facts, use_cpu=False) is None


def test_a_torch_for_cpus_beside_a_gpu_is_warned_of():
    warning = check_accelerator(machine(**GPU, driver="580.65"), use_cpu=False)
    assert warning is not None
    assert "torch is built for CPUs" in warning
    assert check_accelerator(machine(**GPU), use_cpu=True) is None
