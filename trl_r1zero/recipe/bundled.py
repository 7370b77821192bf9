"""Recipes and launch configurations that come with the package, found by name from anywhere.

They are `recipes/` and `accelerate_configs/` of the repository. A wheel has both inside the package
(setup.py), a clone beside it.
"""

import re
from itertools import takewhile
from pathlib import Path

from trl_r1zero.common.naming import did_you_mean

_PACKAGE = Path(__file__).resolve().parents[1]
_ROOT = _PACKAGE if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent
RECIPES = _ROOT / "recipes"
LAUNCH_CONFIGS = _ROOT / "accelerate_configs"


def find_recipe(path: str | Path) -> Path:
    """The file of that path; if there is none, the recipe of that name, such as `quickstart/grpo`
    (or `recipes/quickstart/grpo.yaml`); else the path itself."""
    return _find(path, RECIPES)


def find_launch_config(path: str | Path) -> Path:
    """The same for a configuration of `accelerate launch`, such as `two_gpu`."""
    return _find(path, LAUNCH_CONFIGS)


def names(folder: Path) -> list[str]:
    """What `find_recipe` (`RECIPES`) or `find_launch_config` (`LAUNCH_CONFIGS`) finds by name."""
    files = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    return sorted(path.as_posix() for path in files)


def not_found(path: str | Path, folder: Path = RECIPES) -> str:
    """What to do where there is neither a file nor a name, to be put behind the message."""
    name = str(path).removeprefix(f"{folder.name}/").removesuffix(".yaml")
    return f"{did_you_mean(name, names(folder))}; `trl-r1zero recipes` lists what comes by name"


def command_of(path: Path) -> str:
    """The command that a bundled recipe is for, as its folder or file name says."""
    is_experiment = path.is_relative_to(RECIPES / "experiments")
    return "sweep" if is_experiment else path.stem.split("-")[0].replace("_", "-")


def summary(path: Path) -> str:
    """What a file's first comment says in its first sentence, and behind a question in the next."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line[2:].strip() for line in takewhile(lambda one: one.startswith("# "), lines)]
    sentences = re.split(r"(?<=[.?])\s", " ".join(comment))
    return " ".join(sentences[: 1 + sentences[0].endswith("?")])


def _find(path: str | Path, folder: Path) -> Path:
    path = Path(path)
    if path.is_file() or path.is_absolute():
        return path
    inside = path.relative_to(folder.name) if path.parts[:1] == (folder.name,) else path
    for found in (folder / inside, folder / f"{inside}.yaml"):
        if found.is_file():
            return found
    return path
