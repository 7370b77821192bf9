"""What pyproject.toml cannot say: recipes and launch configurations stand once in the repository,
in folders of their own, and a wheel has them inside the package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("recipes", "accelerate_configs")
SUFFIXES = (".py", ".txt", ".yaml")


class BuildWithRecipes(build_py):
    """Also copies `FOLDERS`; an editable installation finds them beside the package instead."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in FOLDERS:
            for file in sorted(Path(folder).rglob("*")):
                if file.suffix in SUFFIXES:
                    target = Path(self.build_lib, "trl_r1zero", file)
                    self.mkpath(str(target.parent))
                    self.copy_file(str(file), str(target))


setup(cmdclass={"build_py": BuildWithRecipes})
