"""One process of bench/memory.py: `make` writes a contender's file, `hold` loads it and tells what it then holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvmopt.options import run

from .cases import Case

_CALLS = 10


def resident() -> int:
    """Bytes of this process that are in memory: private and shared, mapped files among them (Linux)."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Rss:")) * 1024


def make(request: dict[str, Any]) -> None:
    """Writes the file, and the example inputs beside it as arrays."""
    import numpy as np

    path, case = Path(request["path"]), Case.from_json(request["case"])
    model = case.options.load(case.spec)
    if case.peer is not None:
        from .peers.onnxruntime import export

        export(model, path)
    else:
        from tvmopt.export import export_model

        export_model(case.spec, path, variant=case.contender, options=case.options)
    size = sum(file.stat().st_size for file in path.parent.iterdir())
    np.savez(_inputs(path), *(x.detach().numpy() for x in model.example_inputs))
    print(json.dumps({"file_bytes": size}))


def hold(request: dict[str, Any]) -> dict[str, int]:
    """Resident bytes after each step of `memory.STEPS`."""
    import numpy as np

    path, case, found = Path(request["path"]), Case.from_json(request["case"]), {}
    arrays = [np.ascontiguousarray(array) for array in np.load(_inputs(path)).values()]
    if case.peer is not None:
        import onnxruntime  # noqa: F401

        from .peers.onnxruntime import open_session

        found["imported"] = resident()
        session = open_session(path, case.threads)
        names = [node.name for node in session.get_inputs()]
        call = lambda: session.run(None, dict(zip(names, arrays, strict=True)))  # noqa: E731
    else:
        import tvm  # noqa: F401

        import tvmopt
        import tvmopt.runtime.artifact

        found["imported"] = resident()
        compiled = tvmopt.load(path, threads=case.threads)
        call = lambda: compiled(*arrays)  # noqa: E731
    found["loaded"] = resident()
    for _ in range(_CALLS):
        call()
    found["called"] = resident()
    return found


def _inputs(path: Path) -> Path:
    return path.with_name("inputs.npz")


def main(argv: Sequence[str] | None = None) -> int:
    """`make` or `hold`, and the request."""
    step, request = sys.argv[1:] if argv is None else argv
    if step == "make":
        make(json.loads(request))
    else:
        print(json.dumps(hold(json.loads(request))))
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
