# SPDX-License-Identifier: MIT
"""Pieces of the operators' Triton kernels: blocks of maps, and bilinear upsampling.

Only the triton.py of an operator imports this module: it needs Triton.
"""

import triton
import triton.language as tl


@triton.jit
def load_rows(pointer, rows, inside, columns, row_stride, column_stride, column_count):
    """[rows, columns] of a matrix, 0 outside of it."""
    mask = inside[:, None] & (columns < column_count)[None, :]
    offsets = rows.to(tl.int64)[:, None] * row_stride
    offsets += columns.to(tl.int64)[None, :] * column_stride
    return tl.load(pointer + offsets, mask=mask, other=0.0)


@triton.jit
def store_rows(pointer, block, rows, inside, columns, row_stride, column_stride, column_count):
    """Writes [rows, columns] of a matrix in its dtype."""
    mask = inside[:, None] & (columns < column_count)[None, :]
    offsets = rows.to(tl.int64)[:, None] * row_stride
    offsets += columns.to(tl.int64)[None, :] * column_stride
    tl.store(pointer + offsets, block.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_block(pointer, rows, columns, row_stride, column_stride, row_count, column_count):
    """`load_rows` of the first `row_count` rows."""
    inside = rows < row_count
    return load_rows(pointer, rows, inside, columns, row_stride, column_stride, column_count)


@triton.jit
def store_block(pointer, block, rows, columns, row_stride, column_stride, row_count, column_count):
    """`store_rows` of the first `row_count` rows."""
    inside = rows < row_count
    store_rows(pointer, block, rows, inside, columns, row_stride, column_stride, column_count)


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


@triton.jit
def first_output(index, size, out, ALIGN: tl.constexpr):
    """The first of `out` output positions whose source is `index` of `size`, or a later one."""
    if ALIGN:
        above, below = index * (out - 1), tl.maximum(size - 1, 1)
    else:
        above, below = (2 * index + 1) * out - size, 2 * size
    position = tl.minimum(tl.maximum(above + below - 1, 0) // below, out)
    if ALIGN:
        position = tl.where(out == 1, out, position)
    return tl.where(index <= 0, 0, tl.where(index >= size, out, position))


@triton.jit
def next_weight(position, index, size, out, ALIGN: tl.constexpr):
    """How much the next input position counts for an output position whose source is `index`."""
    if ALIGN:
        above, below = position * (size - 1), tl.maximum(out - 1, 1)
    else:
        above, below = tl.maximum((2 * position + 1) * size - out, 0), 2 * out
    weight = tl.math.div_rn((above - index * below).to(tl.float32), below.to(tl.float32))
    return tl.where(index + 1 < size, weight, 0.0)


@triton.jit
def cell(height, width, out_height, out_width, ALIGN: tl.constexpr):
    """(row, column, top, left, across, count): a program's input position, and the outputs from it
    to its next neighbours: where they start, how many lie side by side, how many there are."""
    row, column = tl.program_id(0) // width, tl.program_id(0) % width
    top = first_output(row, height, out_height, ALIGN)
    left = first_output(column, width, out_width, ALIGN)
    across = first_output(column + 1, width, out_width, ALIGN) - left
    count = (first_output(row + 1, height, out_height, ALIGN) - top) * across
    return row, column, top, left, across, count


@triton.jit
def corners(row, column, height, width, row_stride, column_stride):
    """Offsets of an input position, its right, its lower and its lower right neighbour."""
    top = row.to(tl.int64) * row_stride
    bottom = tl.minimum(row + 1, height - 1).to(tl.int64) * row_stride
    left = column.to(tl.int64) * column_stride
    right = tl.minimum(column + 1, width - 1).to(tl.int64) * column_stride
    return top + left, top + right, bottom + left, bottom + right


@triton.jit
def load_corners(pointer, offsets, mask):
    """The four values of each element of `pointer`, float32."""
    return (
        tl.load(pointer + offsets[0], mask=mask, other=0.0).to(tl.float32),
        tl.load(pointer + offsets[1], mask=mask, other=0.0).to(tl.float32),
        tl.load(pointer + offsets[2], mask=mask, other=0.0).to(tl.float32),
        tl.load(pointer + offsets[3], mask=mask, other=0.0).to(tl.float32),
    )


@triton.jit
def blend(values, down, right):
    """Bilinear interpolation of four values, by the weights of the lower and the right ones.

    All of one shape, or of shapes that make one.
    """
    upper = (1.0 - right) * values[0] + right * values[1]
    lower = (1.0 - right) * values[2] + right * values[3]
    return (1.0 - down) * upper + down * lower


@triton.jit
def blend_classes(values, down, right):
    """[classes, pixels] of four values for each class and two weights for each pixel: pixels are
    then side by side on the lanes of a warp, and what a pixel needs alone is computed once."""
    values = values[0][:, None], values[1][:, None], values[2][:, None], values[3][:, None]
    return blend(values, down[None, :], right[None, :])
