"""The worker whose candidates run on another machine: built here, uploaded, called and timed through TVM's RPC.

A process of its own, as the local one's: it holds one session with one server for as long as it lives, and ends where
that session breaks. Timing is TVM's loop on the server: a call's way there and back is in no sample.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tvmopt.machine import CACHE_DIR, described_cpu
from tvmopt.nvcc import Code
from tvmopt.tuning.fleet import SESSION_S
from tvmopt.tuning.process import serve
from tvmopt.tuning.worker import Worker, compile_kernel

# The status this process ends with when its server is gone.
SERVER_GONE = 70
_FASTEST_FIRST = 1
# Seconds of one sample of a network.
SAMPLE_S = 0.01


class ServerError(Exception):
    """A server that cannot be used."""


class RemoteWorker(Worker):
    """What the process can be asked: what `Worker` can, `facts`, and `network` in place of two processes."""

    _is_remote = True

    def __init__(self, tracker: str, key: str, threads: int | None) -> None:
        super().__init__()
        self._tracker, self._key, self._threads = tracker, key, threads
        self._session: Any = None
        self._uploads = 0

    def facts(self, kind: str) -> dict[str, Any]:
        """The server's machine, as `machine.from_facts` takes it; `kind` is `llvm` or `cuda`."""
        session = self._connect()
        try:
            ask = session.get_function("tvmopt.machine")
        except AttributeError:
            return asdict(self._plain_facts(kind))
        import json

        from tvmopt.tuning.manifest import versions

        said = json.loads(ask(kind))
        if "error" in said:
            raise ServerError(said["error"])
        if said["tvm"] != versions()["tvm"]:
            raise ServerError(f"a server has TVM {said['tvm']}, this is {versions()['tvm']}: install the same on both")
        self._require_threads(said["machine"]["cores"] if kind == "llvm" else 1)
        return dict(said["machine"])

    def network(
        self, files: list[str], codes: list[tuple[str, bytes]], inputs: list[Any], rounds: int, kind: str
    ) -> list[dict[str, Any]]:
        """Runs networks (libraries for the virtual machine) on `inputs`, then times them in turns.

        `codes` are a GPU's machine code by the digest of its source.
        Of each, its `outputs` as arrays and `samples`, seconds a call in every round.
        """
        import tvm
        from tvm import relax

        session = self._connect()
        where = session.device("cuda" if kind == "cuda" else "cpu", 0)
        for source_digest, code in codes:
            session.get_function("tvmopt.provide")(source_digest, bytearray(code))
        found: list[dict[str, Any]] = []
        machines = []
        for file in files:
            vm = relax.VirtualMachine(self._load(session, Path(file)), where)
            vm.set_input("main", *(tvm.runtime.tensor(one, where) for one in inputs))
            vm.invoke_stateful("main")
            machines.append(vm)
            found.append({"outputs": [one.numpy() for one in _flat(vm.get_outputs("main"))], "samples": []})

        def watch(vm: Any, calls: int) -> float:
            return float(vm.time_evaluator("invoke_stateful", where, number=calls, repeat=1)("main").mean)

        calls = [max(1, round(SAMPLE_S / max(watch(vm, 3), 1e-7))) for vm in machines]
        for turn in range(rounds):
            order = range(len(machines)) if turn % 2 == 0 else reversed(range(len(machines)))
            for place in order:
                found[place]["samples"].append(watch(machines[place], calls[place]))
        return found

    def _built(self, target: Any, module: Any) -> Any:
        made: dict[str, Code] = {}
        executable = compile_kernel(target, module, made)
        session = self._connect()
        # What is compiled already is in the library.
        if target.kind.name == "cuda" and not made:
            _send_machine_code(session, executable, target)
        self._uploads += 1
        # A folder for this one alone: a worker is killed rather than asked to end, and would leave it behind.
        with tempfile.TemporaryDirectory(prefix="tvmopt-rpc-") as folder:
            path = Path(folder) / f"candidate{self._uploads}.{library_suffix(target)}"
            executable.export_library(str(path))
            return self._load(session, path)

    def _load(self, session: Any, path: Path) -> Any:
        session.upload(str(path))
        loaded = session.load_module(path.name)
        # A loaded library stays in memory without its file.
        session.remove(path.name)
        return loaded

    def _device(self, target: Any) -> Any:
        return self._connect().device("cuda" if target.kind.name == "cuda" else "cpu", 0)

    def _connect(self) -> Any:
        """The session, opened at the first call: a server that is free is waited for."""
        if self._session is None:
            from tvm import rpc

            host, _, port = self._tracker.rpartition(":")
            tracker = rpc.connect_tracker(host, int(port))
            self._session = tracker.request(self._key, session_timeout=SESSION_S, max_retry=1)
            if self._threads is not None:
                self._require_threads(self._threads)
        return self._session

    def _require_threads(self, threads: int) -> None:
        """Has the server's kernels run on `threads` threads."""
        self._session.get_function("runtime.config_threadpool")(_FASTEST_FIRST, threads)
        there = int(self._session.get_function("runtime.NumThreads")())
        if there != threads:
            raise ServerError(
                f"a server runs kernels on {there} of {threads} threads: start it as TVM_NUM_THREADS={threads} "
                "TVM_BIND_THREADS=0 python -m tvm.exec.rpc_server ..., or as python -m tvmopt.serve"
            )

    def _plain_facts(self, kind: str) -> Any:
        """The machine of a server that is TVM's own."""
        import tvm
        from tvm.target.codegen import llvm_get_cpu_features

        session = self._session
        if kind != "llvm":
            raise ServerError("a server of TVM's own does not tell what GPU it has: start it as python -m tvmopt.serve")
        cpu, triple = (str(session.get_function(f"target.llvm_get_system_{name}")()) for name in ("cpu", "triple"))
        threads = self._threads or int(session.get_function("runtime.NumThreads")())
        target = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})
        features = {str(name) for name in llvm_get_cpu_features(target)}

        def read(name: str) -> str | None:
            try:
                # Files of sysfs come as whole pages.
                return bytes(session.download(str(CACHE_DIR / name))).rstrip(b"\0").decode()
            except tvm.error.RPCError:
                return None

        return described_cpu(cpu, triple, features, threads, read)

    def is_there(self) -> bool:
        """Whether the server still answers; True before there is one."""
        if self._session is None:
            return True
        try:
            self._session.get_function("runtime.NumThreads")()
        except Exception:  # whatever a broken session says
            return False
        return True


class Guarded:
    """A worker's methods; the process ends where one failed because the server is gone."""

    def __init__(self, worker: RemoteWorker) -> None:
        self._worker = worker

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._worker, name)

        def call(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except Exception:
                if not self._worker.is_there():
                    # At once: what is left of the session would wait for the server while it is taken down.
                    sys.stderr.flush()
                    os._exit(SERVER_GONE)
                raise

        return call


def _flat(outputs: Any) -> list[Any]:
    return [one for item in outputs for one in _flat(item)] if isinstance(outputs, (tuple, list)) else [outputs]


def library_suffix(target: Any) -> str:
    """What to export for `target`: a library, or for another architecture, for which nothing here links, its objects,
    which the server links."""
    from tvmopt.machine import default_triple

    triple = str((target.host or target).attrs.get("mtriple", "")) or default_triple()
    return "so" if triple.split("-")[0] == default_triple().split("-")[0] else "tar"


def _send_machine_code(session: Any, executable: Any, target: Any) -> None:
    """Compiles a GPU's source here, where there is an nvcc, so that the server need not have one."""
    from tvmopt.graph.gpu_build import cuda_source
    from tvmopt.graph.gpu_compiler import digest
    from tvmopt.nvcc import compile_source, find_nvcc

    source = cuda_source(executable.mod)
    if find_nvcc() is not None:
        code = compile_source(source, str(target.attrs["arch"]))
        session.get_function("tvmopt.provide")(digest(source), bytearray(code.binary))


def main() -> None:
    """Serves on the process's own pipes."""
    import tvm  # noqa: F401  loaded before the first request, so that no time limit counts it

    threads = os.environ["TVMOPT_REMOTE_THREADS"]
    worker = RemoteWorker(os.environ["TVMOPT_TRACKER"], os.environ["TVMOPT_KEY"], int(threads) if threads else None)
    serve(Guarded(worker), worker.is_sound)


if __name__ == "__main__":
    main()
