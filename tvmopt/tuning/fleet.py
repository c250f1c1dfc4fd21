"""Machines to measure on, which TVM's RPC tracker knows under one key: who they are, and whether they are alike.

    python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port 9190         once
    python -m tvmopt.serve --tracker HOST:9190 --key NAME             on each machine

A server of TVM's own (`python -m tvm.exec.rpc_server`) serves for CPUs too. It is read through what TVM registers in
it, so its CPU's product name stays unknown, and a candidate that crashes takes it down for good.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from tvmopt.errors import FleetError, TargetError, UsageError, one_line
from tvmopt.machine import from_facts, threads_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmopt.machine import AnyMachine
    from tvmopt.options import BuildOptions
    from tvmopt.tuning.process import Process

# A tracker answers at once; a server that has not after so long measures for somebody else.
TRACKER_LIMIT_S = 5.0
FREE_LIMIT_S = 20.0
# A session this old is ended by the server, whatever it is at: so a machine comes back from a candidate that hangs.
SESSION_S = 600.0


@dataclass(frozen=True)
class Fleet:
    """All servers of `key` at the tracker `host`:`port`."""

    host: str
    port: int
    key: str

    @classmethod
    def parse(cls, tracker: str | None, key: str | None) -> Fleet:
        """From the command line's words.

        Raises:
            UsageError: one of them is missing, or the tracker is not HOST:PORT.
        """
        if not tracker or not key:
            raise UsageError("--runner rpc needs --tracker HOST:PORT and --key NAME")
        host, _, port = tracker.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(f"--tracker {tracker}: is not HOST:PORT")
        return cls(host, int(port), key)

    @property
    def tracker(self) -> str:
        """HOST:PORT."""
        return f"{self.host}:{self.port}"

    def summary(self) -> dict[str, Any]:
        """What the tracker says of its servers.

        Raises:
            FleetError: none answers there.
        """
        from tvm.rpc import base

        # Not TVM's own client: it tries for a minute where nothing listens.
        try:
            with socket.create_connection((self.host, self.port), timeout=TRACKER_LIMIT_S) as connection:
                connection.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
                (magic,) = struct.unpack("<i", base.recvall(connection, 4))
                if magic != base.RPC_TRACKER_MAGIC:
                    raise FleetError(f"--tracker {self.tracker}: what answers there is no TVM tracker")
                base.sendjson(connection, [base.TrackerCode.SUMMARY])
                _, said = base.recvjson(connection)
        except OSError as error:
            raise FleetError(
                f"--tracker {self.tracker}: no tracker answers there ({error.strerror or error}); start one: "
                f"python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port {self.port}"
            ) from None
        return dict(said)

    def servers(self) -> int:
        """How many servers have the key.

        Raises:
            FleetError: none has, or no tracker answers.
        """
        keys = [str(info["key"]).removeprefix("server:") for info in self.summary()["server_info"]]
        if self.key not in keys:
            others = f"it knows {', '.join(sorted(set(keys)))}" if keys else "it knows none"
            raise FleetError(
                f"--key {self.key}: the tracker at {self.tracker} has no server of that key, {others}; start one: "
                f"python -m tvmopt.serve --tracker {self.tracker} --key {self.key}"
            )
        return keys.count(self.key)

    def environment(self, threads: int | None) -> dict[str, str]:
        """What a process of `rpc_worker` reads, on top of how many threads it takes here."""
        from tvmopt.machine import available_cores

        return {
            **threads_environment(available_cores()),
            "TVMOPT_TRACKER": self.tracker,
            "TVMOPT_KEY": self.key,
            "TVMOPT_REMOTE_THREADS": str(threads or ""),
        }

    def machine(self, options: BuildOptions, note: Callable[[str], None]) -> AnyMachine:
        """The machine that all free servers are.

        Raises:
            FleetError: no server is free, one cannot be used, or two differ. TargetError: it is not what `options`
            name.
        """
        from tvmopt.tuning.process import Process, WorkerError, WorkerTimeout

        count = self.servers()
        environment = self.environment(options.threads)
        # All at once: a server has one session at a time, so each process gets another.
        processes = [Process("tvmopt.tuning.rpc_worker", environment) for _ in range(count)]
        found: list[AnyMachine] = []
        try:
            for process in processes:
                try:
                    found.append(from_facts(first_facts(process, options.kind, FREE_LIMIT_S)))
                except WorkerTimeout:
                    continue
                except WorkerError as error:
                    raise FleetError(f"--key {self.key}: {one_line(error).partition(': ')[2]}") from None
        finally:
            for process in processes:
                process.close()
        if not found:
            raise FleetError(f"--key {self.key}: none of {count} servers is free; wait until they are")
        if len(found) < count:
            note(f"{count - len(found)} of {count} servers of {self.key} are not free: the run goes on without them")
        self._require_equal(found)
        _require_named(found[0], options)
        return found[0]

    def _require_equal(self, machines: list[AnyMachine]) -> None:
        first = asdict(machines[0])
        for other in machines[1:]:
            different = [name for name, value in asdict(replace(other, assumed=())).items()
                         if name != "assumed" and value != first[name]]  # fmt: skip
            if different:
                name = different[0]
                raise FleetError(
                    f"--key {self.key}: its servers are unequal machines ({name}: {first[name]} and "
                    f"{getattr(other, name)}); give each kind of machine a key of its own"
                )


def first_facts(process: Process, kind: str, limit_s: float) -> dict[str, Any]:
    """What the server that a fresh process of `rpc_worker` gets says of itself, `kind` being `llvm` or `cuda`.

    Raises:
        WorkerTimeout: none was free for `limit_s`. WorkerError: it cannot be used.
    """
    # Its start is waited for first, so that loading TVM, which may take long on a busy machine, is not in the limit.
    process.ask("is_there", limit_s=limit_s)
    return dict(process.ask("facts", kind, limit_s=limit_s))


def _require_named(machine: AnyMachine, options: BuildOptions) -> None:
    """Raises TargetError for another machine than the command line names."""
    wanted = options.arch or options.fields.get("arch")
    if wanted is not None and wanted != getattr(machine, "arch", None):
        raise TargetError(f"--arch {wanted}: the servers' GPU is {getattr(machine, 'arch', 'none')}")
    cpu = options.fields.get("mcpu")
    if cpu is not None and cpu != getattr(machine, "llvm_cpu", None):
        raise TargetError(f"--target: mcpu {cpu}: the servers' CPU is {getattr(machine, 'llvm_cpu', 'none')}")
