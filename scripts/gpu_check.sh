#!/usr/bin/env bash
# What only a GPU can tell, in under nine minutes, as one Markdown file: the laws and the tests on CUDA, the choice of
# forms, speed against length in bfloat16, and speed beside what a user would pick instead.
#   scripts/gpu_check.sh [FOLDER]        writes FOLDER/gpu_<date>.md (default: build)
# PYTHON: one with a torch for CUDA (default: python3).
# WHEELS: a folder of wheels, installed into a folder of this script's, where packages are missing and no network is:
#   pip wheel --no-deps -w FOLDER hydra-core omegaconf antlr4-python3-runtime==4.9.3 pydantic ... fla-core==0.6.0
# DEVICE=cpu: every part in small and without a GPU, to see that the script runs.
# A part that fails or takes too long is named at the end of the file, and the next one begins. Exit status: whether
# all parts passed.
set -uo pipefail
out=$(mkdir -p "${1:-build}" && cd "${1:-build}" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$PWD/src HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTORCH_NVML_BASED_CUDA_CHECK=1
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$WHEELS"/*.whl || exit 2
  export PYTHONPATH=$PYTHONPATH:$work/site
fi
report=$out/gpu_$(date +%Y-%m-%d_%H-%M-%S).md
failed=()

# part SECONDS TITLE COMMAND...: runs a command; its output goes to the file as text, or as it is where it is Markdown.
part() {
  local limit=$1 title=$2 began=$SECONDS status
  shift 2
  timeout -k 5 "$limit" "$@" >"$work/part" 2>&1
  status=$?
  { printf '\n## %s\n\n' "$title"
    case $status in
      0) echo "passed, $((SECONDS - began)) s" ;;
      124 | 137) echo "stopped after $limit s" ;;
      *) echo "failed with status $status, $((SECONDS - began)) s" ;;
    esac
    if grep -q '^|' "$work/part"; then printf '\n'; cat "$work/part"
    else printf '\n```text\n'; tail -n 40 "$work/part"; printf '```\n'; fi
  } >>"$report"
  [ $status = 0 ] || failed+=("$title")
  echo "$title: status $status, $((SECONDS - began)) s"
}

# bench SECONDS KEY=VALUE...: the tables of `seqzoo bench`; those that are measured after so many seconds.
bench() {
  timeout --foreground "$1" "$python" -m seqzoo bench "bench.device=$device" bench.dtype=bfloat16 bench.rounds=1 \
    bench.seconds=0.05 bench.max_step_seconds=5 hydra.run.dir="$work/bench" "${@:2}" >"$work/log" 2>&1
  shown $? "$work/bench/bench.md"
}

# peers SECONDS OPTION...: the table of scripts/peers; those pairs that are measured after so many seconds.
peers() {
  timeout --foreground -s INT "$1" "$python" scripts/peers/bench.py --device "$device" --rounds 5 --out "$work/peers.md" \
    "${@:2}" >"$work/log" 2>&1
  shown $? "$work/peers.md"
}

# shown STATUS FILE: the file, else the log; the status, in which being out of time (124) is none.
shown() {
  cat "$2" || { cat "$work/log"; return 1; }
  [ "$1" = 124 ] || return "$1"
}
export -f bench peers shown
export python work device

printf '# On a GPU, %s\n\n' "$(date +%F)" >"$report"
part 30 Machine "$python" -c '
import platform, sys
from importlib.metadata import PackageNotFoundError, version
import torch
print("python", platform.python_version(), "torch", torch.__version__, "CUDA", torch.version.cuda)
for name in ("triton", "fla-core"):
    try:
        print(name, version(name))
    except PackageNotFoundError:
        print(name, "is not installed")
if sys.argv[1] == "cuda":
    print(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory // 2**20, "MiB")
' "$device"

workers=()
"$python" -c 'import xdist' 2>/dev/null && workers=(-n "$(($(nproc) < 4 ? $(nproc) : 4))")
pytest=("$python" -m pytest -o addopts= -q -p no:cacheprovider -p no:benchmark "${workers[@]}")
if [ "$device" = cuda ]; then
  part 60 "fla's kernels against the definition" "${pytest[@]}" tests/test_gpu.py -k fla
  part 60 "A step waits for nothing; captured steps" "${pytest[@]}" tests/test_gpu.py -k "waits or captured or generating"
  part 100 "Laws and training" "${pytest[@]}" tests/test_gpu.py -k "laws or training"
  part 70 "Forms and captured steps" "$python" scripts/measure_cuda.py
  part 125 "Speed in bfloat16, 32,768 tokens a step" bash -c 'bench "$@"' bench 115 \
    models=[transformer,rwkv7,gla,linear_transformer,mamba2,lstm,deltanet,rwkv4] bench.lengths=[1024,8192,32768] \
    bench.modes=[train,decode] bench.parameters=10000000 bench.tokens=32768
  part 90 "Beside peers" bash -c 'peers "$@"' peers 80 --only lstm gru gpt-6x384 families-2048 rwkv4-decoding mamba2
else
  export OMP_NUM_THREADS=1
  part 150 "Choices for CUDA" "${pytest[@]}" tests/test_cuda.py -k "fla or captured"
  part 150 "Forms and prepared steps" "$python" scripts/measure_cuda.py --device cpu
  part 60 "Speed in bfloat16" bash -c 'bench "$@"' bench 50 models=[transformer,lstm,rwkv7] bench.lengths=[16,32] \
    bench.parameters=100000
  part 60 "Beside peers" bash -c 'peers "$@"' peers 50 --tiny --only lstm families-256
fi

{ printf '\n## What failed\n\n'
  if [ ${#failed[@]} = 0 ]; then echo nothing; else printf -- '- %s\n' "${failed[@]}"; fi
} >>"$report"
echo "written: $report ($SECONDS s)"
[ ${#failed[@]} = 0 ]
