"""A project of one's own, to edit: `trl-r1zero init`.

trl-r1zero init my_project
cd my_project && trl-r1zero grpo --config grpo.yaml    # on a CPU
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .errors import exit_on

TEMPLATES = Path(__file__).parent / "project"
SUFFIX = ".template"


def main(argv: Sequence[str] | None = None, program: str = "trl-r1zero init") -> None:
    """Write a project: data, task, prompt, reward, recipe, test, and a small untrained model."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Write a project to edit: ten rows of data, a task, a prompt, a reward, a "
        "recipe for GRPO, a test, and a tiny untrained model, so that it trains on a CPU.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", help="a new one, or an empty one")
    args = parser.parse_args(argv)
    folder = Path(args.folder)
    with exit_on(program, ValueError, OSError):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} is there already, and not empty; name a new folder")
        write_project(folder)
    print(
        f"{folder} is a project. Its README.md says what is where. To begin:\n"
        f"  cd {folder}\n  trl-r1zero grpo --config grpo.yaml"
    )


def write_project(folder: Path) -> None:
    """Write the project's files into a folder, which is made if need be."""
    from trl_r1zero.recipe.embedded_model import save_embedded_model

    folder.mkdir(parents=True, exist_ok=True)
    number = save_embedded_model(folder / "model", hidden_size=64, num_layers=2)
    for template in sorted(TEMPLATES.glob(f"*{SUFFIX}")):
        text = template.read_text(encoding="utf-8")
        if template.name.startswith(("README", "grpo")):
            text = text.format(name=folder.resolve().name, parameters=number)
        (folder / template.name.removesuffix(SUFFIX)).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
