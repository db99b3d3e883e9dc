# SPDX-License-Identifier: MIT
"""Pieces of the operators' Triton kernels: blocks of maps, and bilinear upsampling.

Only the triton.py of an operator imports this module: it needs Triton.
"""

import triton
import triton.language as tl


@triton.jit
def load_block(pointer, rows, columns, row_stride, column_stride, row_count, column_count):
    """[rows, columns] of a matrix, 0 outside of it."""
    inside = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    offsets = rows.to(tl.int64)[:, None] * row_stride
    offsets += columns.to(tl.int64)[None, :] * column_stride
    return tl.load(pointer + offsets, mask=inside, other=0.0)


@triton.jit
def store_block(pointer, block, rows, columns, row_stride, column_stride, row_count, column_count):
    """Writes [rows, columns] of a matrix in its dtype."""
    inside = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    offsets = rows.to(tl.int64)[:, None] * row_stride
    offsets += columns.to(tl.int64)[None, :] * column_stride
    tl.store(pointer + offsets, block.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def product(
    a, b, rows, columns, length, a_row, a_inner, b_inner, b_column, row_count, column_count,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """float32 a [rows, length] @ b [length, columns], a block of the inner dimension at a time."""
    result = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for start in range(0, length, BLOCK):
        inner = start + tl.arange(0, BLOCK)
        left = load_block(a, rows, inner, a_row, a_inner, row_count, length)
        right = load_block(b, inner, columns, b_inner, b_column, length, column_count)
        result = tl.dot(left, right, result, input_precision=PRECISION)
    return result
