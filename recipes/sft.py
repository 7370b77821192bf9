"""Supervised fine-tuning on reasoning traces from a recipe.

accelerate launch recipes/sft.py --config recipes/quickstart/sft.yaml [--key value ...]
"""

from trl_r1zero.commands.training import train

if __name__ == "__main__":
    train("sft", __doc__)
