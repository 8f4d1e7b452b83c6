#!/usr/bin/env bash
# Runs the recipes that docs/results.md reports, one after the other, and prints their tables; hours.
#   scripts/results.sh tinyshakespeare.txt [multi30k]     (a folder of train.en, train.de, val.en, ...)
set -euo pipefail
text=${1:+task.path=$1}
pairs=${2:-}
out=${OUT:-runs/results}
seqzoo=${SEQZOO:-seqzoo}
here=$(dirname "$0")

for model in rnn lstm gru transformer linear_transformer rwkv4 rwkv5 rwkv6 rwkv7 retnet gla deltanet mamba2 mingru minlstm \
  gated_deltanet kda deltaproduct hgrn2 rglru mamba3 mlstm slstm fox; do
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

if [ -n "$pairs" ]; then
  for recipe in multi30k_transformer multi30k_transformer_long; do
    $seqzoo train experiment=$recipe task.path="$pairs" hydra.run.dir="$out/$recipe"
  done
  $seqzoo train resume="$out/multi30k_transformer_long" trainer.max_epochs=92
  for model in transformer gru; do
    $seqzoo train experiment=multi30k_deen_$model task.path="$pairs" hydra.run.dir="$out/multi30k_deen_$model"
  done
  # Equal parameters, equal time.
  timed() {
    $seqzoo train experiment=multi30k_deen_transformer task.path="$pairs" trainer.max_epochs=null \
      trainer.max_seconds=240 trainer.eval_every=null trainer.sample_every=null schedule.warmup_steps=200 \
      hydra.run.dir="$out/timed/$1" "${@:2}"
  }
  timed transformer
  timed lstm_state model=lstm model.n_layers=2 architecture.bridge=state model.block=classic model.dim=384 optim.lr=0.002
  timed lstm_attention model=lstm model.n_layers=2 model.dim=256 optim.lr=0.002
  timed gru_attention model=gru model.n_layers=2 model.dim=272 optim.lr=0.002
  timed linear_decoder_only model=linear_transformer architecture=decoder_only model.n_layers=6 model.dim=272 optim.lr=0.001
  timed rwkv7_decoder_only model=rwkv7 architecture=decoder_only model.n_layers=6 model.dim=256 optim.lr=0.001
  $seqzoo compare "$out"/timed --metric test/bleu_tokenised --out "$out/compare_timed"
fi

# Strings from their end: attention, or the state alone.
reversals() {
  $seqzoo train architecture=encoder_decoder task=translation task.corpus=reverse task.batch_tokens=4096 optim.lr=0.003 \
    model.n_layers=1 trainer.max_seconds=210 trainer.eval_every=1000 trainer.sample_every=null \
    hydra.run.dir="$out/reverse/$1" "${@:2}"
}
for longest in 25 50; do
  reversals gru_attention_$longest model=gru model.dim=128 task.longest=$longest
  reversals lstm_state_$longest model=lstm architecture.bridge=state model.block=classic model.dim=256 task.longest=$longest
done
