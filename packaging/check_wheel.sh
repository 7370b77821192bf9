#!/usr/bin/env bash
# Installs a wheel into an environment of its own and trains from it for two steps, in a folder
# without a clone:
#
#   packaging/check_wheel.sh PYTHON WHEEL CONSTRAINTS
#
# Everything is in a temporary folder, which is removed.
set -euo pipefail

python=$1
wheel=$(realpath "$2")
constraints=$(realpath "$3")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
unset PYTHONPATH
cd "$folder"

"$python" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check -c "$constraints" "$wheel" pytest
program=$folder/venv/bin/trl-r1zero

"$program" --version
names=$("$program" recipes)
grep -q "quickstart/grpo " <<< "$names"
"$program" grpo --help > /dev/null
"$program" init project
cd project
"$folder/venv/bin/python" -m pytest -q
"$program" grpo --config grpo.yaml --n_grpo_steps 2 --eval_every 2
"$program" runs --json | grep '"state": "finished"' > /dev/null
"$program" chat runs/first "3 + 4" --truth 7
"$program" grpo --config quickstart/grpo --model_name_or_path model --output_dir runs/second \
    --n_grpo_steps 2 --rollout_batch_size 32 --train_batch_size 32 --num_eval_examples 16
echo "$("$python" --version): the wheel installs, trains and answers"
