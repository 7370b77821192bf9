"""What must hold before a run: the versions of what this package builds on, and a model's folder.

Private methods of TRL's trainers are overridden here, so that a neighbouring version may train on
something else without an error. Recipes call `check_requirements` first; an import does not.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.specifiers import SpecifierSet

# The same bounds as in pyproject.toml's dependencies.
REQUIREMENTS = {
    "torch": ">=2.11",
    "trl": ">=1.16,<1.17",
    "transformers": ">=5.10.4,<5.25",
    "accelerate": ">=1.15",
}
# Of the extra `vllm`.
VLLM_REQUIREMENT = ">=0.28,<0.32"


class RequirementsError(RuntimeError):
    """A package is missing, or installed in a version that this package does not work with."""


def check_requirements() -> None:
    """Raise a RequirementsError unless torch, trl, transformers and accelerate are installed in
    admitted versions; pre-releases and local builds (such as 2.13.0+cpu) count by their number.

    The metadata of the installed distributions say so, in milliseconds and without an import.
    """
    wrong = {}
    for name, specifier in REQUIREMENTS.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            wrong[name] = "not installed"
            continue
        if not SpecifierSet(specifier).contains(installed, prereleases=True):
            wrong[name] = f"{installed} is installed"
    if wrong:
        lines = [f"  {name}: {is_}, needed is {REQUIREMENTS[name]}" for name, is_ in wrong.items()]
        arguments = " ".join(f'"{name}{REQUIREMENTS[name]}"' for name in wrong)
        raise RequirementsError(
            "trl_r1zero does not work with the versions that are installed:\n"
            + "\n".join(lines)
            + f"\nInstall them, from the project's folder:\n"
            f"  python -m pip install -c constraints.txt {arguments}"
        )


def check_model_path(model_name_or_path: str | None, key: str = "model_name_or_path") -> None:
    """Raise a ValueError, which names the recipe's key, where a model is not given, or is the path
    of a folder that is not there.

    See `is_local_path`.
    """
    if not model_name_or_path:
        raise ValueError(
            f"{key} is not set; give the path of a model's folder or a hub id, such as "
            "Qwen/Qwen2.5-Math-1.5B"
        )
    if is_local_path(model_name_or_path) and not Path(model_name_or_path).expanduser().is_dir():
        raise ValueError(
            f"{key}: there is no folder {model_name_or_path!r}; give one that exists, "
            "or a hub id (`trl-r1zero quickstart` makes those of the quickstart)"
        )


def is_local_path(model_name_or_path: str) -> bool:
    """Whether it is a path and no hub id, which is `name` or `owner/name`: whatever has more parts,
    begins like a path, or begins with a folder that is there."""
    first = model_name_or_path.rpartition("/")[0] or model_name_or_path
    looks_like_one = model_name_or_path.startswith((".", "/", "~"))
    return looks_like_one or model_name_or_path.count("/") > 1 or Path(first).is_dir()
