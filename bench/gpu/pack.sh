#!/usr/bin/env bash
# TVM and what it needs beside torch as one file, for a GPU machine without a network.
#   bench/gpu/pack.sh FILE.tar.xz      there: tar xf FILE.tar.xz -C DIR; PYTHONPATH=DIR:CHECKOUT bench/gpu/run.sh check
# Packs the wheels installed for PYTHON (default: python3): the GPU machine needs the same version of Python.
set -euo pipefail
python=${PYTHON:-python3}
[[ $# -eq 1 && $1 == *.tar.xz ]] || {
  sed -n '2,4p' "${BASH_SOURCE[0]}" | cut -c3- >&2
  exit 2
}
list=$(mktemp)
trap 'rm -f "$list"' EXIT
root=$("$python" - "$list" <<'PY'
import importlib.metadata
import sys
from pathlib import Path

names = ("apache-tvm", "apache-tvm-ffi", "ml_dtypes", "psutil", "cloudpickle", "tornado", "rich", "Pygments",
         "markdown-it-py", "mdurl", "typing_extensions")
files = []
for name in names:
    found = importlib.metadata.distribution(name)
    root = Path(str(found.locate_file("")))
    files += [str(file) for file in found.files or () if ".." not in file.parts and "__pycache__" not in file.parts]
Path(sys.argv[1]).write_text("\n".join(sorted(files)) + "\n")
print(root)
PY
)
XZ_OPT=-9 tar -cJf "$1" -C "$root" --files-from "$list"
printf '%s: %s MB\n' "$1" "$(($(wc -c <"$1") / 1000000))"
