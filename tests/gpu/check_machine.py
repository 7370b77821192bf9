"""What a check ran on, asked in a process of its own: `python check_machine.py cuda`.

Whoever asks CUDA for a device's name has a context on it, of some hundred MiB; the check's own
process is to have none.
"""

import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def ask_about_machine(device: str) -> dict[str, Any]:
    """As `machine`, from a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    about: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return about


def machine(device: str) -> dict[str, Any]:
    """Versions, commit, and the device: its name, its bytes, the driver."""
    import torch

    from trl_r1zero.evaluation.environment import environment

    facts = environment()
    about = {name: facts[name] for name in ("commit", "packages", "platform", "python", "started")}
    about |= {"date": time.strftime("%Y-%m-%d"), "device": device, "driver": driver_version()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "device_name": properties.name,
            "device_bytes": properties.total_memory,
            "num_devices": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
        }
    else:
        name = f"CPU ({platform.machine()})"
        about |= {"device_name": name, "device_bytes": None, "num_devices": 0, "cuda": None}
    return about


def driver_version() -> str | None:
    """The NVIDIA driver's; None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    print(json.dumps(machine(sys.argv[1])))
