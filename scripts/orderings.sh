#!/usr/bin/env bash
# What the papers say of architectures, asked again by small exams.
#   scripts/orderings.sh [NAME ...]     parity, group, recall, copying, mad; without a name all
set -euo pipefail
out=${OUT:-runs/orderings}
seqzoo=${SEQZOO:-seqzoo}
ask() { $seqzoo exam exam.speed=false hydra.run.dir="$out/$1" "${@:2}"; }

parity() {
  ask parity exam.abilities=[parity] models=[rnn,lstm,slstm,transformer,deltanet,gated_deltanet]
  ask parity_beta2 exam.abilities=[parity] models=[deltanet,gated_deltanet] model.beta_max=2.0
}

group() {
  ask group exam.abilities=[tracking] models=[rnn,lstm,transformer,deltaproduct] model.steps=1
  ask group_steps2 exam.abilities=[tracking] models=[deltaproduct] model.steps=2
}

recall() { # against the bytes of the state, at four sizes
  for dim in 16 32 64 128; do
    ask "recall_$dim" exam.abilities=[recall] exam.parameters=null exam.speed=true model.dim=$dim \
      models=[lstm,linear_transformer,gla,deltanet,mamba2,transformer]
  done
}

copying() { ask copying exam.abilities=[copying] models=[lstm,transformer,gla,deltanet,mamba2,rwkv7]; }

mad() {
  ask mad exam.parameters=null model.dim=128 models=[transformer,gla,deltanet,mamba2] \
    exam.abilities=[mad_compression,mad_fuzzy_recall,mad_recall,mad_memorization,mad_noisy_recall,mad_selective_copying]
}

[ $# -gt 0 ] || set -- parity group recall copying mad
for name; do "$name"; done
