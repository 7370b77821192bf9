"""GRPO from a recipe.

accelerate launch recipes/grpo.py --config recipes/quickstart/grpo.yaml [--key value ...]
"""

from trl_r1zero.commands.training import train

if __name__ == "__main__":
    train("grpo", __doc__)
