#!/usr/bin/env bash
# Everything that needs a GPU, in stages of under 8 minutes; what is done is not done again, so a stage that was cut
# short goes on where it was.
#   bench/gpu/run.sh check|kernels|networks|tune     results in bench/results/gpu (or $TVMOPT_GPU_RESULTS)
#   bench/gpu/run.sh --dry-run STAGE                 prints the commands of a stage
# PYTHON names the interpreter (default: python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
results=${TVMOPT_GPU_RESULTS:-bench/results/gpu}
python=${PYTHON:-python3}
limit=450
dry=false

usage() {
  sed -n '2,6p' "${BASH_SOURCE[0]}" | cut -c3- >&2
  exit 2
}

if [[ ${1:-} == --dry-run ]]; then
  dry=true
  shift
fi
[[ $# -eq 1 ]] || usage

# once NAME COMMAND...: runs COMMAND unless it came to its end before; its output goes to NAME.txt.
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
  if ((left < 20)); then
    echo "$name: no time left in this stage; the same command goes on from here"
    exit 3
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

check() {
  once check-tests "$python" -m pytest -q -m cuda tests
  once check-rules "$python" -m bench.cuda_proof --steps gpu --limit 12 --json "$results/check-rules.json"
  if command -v compute-sanitizer >/dev/null || $dry; then
    once check-sanitizer compute-sanitizer --tool memcheck --error-exitcode 9 "$python" -m pytest -q -m cuda tests
    once check-races compute-sanitizer --tool racecheck --error-exitcode 9 "$python" -m pytest -q -m cuda tests
    once check-rules-sanitizer compute-sanitizer --tool memcheck --error-exitcode 9 \
      "$python" -m bench.cuda_proof --steps gpu --limit 3
    once check-rules-races compute-sanitizer --tool racecheck --error-exitcode 9 \
      "$python" -m bench.cuda_proof --steps gpu --limit 3
  else
    echo "check-sanitizer: there is no compute-sanitizer here: memory errors and races are not looked for"
  fi
}

# measure NAME ARGUMENTS...: python -m bench, its result beside its output.
measure() {
  local name=$1
  shift
  once "$name" "$python" -m bench "$@" --target cuda --json "$results/$name.json"
}

kernels() {
  local dtype
  for dtype in float32 float16; do
    kernel "gemm-$dtype" --dtype "$dtype" --op gemm --shape 4096x4096x4096 --shape 1024x1024x1024
    kernel "conv2d-$dtype" --dtype "$dtype" --op conv2d --shape 32x64x56x56,64,3,1,1 --shape 32x256x14x14,256,3,1,1 \
      --shape 32x96x56x56,96,3,1,1,96
  done
  local zeros=(--sparsity 0.5,0.8,0.9 --variants manual,torch)
  kernel sparse-gemm --op gemm --shape 1024x1024x1024 --shape 4096x4096x4096 "${zeros[@]}"
  kernel sparse-conv2d --op conv2d --shape 32x256x14x14,1024,1 --shape 32x1024x14x14,256,1 "${zeros[@]}"
}

# kernel NAME ARGUMENTS...: python -m bench.kernels on the GPU, its result beside its output.
kernel() {
  local name=kernel-$1
  shift
  once "$name" "$python" -m bench.kernels --target cuda "$@" --limit 3 --json "$results/$name.json"
}

networks() {
  local model dtype batch
  for model in resnet18 resnet50 mobilenet_v2; do
    for dtype in float32 float16; do
      for batch in 1 32; do
        measure "$model-$dtype-b$batch" "torchvision:$model" --dtype "$dtype" --batch "$batch" --time-limit 3s
      done
      measure "$model-$dtype-b1-graphs" "torchvision:$model" --dtype "$dtype" --peers none --cuda-graphs --time-limit 3s
    done
  done
  # Most of ResNet-50 is 1x1 convolutions, and of a batch these are large enough for the plan to take sparse.
  measure resnet50-float32-b32-pruned torchvision:resnet50 --batch 32 --sparsity 0,0.8,0.9 --method block \
    --variants manual --peers torch --time-limit 3s
}

tune() {
  local model
  for model in resnet18 resnet50; do
    once "tune-$model" "$python" -m tvmopt.tune "torchvision:$model" --target cuda --dtype float16 --time-budget 3m
  done
}

# Before anything is run or written.
require_gpu() {
  $dry && return
  "$python" - <<'PY' || {
from tvmopt.machine import detect_gpu

found = detect_gpu()
if found is None:
    raise SystemExit(1)
print(found.describe())
PY
    echo "no CUDA GPU here: bench/gpu/run.sh --dry-run STAGE prints what would be run" >&2
    exit 1
  }
  mkdir -p "$results"
}

case $1 in
  check) require_gpu && check ;;
  kernels) require_gpu && kernels ;;
  networks) require_gpu && networks ;;
  tune) require_gpu && tune ;;
  *) usage ;;
esac
exit "$failed"
