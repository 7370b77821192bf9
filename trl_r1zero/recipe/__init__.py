"""Recipes: YAML files and command lines that become the dataclasses of a run."""

from .parsing import ParsedRecipe, parse_recipe
from .yaml_files import RecipeError

__all__ = ["ParsedRecipe", "RecipeError", "parse_recipe"]
