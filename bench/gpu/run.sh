#!/usr/bin/env bash
# Everything that needs a GPU, in stages of under 8 minutes; what is done is not done again, so a stage that was cut
# short goes on where it was.
#   bench/gpu/run.sh check|kernels|tune|networks     results in bench/results/gpu (or $TVMOPT_GPU_RESULTS)
#   bench/gpu/run.sh --dry-run STAGE                 prints the commands of a stage
# PYTHON names the interpreter (default: python3).
# In this order: what networks measures as auto is what tune has found. A network, or kernel, that is measured before
# it is tuned is so once more after it (NAME-tuned). What matters most stands first in each stage.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
results=${TVMOPT_GPU_RESULTS:-bench/results/gpu}
python=${PYTHON:-python3}
limit=450
# The directory of this GPU's tuning logs.
slug='cuda-*'
dry=false

usage() {
  sed -n '2,8p' "${BASH_SOURCE[0]}" | cut -c3- >&2
  exit 2
}

if [[ ${1:-} == --dry-run ]]; then
  dry=true
  shift
fi
[[ $# -eq 1 ]] || usage

# once NAME COMMAND...: runs COMMAND unless it came to its end before; its output goes to NAME.txt. It has `at_most`
# seconds, and is not begun where the stage has fewer than `needs` left.
once() {
  local name=$1 left=$((limit - SECONDS)) status=0
  shift
  if $dry; then
    printf '%s: %s\n' "$name" "$*"
    return
  fi
  if [[ -e $results/$name.done ]]; then
    echo "$name: done before"
    return
  fi
  if ((left < ${needs:-20})); then
    echo "$name: no time left in this stage; the same command goes on from here"
    exit 3
  fi
  if ((left > ${at_most:-$left})); then
    left=$at_most
  fi
  echo "$name: $*"
  timeout --kill-after=10 "$left" "$@" >"$results/$name.txt" 2>&1 || status=$?
  tail -n 3 "$results/$name.txt"
  if [[ $status -eq 0 ]]; then
    touch "$results/$name.done"
  else
    echo "$name: FAILED with status $status, see $results/$name.txt"
    failed=1
  fi
}

failed=0

# Everything but wgmma, which is first and alone: where it waits for ever, nothing else does.
rules=tensor_core,split_k,product,winograd,sparse,depthwise,pool,rows,columns,elementwise
wgmma=tests/cuda/test_cuda_wgmma.py

check() {
  local proof=("$python" -m bench.cuda_proof --steps gpu) tool
  at_most=90 once check-wgmma "$python" -m pytest -q -x -m cuda "$wgmma"
  once check-tests "$python" -m pytest -q -m cuda tests "--ignore=$wgmma"
  once check-rules "${proof[@]}" --rule "$rules" --limit 8 --json "$results/check-rules.json"
  at_most=90 once check-rules-wgmma "${proof[@]}" --rule wgmma --limit 8 --json "$results/check-rules-wgmma.json"
  # Tens of times as slow: a case of what copies asynchronously and shares memory between threads.
  if command -v compute-sanitizer >/dev/null || $dry; then
    for tool in racecheck memcheck; do
      at_most=120 once "check-$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 \
        "${proof[@]}" --rule product,tensor_core --limit 1
      at_most=90 once "check-$tool-wgmma" compute-sanitizer --tool "$tool" --error-exitcode 9 \
        "${proof[@]}" --rule wgmma --limit 1
    done
  else
    echo "check-racecheck: there is no compute-sanitizer here: memory errors and races are not looked for"
  fi
}

# tuned LOG: "-tuned" where this GPU has a tuning log of that name (a pattern).
tuned() {
  if compgen -G "tuning_logs/$slug/$1/manifest.json" >/dev/null; then
    echo -tuned
  fi
}

# suffix DTYPE: how a log's name ends.
suffix() {
  [[ $1 == float32 ]] || echo "-$1"
}

# search NAME MODEL SECONDS ARGUMENTS...: a search of so many seconds. It also measures strategies and, at the end, the
# whole network, for which as much time again must be left.
search() {
  local name=tune-$1 model=$2 seconds=$3
  shift 3
  needs=$((2 * seconds + 30)) at_most=$((4 * seconds + 60)) once "$name" \
    "$python" -m tvmopt.tune "$model" --target cuda --time-budget "${seconds}s" "$@"
}

kernels() {
  local dtype images=(32x64x56x56,64,3,1,1 32x256x14x14,256,3,1,1)
  # By hand beside cuBLAS and cuDNN, TF32 off.
  for dtype in float32 float16; do
    kernel "gemm-$dtype" --dtype "$dtype" --op gemm --shape 4096x4096x4096 --variants manual,torch
  done
  for dtype in float16 float32; do
    kernel "conv2d-$dtype" --dtype "$dtype" --op conv2d --shape "${images[0]}" --shape "${images[1]}" \
      --variants manual,torch
  done
  # The three variants beside each other.
  for dtype in float32 float16; do
    searched gemm 4096x4096x4096 "$dtype"
    searched conv2d "${images[0]}" "$dtype"
  done
  kernel gemm-bfloat16 --dtype bfloat16 --op gemm --shape 4096x4096x4096 --shape 1024x1024x1024 --variants manual,torch
  # MobileNetV2's.
  kernel depthwise --dtype float16,float32 --op conv2d --shape 32x32x112x112,32,3,1,1,32 \
    --shape 32x144x56x56,144,3,2,1,144 --shape 32x384x14x14,384,3,1,1,384 --shape 32x960x7x7,960,3,1,1,960 \
    --variants manual,torch
  kernel rows --dtype float16,float32 --op softmax,layer_norm,max_pool2d --variants original,manual,torch
  kernel gemm-1024 --dtype float32,float16 --op gemm --shape 1024x1024x1024 --variants original,manual,torch
  local zeros=(--sparsity 0.5,0.8,0.9 --variants manual,torch)
  kernel sparse-gemm --op gemm --shape 1024x1024x1024 --shape 4096x4096x4096 "${zeros[@]}"
  kernel sparse-conv2d --op conv2d --shape 32x256x14x14,1024,1 --shape 32x1024x14x14,256,1 "${zeros[@]}"
}

# searched OP SHAPE DTYPE: a search for the kernel, then original, manual and auto beside PyTorch.
searched() {
  local name=$1-$2-$3 log
  search "$name" "bench/kernel_cases.py:$1-$2" 20 --dtype "$3"
  # The log of a model from a file has a digest in its name.
  log=$1-${2//,/_}-????????-b${2%%x*}$(suffix "$3")
  kernel "$name$(tuned "$log")" --op "$1" --shape "$2" --dtype "$3"
}

# kernel NAME ARGUMENTS...: python -m bench.kernels on the GPU, its result beside its output.
kernel() {
  local name=kernel-$1
  shift
  at_most=180 once "$name" "$python" -m bench.kernels --target cuda "$@" --limit 3 --json "$results/$name.json"
}

# Networks, dtypes and batches: the first two are those that Inductor's max-autotune is to be met by.
cases=(
  "resnet50 float16 1" "resnet50 float16 32"
  "resnet18 float16 1" "mobilenet_v2 float16 1" "resnet50 float32 1" "resnet18 float32 1" "mobilenet_v2 float32 1"
  "resnet18 float16 32" "mobilenet_v2 float16 32" "resnet50 float32 32" "resnet18 float32 32" "mobilenet_v2 float32 32"
)
first=2

tune() {
  local case model dtype batch
  for case in "${cases[@]}"; do
    read -r model dtype batch <<<"$case"
    search "$model-$dtype-b$batch" "torchvision:$model" 60 --dtype "$dtype" --batch "$batch"
  done
}

# Accuracy is that of the outputs, beside PyTorch's in fp64 (max_abs_err), and the top-1 must be PyTorch's: without a
# network there are neither trained weights of this size nor images to be right or wrong about.
networks() {
  local case
  for case in "${cases[@]:0:first}"; do
    network "$case" "" original,manual,auto torch,torch-channels-last
    network "$case" -graphs manual,auto none --cuda-graphs
    network "$case" -max-autotune auto inductor-max-autotune --cuda-graphs
  done
  for case in "${cases[@]:first}"; do
    network "$case" "" original,manual,auto torch,torch-channels-last
    network "$case" -graphs manual,auto none --cuda-graphs
  done
  for case in "${cases[@]}"; do
    network "$case" -inductor auto inductor --cuda-graphs
  done
  # Most of ResNet-50 is 1x1 convolutions, and of a batch these are large enough for the plan to take sparse.
  measure resnet50-float32-b32-pruned torchvision:resnet50 --batch 32 --sparsity 0,0.8,0.9 --method block \
    --variants manual --peers torch
  for case in "${cases[@]:first}"; do
    network "$case" -max-autotune auto inductor-max-autotune --cuda-graphs
  done
}

# network CASE KIND VARIANTS PEERS ARGUMENTS...: some contenders of a network, so that those that are done are kept.
# Those of different steps are not to be compared closely: that is why auto is beside each of Inductor's, as a CUDA
# graph, which Inductor makes too.
network() {
  local model dtype batch kind=$2 ours=$3 peers=$4 log needs=60
  read -r model dtype batch <<<"$1"
  shift 4
  log=$model
  [[ $batch == 1 ]] || log+=-b$batch
  # Nothing that was compiled before is taken, and a step that is cut short begins anew.
  [[ $kind != -max-autotune ]] || needs=300
  measure "$model-$dtype-b$batch$kind$(tuned "$log$(suffix "$dtype")")" "torchvision:$model" --dtype "$dtype" \
    --batch "$batch" --variants "$ours" --peers "$peers" "$@"
}

# measure NAME ARGUMENTS...: python -m bench, its result beside its output.
measure() {
  local name=$1
  shift
  once "$name" "$python" -m bench "$@" --target cuda --time-limit 2s --json "$results/$name.json"
}

# Before anything is run or written.
require_gpu() {
  $dry && return
  slug=$("$python" - <<'PY'
import sys

from tvmopt.machine import detect_gpu

found = detect_gpu()
if found is None:
    raise SystemExit(1)
print(found.describe(), file=sys.stderr)
print(found.slug)
PY
  ) || {
    echo "no CUDA GPU here: bench/gpu/run.sh --dry-run STAGE prints what would be run" >&2
    exit 1
  }
  mkdir -p "$results"
}

case $1 in
  check) require_gpu && check ;;
  kernels) require_gpu && kernels ;;
  tune) require_gpu && tune ;;
  networks) require_gpu && networks ;;
  *) usage ;;
esac
exit "$failed"
