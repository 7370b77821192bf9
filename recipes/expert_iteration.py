"""Expert iteration from a recipe.

accelerate launch recipes/expert_iteration.py --config recipes/quickstart/expert_iteration.yaml \
    [--key value ...]
"""

from trl_r1zero.commands.training import train

if __name__ == "__main__":
    train("expert_iteration", __doc__)
