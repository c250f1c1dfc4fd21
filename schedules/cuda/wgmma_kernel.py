"""The text of the product by `wgmma` and TMA (wgmma.py says what it does), as a function of TIRx.

Shared tiles have rows of 128 bytes in TMA's 128-byte swizzle, which `wgmma` undoes: 8 rows are 1024 bytes, to which the
tiles are aligned. Layouts and descriptors: PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate
Instructions": "Strides", "Matrix Descriptor Format" and "Register Fragments and Shared Memory Matrix Layouts".
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm_ffi import structural_map

from .matrices import Matrices

# Rows of a block's tile (two warpgroups of 64), and the depth of a step: 64 fp16 are the 128 bytes of a swizzled row.
ROWS, STEP = 128, 64
# Rows of one warpgroup's instruction, its depth, and the columns of a row of the right operand's tile.
GROUP_ROWS, K, PART = 64, 16, 64
# Warps that say that a stage is empty: all of both consumers.
CONSUMER_WARPS = 8
# Registers of a thread: with more than FEW_REGISTERS for sums, an epilogue may need more than the 168 that each of 384
# threads may have, and the producer leaves the others what it has no use for (128 x 40 + 256 x 232 of 65536).
FEW_REGISTERS, PRODUCER_REGISTERS, CONSUMER_REGISTERS = 64, 40, 232
# CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B.
SWIZZLE, PROMOTION = 3, 2
# In 16 bytes: from 8 swizzled rows to the next, and from 64 columns of the right tile to the next.
EIGHT_ROWS, NEXT_PART = 1024 >> 4, STEP * 128 >> 4
PTX = {"float16": "f16", "bfloat16": "bf16"}
COPY = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"


def shared_bytes(width: int, stages: int) -> int:
    """Shared memory of a block: the operands' tiles, and two barriers a stage."""
    return stages * (2 * STEP * (ROWS + width) + 16)


def accumulator_place(thread: int, register: int) -> tuple[int, int]:
    """Row and column of a warpgroup's 64 x N result that `register` of `thread` of 128 holds."""
    warp, lane = divmod(thread, 32)
    eight, half, pair = register // 4, register // 2 % 2, register % 2
    return warp * 16 + half * 8 + lane // 4, eight * 8 + lane % 4 * 2 + pair


def write(func: tirx.PrimFunc, product: Matrices, width: int, stages: int, flying: int) -> tirx.PrimFunc:
    """A function of `func`'s parameters that computes `product` by tiles of ROWS x `width`.

    stages: how many steps' tiles shared memory holds. flying: 1 where a step's multiplications are waited for only
    when those of the next have started.
    """
    # The same parameters, with the layout that TIRx wants of buffers.
    params = [tirx.decl_buffer(p.shape, str(p.dtype), p.name) for p in func.params]
    same = list(zip(func.params, params, strict=True))

    def ours(expression: Any) -> Any:
        return structural_map(expression, (tirx.Var, lambda v: next((new for old, new in same if v.same_as(old)), v)))

    left, right, output = ours(product.left), ours(product.right), ours(product.block.body.buffer)
    places, result = [ours(i) for i in product.block.body.indices], ours(product.block.body.value)
    rows, columns, depth = product.rows, product.columns, product.depth
    dtype = str(left.dtype)
    left_size, right_size = ROWS * STEP, STEP * width
    registers, steps = width // 2, -(-depth // STEP)
    barriers = stages * (left_size + right_size) // 4
    instruction = f"wgmma.mma_async.sync.aligned.m64n{width}k16.f32.{PTX[dtype]}.{PTX[dtype]}"

    def place(row: Any, column: Any) -> list[Any]:
        return [product.at(index, row, column) for index in places]

    # fmt: off
    @T.prim_func(check_well_formed=False)
    def kernel():  # type: ignore[no-untyped-def]
        left_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        right_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        # Sizes, the stride of rows in bytes, the box: innermost first.
        T.tensormap_encode_tiled(left_map, left.data, depth, rows, depth * 2, STEP, ROWS, 1, 1,
                                 descriptor_dtype=dtype, rank=2, swizzle=SWIZZLE, l2_promotion=PROMOTION)
        T.tensormap_encode_tiled(right_map, right.data, columns, depth, columns * 2, PART, STEP, 1, 1,
                                 descriptor_dtype=dtype, rank=2, swizzle=SWIZZLE, l2_promotion=PROMOTION)
        T.device_entry()
        # Blocks that start together share columns: the right operand's tiles come from L2.
        by, bx = T.cta_id([-(-rows // ROWS), -(-columns // width)])
        group = T.warpgroup_id([3])
        warp = T.warp_id_in_wg([4])
        lane = T.lane_id([32])
        arena = T.alloc_buffer((shared_bytes(width, stages),), "uint8", scope="shared.dyn", align=1024)
        lefts = T.decl_buffer((stages, left_size), dtype, data=arena.data, scope="shared.dyn")
        rights = T.decl_buffer((stages, right_size), dtype, data=arena.data, elem_offset=stages * left_size,
                               scope="shared.dyn")
        full = T.decl_buffer((stages,), "uint64", data=arena.data, elem_offset=barriers, scope="shared.dyn")
        empty = T.decl_buffer((stages,), "uint64", data=arena.data, elem_offset=barriers + stages, scope="shared.dyn")
        if (group == 0) and (warp == 0) and (lane == 0):
            for i in T.unroll(stages):
                T.ptx.mbarrier.init.shared.b64(full.ptr_to([i]), T.uint32(1))
                T.ptx.mbarrier.init.shared.b64(empty.ptr_to([i]), T.uint32(CONSUMER_WARPS))
            # So that the unit that copies sees the barriers.
            T.ptx["fence.proxy.async.shared::cta"]()
        T.cuda.cta_sync()
        if group == 0:
            if registers > FEW_REGISTERS:
                T.ptx["setmaxnreg.dec.sync.aligned.u32"](PRODUCER_REGISTERS)
            if (warp == 0) and (lane == 0):
                for k in T.serial(steps):
                    if k >= stages:
                        T.cuda.mbarrier_wait(empty.ptr_to([k % stages]), (k // stages + 1) % 2)
                    # What lies outside of a matrix comes as zeros, and counts as bytes.
                    T.ptx.mbarrier.arrive.expect_tx.shared.b64(
                        full.ptr_to([k % stages]), T.uint32((left_size + right_size) * 2))
                    T.ptx[COPY](lefts.ptr_to([k % stages, 0]), T.address_of(left_map), k * STEP, by * ROWS,
                                full.ptr_to([k % stages]))
                    for part in T.unroll(width // PART):
                        T.ptx[COPY](rights.ptr_to([k % stages, part * PART * STEP]), T.address_of(right_map),
                                    bx * width + part * PART, k * STEP, full.ptr_to([k % stages]))
        else:
            if registers > FEW_REGISTERS:
                T.ptx["setmaxnreg.inc.sync.aligned.u32"](CONSUMER_REGISTERS)
            sums = T.alloc_local((registers,), "float32")
            descriptors = T.alloc_local((2,), "uint64")
            for i in T.unroll(registers):
                sums[i] = T.float32(0)
            for k in T.serial(steps):
                T.cuda.mbarrier_wait(full.ptr_to([k % stages]), (k // stages) % 2)
                T.ptx.wgmma.fence.sync.aligned()
                for inner in T.unroll(STEP // K):
                    # The left tile's rows are along the depth (16 elements on: 32 bytes), the right one's across it.
                    T.cuda.wgmma.encode_matrix_descriptor(
                        descriptors.ptr_to([0]),
                        lefts.ptr_to([k % stages, (group - 1) * GROUP_ROWS * STEP + inner * K]), 1, EIGHT_ROWS, SWIZZLE)
                    T.cuda.wgmma.encode_matrix_descriptor(
                        descriptors.ptr_to([1]), rights.ptr_to([k % stages, inner * K * PART]),
                        NEXT_PART, EIGHT_ROWS, SWIZZLE)
                    T.ptx[instruction](
                        *[sums[i] for i in range(registers)], descriptors[0], descriptors[1], True, 1, 1, 0, 1)
                T.ptx.wgmma.commit_group.sync.aligned()
                T.ptx.wgmma.wait_group.sync.aligned(flying)
                if (lane == 0) and (k >= flying):
                    T.ptx.mbarrier.arrive.shared.b64(empty.ptr_to([(k - flying) % stages]), T.uint32(1))
            T.ptx.wgmma.wait_group.sync.aligned(0)
            for half in T.unroll(2):
                row = T.meta_var(by * ROWS + (group - 1) * GROUP_ROWS + warp * 16 + half * 8 + lane // 4)
                if row < rows:
                    for eight in T.unroll(width // 8):
                        first = T.meta_var(bx * width + eight * 8 + lane % 4 * 2)
                        # 8 divides the columns: both of a pair are inside, or neither.
                        if first < columns:
                            for pair in T.vectorized(2):
                                T.buffer_store(
                                    output,
                                    product.at(result, row, first + pair, sums[eight * 4 + half * 2 + pair]),
                                    place(row, first + pair))
    # fmt: on

    made = tirx.PrimFunc(params, kernel.body, attrs=kernel.attrs)
    symbol = func.attrs.get("global_symbol")
    return made.with_attr("global_symbol", symbol) if symbol is not None else made.without_attr("global_symbol")
