"""Direct preference optimisation (DPO) on Anthropic's HH pairs from a recipe.

accelerate launch recipes/dpo.py --config recipes/llama-3.1-8b/dpo.yaml [--key value ...]
"""

from trl_r1zero.commands.training import train

if __name__ == "__main__":
    train("dpo", __doc__)
