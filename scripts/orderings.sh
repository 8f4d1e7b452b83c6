#!/usr/bin/env bash
# What the papers say of architectures, asked again by exams.
#   scripts/orderings.sh [NAME ...]     parity, group, recall, copying, mad; without a name all
# Further overrides of every exam in EXAM, such as EXAM="exam.seeds=1 models=[gla_64]"; they come last.
set -euo pipefail
out=${OUT:-runs/orderings}
seqzoo=${SEQZOO:-seqzoo}

# ask NAME KEY=VALUE ...: an exam without speed, in a folder of its own.
ask() {
  # shellcheck disable=SC2086
  $seqzoo exam exam.speed=false hydra.run.dir="$out/$1" --config-dir "$out/models" "${@:2}" ${EXAM:-} ||
    { failed=$? && [ $failed = 1 ]; } # a cell failed: the other questions are asked
}

# variant NAME FAMILY KEY VALUE: a family in another setting, as a model of that name.
variant() {
  mkdir -p "$out/models/model"
  printf '# @package _global_\ndefaults:\n  - %s\nmodel:\n  %s: %s\n' "${@:2}" >"$out/models/model/$1.yaml"
}

parity() { # steps with rates below 1, and up to 2
  variant deltanet_beta2 deltanet beta_max 2.0
  variant gated_deltanet_beta2 gated_deltanet beta_max 2.0
  ask parity exam.abilities=[parity] \
    models=[rnn,lstm,slstm,transformer,deltanet,deltanet_beta2,gated_deltanet,gated_deltanet_beta2]
}

group() { # the permutations of three things
  variant deltaproduct_1 deltaproduct steps 1
  variant deltaproduct_2 deltaproduct steps 2
  ask group exam.abilities=[tracking] models=[rnn,lstm,transformer,deltaproduct_1,deltaproduct_2]
}

recall() { # against the bytes of the state, at four sizes
  local models=() dim family
  for family in lstm linear_transformer gla deltanet mamba2 transformer; do
    for dim in 16 32 64 128; do
      variant "${family}_$dim" "$family" dim "$dim"
      models+=("${family}_$dim")
    done
  done
  ask recall exam.abilities=[mqar] exam.parameters=null "models=[$(IFS=,; echo "${models[*]}")]"
}

copying() { ask copying exam.abilities=[copying] models=[lstm,transformer,gla,deltanet,mamba2,rwkv7]; }

mad() {
  ask mad exam.parameters=null model.dim=128 models=[transformer,gla,deltanet,mamba2] \
    exam.abilities=[mad_compression,mad_fuzzy_recall,mad_recall,mad_memorization,mad_noisy_recall,mad_selective_copying]
}

failed=0
mkdir -p "$out/models"
questions="parity group recall copying mad"
# shellcheck disable=SC2086
[ $# -gt 0 ] || set -- $questions
for name; do
  [[ " $questions " == *" $name "* ]] ||
    { echo "orderings.sh: $name: no such question: give some of $questions" >&2 && exit 2; }
done
for name; do "$name"; done
exit $failed
