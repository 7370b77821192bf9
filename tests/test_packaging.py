"""What is built and started from the repository: site, image, wheel, cluster."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_models import REPOSITORY

from trl_r1zero.commands.launch import DESCRIPTIONS

PACKAGING = REPOSITORY / "packaging"
SCRIPTS = [PACKAGING / "check_wheel.sh", PACKAGING / "slurm" / "train.sbatch"]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load(PACKAGING / "docs" / "hooks.py")


# The site


class Loader(yaml.SafeLoader):
    """Without what mkdocs resolves itself."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def pages_of(entry) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = (part if isinstance(part, str) else next(iter(part.values())) for part in entry)
    return [page for part in parts for page in pages_of(part)]


def test_every_page_is_in_the_navigation():
    settings = yaml.load((REPOSITORY / "mkdocs.yml").read_text(), Loader)
    of_docs = [path.name for path in (REPOSITORY / "docs").glob("*.md")]
    pages = pages_of(hooks.navigation(settings["nav"]))
    assert sorted(pages) == sorted([*of_docs, *hooks.generated_pages()])


@pytest.mark.parametrize(
    ("link", "page", "there"),
    [
        ("[`place`](../trl_r1zero/devices/placement.py)", "vllm.md",
         "[`place`](api/devices.md#trl_r1zero.devices.placement)"),
        ("[base](trl_r1zero/data/tasks/base.py)", "index.md",
         "[base](api/data.md#trl_r1zero.data.tasks.base)"),
        ("[cli](../trl_r1zero/cli.py)", "grpo.md", "[cli](api/trl_r1zero.md#trl_r1zero.cli)"),
        ("[`runs`](../trl_r1zero/runs)", "grpo.md", "[`runs`](api/runs.md)"),
        ("[GRPO](docs/grpo.md#axes)", "index.md", "[GRPO](grpo.md#axes)"),
        ("[GRPO](grpo.md#axes)", "sft.md", "[GRPO](grpo.md#axes)"),
        ("[below](#axes)", "grpo.md", "[below](#axes)"),
        ("[TRL](https://example.org/trl)", "index.md", "[TRL](https://example.org/trl)"),
        ("[the runner](../leaderboard/run.py)", "leaderboard.md", "the runner"),
        ("![a plot](../leaderboard/x/accuracy.png)", "leaderboard.md",
         "![a plot](pictures/leaderboard/x/accuracy.png)"),
        ("```text\n[a](../b.py)\n```\n", "grpo.md", "```text\n[a](../b.py)\n```\n"),
    ],
)  # fmt: skip
def test_links_lead_within_the_site(link, page, there):
    assert hooks.site_links(link, page) == there


def test_every_link_into_the_reference_has_its_place():
    for path in [*(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "README.md"]:
        page = "index.md" if path.name == "README.md" else path.name
        for match in hooks.LINK.finditer(hooks.site_links(path.read_text("utf-8"), page)):
            if match[3].startswith("api/") and match[4]:
                layer = match[3].removeprefix("api/").removesuffix(".md")
                assert match[4].removeprefix("#") in hooks.modules_of(layer), match[0]


def test_no_page_links_out_of_the_site():
    for path in [*(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "README.md"]:
        page = "index.md" if path.name == "README.md" else path.name
        for match in hooks.LINK.finditer(hooks.site_links(path.read_text("utf-8"), page)):
            target = match[3]
            if target and "://" not in target and not target.startswith("pictures/"):
                known = target in hooks.generated_pages() or (REPOSITORY / "docs" / target).exists()
                assert known and ".." not in target, f"{path.name}: {match[0]}"


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml")
    drawn = hooks.mathml('<p>a <span class="arithmatex">\\(a &lt; b\\)</span></p>')
    assert drawn.startswith("<p>a <math") and drawn.endswith("</math></p>")
    assert "a_b" in hooks.mathml('<div class="arithmatex">\\[\\text{a\\_b}\\]</div>')
    assert "<mo>&#x0003C;</mo>" in drawn or "<mo>&lt;</mo>" in drawn


def test_formulas_of_docstrings():
    pytest.importorskip("griffe")
    as_markdown = load(PACKAGING / "docs" / "docstrings.py").as_markdown
    assert as_markdown("The sum :math:`a +\n    b`.") == "The sum $a + b$."
    block = as_markdown("It is\n\n    .. math:: a,\n        b\n\nhere.")
    assert "    $$a, b$$\n\nhere." in block
    assert as_markdown(".. math::\n\n    a\n    b\n\nhere.") == "\n$$a b$$\n\nhere."
    several = as_markdown(".. math:: a & b \\\\\n    c & d\n")
    assert several == "\n$$\\begin{split} a & b \\\\ c & d \\end{split}$$\n"


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    for name in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(name)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "compute_group_advantages" in (tmp_path / "api" / "functional.html").read_text()
    assert "<math" in (tmp_path / "dpo.html").read_text()


# Scripts and the image


def linter(name: str) -> str:
    """The program, of this machine or of this environment."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"there is no {name} here")
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_right(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)
    subprocess.run([linter("shellcheck"), str(script)], check=True)


def test_the_image_copies_what_the_build_needs():
    text = (PACKAGING / "Dockerfile").read_text(encoding="utf-8")
    copied = {
        word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()
    }
    needed = {"pyproject.toml", "setup.py", "README.md", "LICENSE", "trl_r1zero", "recipes"}
    assert needed | {"accelerate_configs", "constraints.txt"} <= copied
    subprocess.run([linter("hadolint"), str(PACKAGING / "Dockerfile")], check=True)


def test_a_job_starts_a_launcher_on_each_node(tmp_path):
    """With stand-ins for slurm's two programs and for ours, which say how they were called."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    programs = {
        "scontrol": 'echo "node-7"; echo "node-8"',
        "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "venv/bin/trl-r1zero": 'echo "$@"',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "VENV": str(tmp_path / "venv"),
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "node-[7-8]",
    }
    command = ["bash", str(SCRIPTS[1]), "grpo", "--config", "qwen2.5-math-1.5b/grpo"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines == [
        "grpo --config qwen2.5-math-1.5b/grpo --accelerate_config multi_node --num_processes 8 "
        f"--resume_from_checkpoint auto -- --num_machines 2 --machine_rank {rank} "
        "--main_process_ip node-7 --main_process_port 29845"
        for rank in (0, 1)
    ]
    assert lines[0].split()[0] in DESCRIPTIONS
