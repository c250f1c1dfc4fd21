"""The instructions of tensor cores as TensorIR intrinsics, for fp16 and bf16 operands: ldmatrix, mma.sync, stores.

A 16x16 matrix is held by a warp as 32 x 8: which thread has which element is fixed by mma.m16n8k16 (PTX ISA, "Matrix
Fragments for mma.m16n8k16"), and `place` says it. They are those of tvm.s_tir.tensor_intrin.cuda, made when first
needed: importing that module parses all of TVM's intrinsics, which takes half a minute, and it has none for bf16.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

# PTX's names of operands.
PTX = {"float16": "fp16", "bfloat16": "bf16"}


def place(i: Any, j: Any) -> tuple[Any, Any]:
    """The thread, and which of its 8 registers' halves, that hold element (i, j) of a 16x16 fragment."""
    return (i % 8) * 4 + (j % 8) // 2, 4 * (j // 8) + i // 8 * 2 + j % 2


def element(thread: Any, number: Any) -> tuple[Any, Any]:
    """The inverse of `place`."""
    return 8 * (number % 4 // 2) + thread // 4, 8 * (number // 4) + thread % 4 * 2 + number % 2


@cache
def intrinsics(dtype: str) -> dict[str, str]:
    """Registers the intrinsics for operands of `dtype`; their names by what they do."""
    made = {
        "load_a": load(dtype, transpose=False), "load_b": load(dtype, transpose=True),
        "compute": multiply(dtype), "init": zero(), "store": store(),
    }  # fmt: skip
    names = {what: f"tvmopt_{what}_{dtype}" for what in made}
    for what, (description, implementation) in made.items():
        TensorIntrin.register(names[what], description, implementation, override=True)
    return names


def load(dtype: str, transpose: bool) -> tuple[Any, Any]:
    """Shared memory to a fragment; the right operand, whose rows are of the depth, is transposed on the way."""

    @T.prim_func(s_tir=True)
    def description(warp_handle: T.handle, shared_handle: T.handle) -> None:
        shared = T.match_buffer(shared_handle, (16, 16), dtype, align=64, offset_factor=16, scope="shared.dyn")
        warp = T.match_buffer(warp_handle, (32, 8), dtype, align=64, offset_factor=16, scope="warp")
        with T.sblock("root"):
            T.reads(shared[0:16, 0:16])
            T.writes(warp[0:32, 0:8])
            for ax0, ax1 in T.grid(16, 16):
                with T.sblock("shared_warp"):
                    v0, v1 = T.axis.remap("SS", [ax0, ax1])
                    T.reads(shared[v0, v1])
                    thread_id, local_id = T.meta_var(place(v0, v1))
                    T.writes(warp[thread_id, local_id])
                    warp[thread_id, local_id] = shared[v0, v1]

    @T.prim_func(s_tir=True)
    def implementation(warp_handle: T.handle, shared_handle: T.handle) -> None:
        s0 = T.int32()
        s1 = T.int32()
        shared = T.match_buffer(
            shared_handle, (16, 16), dtype, align=64, offset_factor=16, scope="shared.dyn", strides=[s0, s1]
        )
        warp = T.match_buffer(warp_handle, (32, 8), dtype, align=64, offset_factor=16, scope="warp")
        with T.sblock("root"):
            T.reads(shared[0:16, 0:16])
            T.writes(warp[0:32, 0:8])
            for tx in T.thread_binding(0, 32, "threadIdx.x"):
                T.evaluate(
                    T.ptx_legacy.ldmatrix(
                        transpose, 4, ".b16", warp.data, warp.elem_offset + 8 * tx, shared.access_ptr("r"),
                        s0 * (tx % 16) + 8 * (tx // 16), dtype=dtype,
                    )
                )

    return description, implementation


def multiply(dtype: str) -> tuple[Any, Any]:
    """Two mma.m16n8k16: the left and the right half of 16 columns."""
    ptx = PTX[dtype]

    @T.prim_func(s_tir=True)
    def description(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (32, 8), dtype, align=64, offset_factor=16, scope="warp")
        B = T.match_buffer(b, (32, 8), dtype, align=64, offset_factor=16, scope="warp")
        C = T.match_buffer(c, (32, 8), "float32", align=64, offset_factor=16, scope="warp")
        with T.sblock("root"):
            T.reads(C[0:32, 0:8], A[0:32, 0:8], B[0:32, 0:8])
            T.writes(C[0:32, 0:8])
            for i, j, k in T.grid(16, 16, 16):
                with T.sblock("C"):
                    vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                    thread_c, local_c = T.meta_var(place(vi, vj))
                    thread_a, local_a = T.meta_var(place(vi, vk))
                    thread_b, local_b = T.meta_var(place(vk, vj))
                    T.reads(C[thread_c, local_c], A[thread_a, local_a], B[thread_b, local_b])
                    T.writes(C[thread_c, local_c])
                    C[thread_c, local_c] += T.Cast("float32", A[thread_a, local_a]) * T.Cast(
                        "float32", B[thread_b, local_b]
                    )

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (32, 8), dtype, align=64, offset_factor=16, scope="warp")
        B = T.match_buffer(b, (32, 8), dtype, align=64, offset_factor=16, scope="warp")
        C = T.match_buffer(c, (32, 8), "float32", align=64, offset_factor=16, scope="warp")
        with T.sblock("root"):
            T.reads(C[0:32, 0:8], A[0:32, 0:8], B[0:32, 0:8])
            T.writes(C[0:32, 0:8])
            for tx in T.thread_binding(0, 32, "threadIdx.x"):
                T.evaluate(
                    T.ptx_legacy.mma(
                        "m16n8k16", "row", "col", ptx, ptx, "fp32", A.data, A.elem_offset + tx * 8,
                        B.data, B.elem_offset + tx * 8, C.data, C.elem_offset + tx * 8, False, dtype="float32",
                    )
                )
                T.evaluate(
                    T.ptx_legacy.mma(
                        "m16n8k16", "row", "col", ptx, ptx, "fp32", A.data, A.elem_offset + tx * 8,
                        B.data, B.elem_offset + tx * 8 + 4, C.data, C.elem_offset + tx * 8 + 4, False, dtype="float32",
                    )
                )

    return description, implementation


def zero() -> tuple[Any, Any]:
    """A fragment of zeros."""

    @T.prim_func(s_tir=True)
    def description(a: T.handle) -> None:
        C = T.match_buffer(a, [32, 8], dtype="float32", scope="warp")
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:32, 0:8])
            for i0, i1 in T.grid(16, 16):
                with T.sblock("C_warp"):
                    i, j = T.axis.remap("SS", [i0, i1])
                    thread_id, local_id = T.meta_var(place(i, j))
                    T.reads()
                    T.writes(C[thread_id, local_id])
                    C[thread_id, local_id] = T.float32(0)

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle) -> None:
        C = T.match_buffer(a, [32, 8], dtype="float32", scope="warp", offset_factor=1)
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:32, 0:8])
            for _tx in T.thread_binding(0, 32, "threadIdx.x"):
                T.evaluate(T.cuda.mma_fill_legacy(8, C.data, C.elem_offset, dtype="float32"))

    return description, implementation


def store() -> tuple[Any, Any]:
    """A fragment of sums to shared memory."""

    @T.prim_func(s_tir=True)
    def description(a: T.handle, c: T.handle) -> None:
        W = T.match_buffer(a, [32, 8], dtype="float32", scope="warp")
        C = T.match_buffer(c, [16, 16], dtype="float32", scope="shared.dyn")
        with T.sblock("root"):
            T.reads(W[0:32, 0:8])
            T.writes(C[0:16, 0:16])
            for i0, i1 in T.grid(16, 16):
                with T.sblock("C_warp"):
                    v0, v1 = T.axis.remap("SS", [i0, i1])
                    thread_id, local_id = T.meta_var(place(v0, v1))
                    T.reads(W[thread_id, local_id])
                    T.writes(C[v0, v1])
                    C[v0, v1] = W[thread_id, local_id]

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, c: T.handle) -> None:
        s0 = T.int32()
        s1 = T.int32()
        W = T.match_buffer(a, [32, 8], dtype="float32", scope="warp", offset_factor=1)
        C = T.match_buffer(c, [16, 16], dtype="float32", scope="shared.dyn", offset_factor=1, strides=[s0, s1])
        with T.sblock("root"):
            T.reads(W[0:32, 0:8])
            T.writes(C[0:16, 0:16])
            for tx in T.thread_binding(0, 32, "threadIdx.x"):
                for number in T.serial(8):
                    row, column = T.meta_var(element(tx, number))
                    C[row, column] = W[tx, number]

    return description, implementation
