#!/usr/bin/env bash
# The experiments of docs/sft.md and docs/expert_iteration.md, from the quickstart's base policy.
#
#   recipes/quickstart/experiments.sh sft                 # sizes, unfiltered and filtered
#   recipes/quickstart/experiments.sh expert_iteration    # G and epochs
#   SEEDS="0 1 2" BIN=.venv/bin recipes/quickstart/experiments.sh sft
#
# A run whose folder has its final model is left as it is; one that broke off goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
BIN=${BIN:-.venv/bin}
SEEDS=${SEEDS:-0 1 2}
RUNS=${RUNS:-runs/quickstart}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

launch() { # script, recipe, output folder, more arguments
	local script=$1 recipe=$2 folder=$3
	shift 3
	if [ -e "$folder/final/config.json" ]; then return; fi
	"$BIN/accelerate" launch "recipes/$script.py" --config "recipes/quickstart/$recipe.yaml" \
		--output_dir "$folder" --resume_from_checkpoint auto "$@"
}

case ${1:-} in
sft)
	for seed in $SEEDS; do
		for recipe in sft sft-filtered; do
			for size in 128 256 512 1024 all; do
				examples=()
				[ $size = all ] || examples=(--num_examples $size --subset_seed "$seed")
				launch sft $recipe "$RUNS/$recipe/$size-seed_$seed" --seed "$seed" "${examples[@]}"
			done
		done
	done
	"$BIN/python" -m trl_r1zero.report "$RUNS"/sft*/*-seed_* \
		--group_by num_examples filter_correct --output "$RUNS/sft.png"
	;;
expert_iteration)
	for seed in $SEEDS; do
		for variant in base G_4 G_16 epochs_2; do
			case $variant in
			base) settings=() ;;
			G_*) settings=(--group_size "${variant#G_}") ;;
			epochs_*) settings=(--sft_epochs_per_step "${variant#epochs_}") ;;
			esac
			launch expert_iteration expert_iteration \
				"$RUNS/expert_iteration/$variant-seed_$seed" --seed "$seed" "${settings[@]}"
		done
	done
	"$BIN/python" -m trl_r1zero.report "$RUNS"/expert_iteration/*-seed_* \
		--group_by group_size sft_epochs_per_step \
		--output "$RUNS/expert_iteration.png"
	;;
*)
	echo "usage: $0 sft | expert_iteration" >&2
	exit 2
	;;
esac
