#!/usr/bin/env bash
# TVM and what the tests need beside torch, for a GPU machine without a network, in files of at most 48 MiB.
#   bench/gpu/pack.sh FILE.tar.xz [--python-version 3.N] [--without numpy,...] [--part MIB]
# Takes six minutes and 3 GB of memory. It is about 75 MiB: FILE.tar.xz.1 and .2, whole where --part is as large. There:
#   mkdir DIR; cat FILE.tar.xz.* | tar xJ -C DIR; PYTHONPATH=DIR:CHECKOUT bench/gpu/run.sh check
# Packs the releases installed for PYTHON (default: python3), for its own version of Python or for the one named.
# Enough for all stages of run.sh. Assumed to be there: torch for CUDA with its Triton, CUDA 13 with nvcc and
# compute-sanitizer, and the driver. Where scipy is not, bench compares nothing; its JSON has what to compare elsewhere.
set -euo pipefail
[[ $# -ge 1 ]] || {
  sed -n '2,8p' "${BASH_SOURCE[0]}" | cut -c3- >&2
  exit 2
}
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/pack.py" "$@"
