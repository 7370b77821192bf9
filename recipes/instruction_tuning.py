"""Instruction tuning on packed instruction data from a recipe, by transformers' own Trainer.

accelerate launch recipes/instruction_tuning.py \
    --config recipes/llama-3.1-8b/instruction_tuning.yaml [--key value ...]
"""

from trl_r1zero.commands.training import train

if __name__ == "__main__":
    train("instruction_tuning", __doc__)
