"""Zero-shot evaluation from a recipe: the command `trl-r1zero eval`, without installing it.

python recipes/evaluate.py --config recipes/quickstart/eval.yaml [--key value ...]
"""

from trl_r1zero.commands.eval import main

if __name__ == "__main__":
    main(program="evaluate.py")
