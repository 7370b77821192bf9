"""The GPU check itself, on a CPU: its parts at a tiny shape, what stops it, and what it writes."""

import importlib
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import torch
from tiny_models import REPOSITORY

from trl_r1zero.generation.vllm_server import installed_vllm

SCRIPT = REPOSITORY / "tests" / "gpu" / "check.py"

# Hides vLLM from a process and its children, as if it were not installed.
WITHOUT_VLLM = """
import importlib.metadata, importlib.util, sys

def hides(name):
    return name.split(".")[0] == "vllm"

class Finder:
    def find_spec(self, name, path=None, target=None):
        if hides(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

find_spec, version = importlib.util.find_spec, importlib.metadata.version

def find_spec_of_others(name, package=None):
    return None if hides(name) else find_spec(name, package)

def version_of_others(name):
    if hides(name):
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

importlib.util.find_spec, importlib.metadata.version = find_spec_of_others, version_of_others
sys.meta_path.insert(0, Finder())
"""


@pytest.fixture
def module(monkeypatch):
    """Imports a module of the check; they import one another, and benchmarks/, by bare names."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    importlib.import_module("check")  # it extends the path
    yield importlib.import_module
    folders = (str(SCRIPT.parent), str(REPOSITORY / "benchmarks"))
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(folders):
            del sys.modules[name]


def run_check(
    *arguments: str, output: Path, first_on_path: Path | None = None
) -> tuple[int, dict, str]:
    """Exit status, JSON and table of the script on a CPU."""
    path = [str(p) for p in (first_on_path, os.environ.get("PYTHONPATH")) if p]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--device", "cpu", "--output", str(output), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    report = output / "gpu_check.json"
    assert report.is_file(), done.stderr
    table = (output / "gpu_check.md").read_text()
    return done.returncode, json.loads(report.read_text()), table


def by_name(report: dict) -> dict[str, dict]:
    return {part["name"]: part for part in report["parts"]}


# The parts


@pytest.fixture(scope="module")
def without_vllm(tmp_path_factory) -> tuple[int, dict, str]:
    folder = tmp_path_factory.mktemp("without_vllm")
    (folder / "sitecustomize.py").write_text(WITHOUT_VLLM)
    parts = "grpo,optimizer,memory,equal"
    return run_check("--only", parts, output=folder / "check", first_on_path=folder)


@pytest.mark.slow
def test_parts_without_a_server_need_no_vllm(without_vllm):
    code, report, table = without_vllm
    parts = by_name(report)
    statuses = {name: part["status"] for name, part in parts.items()}
    others = dict.fromkeys(("optimizer", "memory", "equal"), "passed")
    assert statuses == {"grpo": "skipped", **others}, report
    assert code == 0
    assert parts["grpo"]["reason"] == "vLLM is not installed"
    assert report["finished"] and report["planned"] == list(parts)
    assert "vllm" not in report["packages"] and report["packages"]["torch"]
    assert report["device"] == "cpu" and report["model_shape"] == "tiny"
    assert table.count("| passed |") == 3 and "vllm not installed" in table

    optimizer = parts["optimizer"]["figures"]
    assert len(optimizer["ratio"]) == 3
    assert optimizer["gradient_relative_l2"] < 1e-5
    # The share of the measured peak: 6 N operations a token, and some more for attention.
    for name, speed in optimizer["tokens_per_second"].items():
        least = 6 * optimizer["num_parameters"] * speed / (optimizer["matmul_tflops"] * 1e12)
        assert 0.9 * least < optimizer["matmul_share"][name] < 1.3 * least
    for case in parts["memory"]["figures"]["cases"].values():
        assert case["predicted"] == pytest.approx(case["measured"], rel=0.2)
    plain = parts["equal"]["figures"]["errors"]["float32"]["plain"]["gradient"]
    assert 0 < plain < 1e-5


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_parts_with_a_server_on_the_trainers_own_device(tmp_path):
    if installed_vllm() is None or not str(installed_vllm()).endswith("+cpu"):
        pytest.skip("vLLM's build for CPUs is not installed: make vllm")
    code, report, _ = run_check("--only", "grpo,sync,kill", output=tmp_path)
    parts = by_name(report)
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(
        ("grpo", "sync", "kill"), "passed"
    ), report
    assert code == 0
    for name in ("grpo", "kill"):
        steps = parts[name]["figures"]["steps"]
        assert [step["grpo_step"] for step in steps] == [1, 2, 3]
        assert all(step["seconds/server_sleep"] > 0 for step in steps)
        assert max(parts[name]["figures"]["probes"]) < 1e-5
    assert parts["kill"]["figures"]["killed_processes"]
    # The same run, but for the kill and the second start.
    assert parts["kill"]["figures"]["equal_rollouts"][0] == 1.0
    transfers = parts["sync"]["figures"]["transfers"]
    assert "gloo" in transfers and "nccl" not in transfers
    for found in transfers.values():
        assert 0 < found["min"] <= found["median"] <= found["max"]
        assert found["bytes"] == 4 * 640_640  # float32
        assert found["probe_after_change"] < 1e-5


def test_another_temperature_is_no_equal_path(module, tmp_path, monkeypatch):
    """Far beyond what the order of sums explains, in bfloat16 too."""
    training, setup = module("check_training"), module("check_setup")
    plain = training.PATHS["plain"]
    monkeypatch.setattr(training, "PATHS", {"plain": plain, "hot": {**plain, "temperature": 1.1}})
    recorder = setup.Recorder(tmp_path / "equal")
    with pytest.raises(setup.CheckFailed, match=r"gradient of hot is .* more than"):
        training.equal(setup.Setup("cpu", "tiny", tmp_path), recorder)


def test_what_equal_paths_may_differ_by(module):
    allowed = module("check_training").allowed_error
    assert allowed("gradient", 0.1, torch.bfloat16) == 0.2
    assert allowed("gradient", 0.0, torch.float32) == 4 * 2**-23
    assert allowed("loss", 0.0, torch.float32) == 16 * 2**-23


def test_a_prediction_that_is_a_quarter_off_fails(module):
    memory, setup = module("check_memory"), module("check_setup")
    memory.require_close("bf16", 119, 100)
    for predicted in (75, 125):
        with pytest.raises(setup.CheckFailed, match="allowed 1"):
            memory.require_close("bf16", predicted * 2**30, 100 * 2**30)


def test_micro_batches_follow_the_device(module):
    rows = module("check_training").rows_for
    assert [rows(gib) for gib in (23.6, 47.5, 79.1, 139.8)] == [1, 4, 8, 8]


def test_which_ways_of_weights_are_timed(module):
    ways = module("check_server").transfers_to_time
    assert ways(True, 1) == (["ipc", "gloo"], {"nccl": "needs two GPUs"})
    assert ways(True, 2) == (["nccl", "ipc", "gloo"], {})
    assert ways(False, 0) == (["ipc", "gloo"], {"nccl": "needs GPUs"})


def test_a_run_without_a_step_or_with_old_weights_fails(module, tmp_path):
    server, setup = module("check_server"), module("check_setup")
    line = {"reward": 0.5, "loss": 0.1, "grad_norm": 1.0, "seconds/server_sleep": 0.1}
    line["sampler_log_prob_diff/mean"] = 1e-6
    cpu = setup.Setup("cpu", "tiny", tmp_path)

    def check(*changes: dict, probes=(0.0, 0.0, 0.0)) -> list:
        lines = [{**line, "grpo_step": step} for step in (1, 2, 3)]
        for changed, change in zip(lines, changes, strict=False):
            changed.update(change)
        text = "".join(json.dumps(one) + "\n" for one in lines)
        (tmp_path / "metrics.jsonl").write_text(text)
        return server.check_run(tmp_path, probes, cpu)

    assert len(check()) == 3
    for changes, message in [
        ({"grpo_step": 7}, r"metrics of steps \[7, 2, 3\]"),
        ({"loss": float("nan")}, "loss is not finite"),
        ({"grad_norm": 0.0}, "no gradient in step 1"),
        ({"seconds/server_sleep": 0.0}, "did not sleep while step 1"),
        ({"sampler_log_prob_diff/mean": 0.01}, "differ by 0.01 nats"),
    ]:
        with pytest.raises(setup.CheckFailed, match=message):
            check(changes)
    with pytest.raises(setup.CheckFailed, match="2 probes in 3 steps"):
        check(probes=(0.0, 0.0))
    with pytest.raises(setup.CheckFailed, match=r"a probe differs by 0\.5 nats"):
        check(probes=(0.0, 0.5, 0.0))


# What runs the parts

PARTS_THAT_GO_WRONG = """
    import json, sys
    from pathlib import Path
    sys.path.insert(0, {folder!r})
    from check_report import exit_status, write_report
    from check_running import Part, run_parts

    output = Path(sys.argv[1])
    about = dict(packages={{}}, device_name="x", model_shape="tiny", commit=None, started="now")
    # A child in a session of its own, whose parent is gone, and one that ignores SIGTERM.
    hangs = '''
    import json, os, signal, subprocess, sys, time
    from pathlib import Path
    sleep = [sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(600)"]
    child = subprocess.Popen(sleep, start_new_session=True)
    orphan = subprocess.run(
        [sys.executable, "-c", "import subprocess, sys; print(subprocess.Popen("
         + repr(sleep) + ", start_new_session=True, stdout=subprocess.DEVNULL).pid)"],
        stdout=subprocess.PIPE, text=True, check=True)
    state = {{"figures": {{"pids": [os.getpid(), child.pid, int(orphan.stdout)]}}, "doing": "naps"}}
    Path(sys.argv[1], "parts", "hangs", "state.json").write_text(json.dumps(state))
    time.sleep(600)
    '''
    # What is there of the part before, when this one runs.
    looks = '''
    import json, sys
    from pathlib import Path
    report = json.loads(Path(sys.argv[1], "gpu_check.json").read_text())
    figures = {{"statuses": [p["status"] for p in report["parts"]], "done": report["finished"]}}
    table = Path(sys.argv[1], "gpu_check.md").read_text()
    figures["in_table"] = "| hangs |" in table and "| looks |" not in table
    state = {{"status": "passed", "summary": "saw it", "figures": figures}}
    Path(sys.argv[1], "parts", "looks", "state.json").write_text(json.dumps(state))
    '''
    import textwrap

    def part(name, code, limit=60, reason=None):
        code = textwrap.dedent(code)
        return Part(name, name, [sys.executable, "-c", code, str(output)], limit, reason)

    parts = [
        part("hangs", hangs, 8),
        part("looks", looks),
        part("fails", "raise SystemExit('no | such thing')"),
        part("dies", "import os; os.kill(os.getpid(), 9)"),
        part("says nothing", "pass"),
        part("unfit", "", reason="needs a zebra"),
    ]
    results = []

    def report(result):
        results.append(result)
        write_report(output, about, results, [one.name for one in parts])

    write_report(output, about, [], [one.name for one in parts])
    run_parts(parts, output / "parts", on_result=report)
    sys.exit(exit_status(results))
"""


def test_a_part_that_hangs_is_killed_with_its_children_and_stops_no_other(tmp_path):
    script = tmp_path / "run.py"
    code = textwrap.dedent(PARTS_THAT_GO_WRONG).format(folder=str(SCRIPT.parent))
    script.write_text(code)
    begun = time.monotonic()
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], check=False)
    assert time.monotonic() - begun < 60
    assert done.returncode == 1
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    parts = by_name(report)
    assert {name: part["status"] for name, part in parts.items()} == {
        "hangs": "timed_out",
        "looks": "passed",
        "fails": "failed",
        "dies": "failed",
        "says nothing": "failed",
        "unfit": "skipped",
    }
    assert parts["hangs"]["reason"] == "not done after 8 s while naps (log: hangs/log.txt)"
    pids = parts["hangs"]["figures"]["pids"]  # what it had found out until then is kept
    assert len(pids) == 3 and not any(psutil.pid_exists(pid) for pid in pids)
    # Results are there as soon as a part is done.
    seen = {"statuses": ["timed_out"], "done": False, "in_table": True}
    assert parts["looks"]["figures"] == seen
    assert parts["looks"]["summary"] == "saw it"
    assert "no | such thing" in parts["fails"]["reason"]
    assert "ended by signal 9" in parts["dies"]["reason"]
    assert "exit status 0; its last words: none" in parts["says nothing"]["reason"]
    assert parts["unfit"]["reason"] == "needs a zebra"
    assert report["finished"]
    table = (tmp_path / "gpu_check.md").read_text()
    assert table.count("\n| ") == 2 + len(parts) and r"no \| such thing" in table


def test_a_part_ends_when_the_check_is_killed(tmp_path):
    part = f"""
        import os, sys, time
        sys.path.insert(0, {str(SCRIPT.parent)!r})
        from check_running import die_with_parent
        die_with_parent()
        print(os.getpid(), flush=True)
        time.sleep(600)
    """
    check = f"""
        import sys
        sys.path.insert(0, {str(SCRIPT.parent)!r})
        from check_running import run_limited
        run_limited([sys.executable, "-c", {textwrap.dedent(part)!r}], 600, sys.stdout)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(check)], stdout=subprocess.PIPE, text=True
    )
    with process:
        pid = int(process.stdout.readline())
        assert psutil.pid_exists(pid)
        process.kill()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_time_of_all_parts_is_shared(module):
    allowed = module("check_running").seconds_allowed
    assert allowed(120, 50, None) == 120
    assert allowed(120, 50, 470) == 120
    assert allowed(120, 400, 470) == 70
    assert allowed(120, 500, 470) == 0


def test_a_part_that_time_has_run_out_for_is_skipped(module, tmp_path):
    running = module("check_running")
    part = running.Part("late", "late", ["false"], 60.0)
    (result,) = running.run_parts([part], tmp_path, total_seconds=1.0)
    assert (result.status, result.seconds) == ("skipped", 0)
    assert result.reason == "no time is left of the 1 s that all parts have together"


def test_on_one_gpu_all_parts_have_eight_minutes(module):
    check = module("check")
    assert sum(part.limit_seconds for part in check.PARTS) == check.TOTAL_SECONDS["cuda"] <= 475


def test_exit_status(module):
    report, running = module("check_report"), module("check_running")

    def status(*statuses: str) -> int:
        return report.exit_status([running.PartResult("a", "a", one) for one in statuses])

    assert [status("passed", "skipped"), status("passed", "timed_out"), status("failed")] == [
        0,
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("device", "vllm", "reason"),
    [
        ("cuda", "0.31.0", None),
        ("cpu", "0.31.0+cpu", None),
        ("cpu", None, "vLLM is not installed"),
        ("cuda", "0.31.0+cpu", "vLLM 0.31.0+cpu is a build for CPUs"),
        ("cpu", "0.31.0", "vLLM 0.31.0 is a build for GPUs"),
    ],
)
def test_which_parts_are_skipped(module, device, vllm, reason):
    check = module("check")
    reasons = {part.name: check.skip_reason(part, device, vllm) for part in check.PARTS}
    servers = ("grpo", "sync", "kill")
    assert reasons == {name: reason if name in servers else None for name in reasons}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "grpo,slep"], "unknown part 'slep'; there are grpo, sync, optimizer"),
        (["--device", "cpu", "--model_shape", "qwen2.5-math-1.5b"], "takes hours on a CPU"),
    ],
)
def test_wrong_arguments_are_named(module, capsys, arguments, message):
    with pytest.raises(SystemExit):
        module("check").parse(arguments)
    assert message in capsys.readouterr().err
