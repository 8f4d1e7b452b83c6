#!/usr/bin/env bash
# Runs everything docs/results.md reports, one after the other, and prints the tables; about two hours.
#   scripts/results.sh tinyshakespeare.txt     (without a file: from the hub)
set -euo pipefail
text=${1:+task.path=$1}
out=${OUT:-runs/results}
seqzoo=${SEQZOO:-seqzoo}
here=$(dirname "$0")

for model in rnn lstm gru transformer linear_transformer rwkv4 rwkv5 rwkv6 rwkv7 retnet gla deltanet mamba2 mingru minlstm; do
  $seqzoo train experiment=tinyshakespeare_$model $text hydra.run.dir="$out/tinyshakespeare_$model"
done
$seqzoo train experiment=tinyshakespeare_nanogpt $text hydra.run.dir="$out/tinyshakespeare_nanogpt"
for model in lstm transformer; do
  $seqzoo train experiment=numbers_$model hydra.run.dir="$out/numbers_$model"
  $seqzoo train experiment=numbers_$model task.limit=1000000 hydra.run.dir="$out/numbers_${model}_million"
done
$seqzoo compare "$out"/tinyshakespeare_* --metric val/stream_loss --out "$out/compare_tinyshakespeare"
$seqzoo compare "$out"/numbers_* --metric test/exact --out "$out/compare_numbers"
$seqzoo inspect "$out"/tinyshakespeare_{rnn,lstm,gru,transformer,linear_transformer,rwkv4} --out "$out/inspect"
python "$here"/cache_curve.py "$out"/tinyshakespeare_{transformer,linear_transformer,rwkv4,rwkv7} --out "$out/cache.svg"
