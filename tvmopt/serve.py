"""`python -m tvmopt.serve`: lends this machine to those who tune elsewhere (`tvmopt.tune --runner rpc`).

It is TVM's RPC server with three differences. It tells what machine it is. Its kernels run on as many threads as this
process may use, unpinned, where TVM's own would take half of them. And it outlives what it runs: TVM's ends its
listening thread when a candidate crashes, and goes on with one that hangs, for the rest of the session, when whoever
waited for it is gone.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tvmopt.errors import TargetError, TvmoptError, UsageError, one_line
from tvmopt.options import Parser, make_parser, positive_int, run

# A session's process gets so long to end by itself when its client has left.
_GRACE_S = 1.0


def facts(kind: str, threads: int) -> str:
    """This machine's CPU (`llvm`) or GPU (`cuda`) as JSON: `{"machine", "tvm"}`, or `{"error"}`."""
    from tvmopt.machine import detect, detect_gpu
    from tvmopt.tuning.manifest import versions

    try:
        machine = detect_gpu(threads) if kind == "cuda" else detect(threads)
        if machine is None:
            raise TargetError("a server has no CUDA GPU")
        if kind == "cuda":
            from tvmopt.runtime.gpu import runtime_missing

            missing = runtime_missing()
            if missing is not None:
                raise TargetError(f"on a server: {missing}")
    except TvmoptError as error:
        return json.dumps({"error": one_line(error)})
    return json.dumps({"machine": asdict(machine), "tvm": versions()["tvm"]})


def serve(tracker: tuple[str, int], key: str, listening: socket.socket, address: str | None, threads: int) -> None:
    """Serves one session after the other, until it is interrupted. `address`: what the tracker tells others."""
    import tvm_ffi
    from tvm.rpc import server

    from tvmopt.graph import gpu_compiler

    def provide(digest: str, code: Any) -> None:
        gpu_compiler.provide(digest, bytes(code))

    tvm_ffi.register_global_func("tvmopt.machine", lambda kind: facts(kind, threads), override=True)
    tvm_ffi.register_global_func("tvmopt.provide", provide, override=True)
    # For source whose code nobody provides.
    gpu_compiler.use_own_compiler()
    # Of the version of TVM that is pinned: the loop that talks to the tracker is its own, sessions are ours.
    server._serving = _session
    # Else a line for every candidate.
    server.logger.setLevel(logging.WARNING)
    server._listen_loop(listening, listening.getsockname()[1], key, tracker, "", address)


def _session(connection: socket.socket, _address: Any, options: dict[str, float], load_library: str) -> None:
    """One client's session, in a process of its own, which is ended when the client is gone or its time is over."""
    from tvm.support import utils

    folder = utils.tempdir()
    child = multiprocessing.get_context("fork").Process(
        target=_serve, args=(connection, load_library, folder), daemon=True
    )
    child.start()
    ends = time.monotonic() + options.get("timeout", float("inf"))
    poller = select.poll()
    poller.register(child.sentinel, select.POLLIN)
    # Tells of a client that left though something it sent is still unread.
    poller.register(connection, select.POLLRDHUP)
    while child.is_alive() and time.monotonic() < ends and not poller.poll(1000):
        pass
    child.join(_GRACE_S)
    if child.is_alive():
        child.kill()
        child.join()
    folder.remove()
    connection.close()


def _serve(connection: socket.socket, load_library: str, folder: Any) -> None:
    """The session's process."""
    from tvm.rpc import server

    # Which ends it at once: it seldom is in Python, where the server's own handler would act.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    server._serve_loop(connection, load_library, folder)


def parser() -> Parser:
    """The command line."""
    made = make_parser(
        "serve", "tvmopt.serve",
        "Lends this machine to those who tune elsewhere with `--runner rpc`, through TVM's RPC tracker. Whoever "
        "reaches its port can run programs here: use it in a network you trust. Ctrl-C ends it.",
        ["--tracker HOST:9190 --key epyc", "--tracker HOST:9190 --key epyc-1 --threads 1"],
    )  # fmt: skip
    made.add_argument("--tracker", required=True, metavar="HOST:PORT",
                      help="TVM's tracker: python -m tvm.exec.rpc_tracker")  # fmt: skip
    made.add_argument("--key", required=True, metavar="NAME", help="what machines of this kind are asked for by")
    made.add_argument("--threads", type=positive_int, help="of its kernels; by default this process's cores")
    made.add_argument("--host", default="0.0.0.0", help="the address to listen at")
    made.add_argument("--port", type=int, default=0, help="the port to listen at; 0 for any that is free")
    made.add_argument("--address", metavar="HOST", help="what others reach this machine by, if not by what it "
                      "reaches the tracker from")  # fmt: skip
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = parser().parse_args(argv)
    # Before TVM is loaded, which would ask torch whether there is a GPU: that starts CUDA, and in a process forked from
    # one that has, as sessions' are, CUDA does not start. Sessions exchange no tensors with torch.
    os.environ["TVM_FFI_DISABLE_TORCH_C_DLPACK"] = "1"
    from tvmopt.machine import available_cores, detect, threads_environment
    from tvmopt.tuning.fleet import Fleet

    fleet = Fleet.parse(args.tracker, args.key)
    threads = args.threads or available_cores()
    machine = detect(threads)
    # Before TVM starts a thread: what sessions' processes inherit.
    os.environ.update(threads_environment(threads))
    fleet.summary()
    try:
        listening = socket.create_server((args.host, args.port))
    except (OSError, OverflowError) as error:
        raise UsageError(f"--host {args.host} --port {args.port}: cannot listen there ({error})") from None
    print(f"serving {machine.describe()} as {args.key} to {args.tracker}, at port {listening.getsockname()[1]}")
    sys.stdout.flush()
    serve((fleet.host, fleet.port), args.key, listening, args.address, threads)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
