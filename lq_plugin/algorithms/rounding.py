"""The best matrix of a layer for given inputs: by ridge least squares, and rounded to integers by GPTQ.

Matrices have the shape (groups, outputs, inputs), see :class:`~lq_plugin.algorithms.columns.Product`. Everything is
computed in double precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lq_plugin.qparams import QuantSpec, scale_of, zero_point_of

# Times the mean diagonal: less overfits a hundred images (mobile CNN). For few columns, inputs / columns is added to
# it, which gained 1.8 dB with 32 samples and .2 dB with 192 (mobile CNN on MNIST; a small ViT: 1.3 and .2).
_RIDGE = 0.05
_ROUNDING = 1e-4  # above float32's errors in sums over thousands of columns, far below any signal
_DAMPING = 0.01  # as in GPTQ
_CLIPS = (1.0, 0.97, 0.94, 0.9, 0.86, 0.8, 0.72)  # shares of the range that are tried
_BLOCK = 64  # columns rounded before all later ones are updated: one matrix product instead of many small updates
_SMALLEST_SCALE = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Moments:
    """Second moments: sums over columns ``x`` and their wanted results ``y``.

    Args:
        inputs: the sum of ``x xᵀ``, of shape (groups, inputs, inputs).
        products: the sum of ``y xᵀ``, of shape (groups, outputs, inputs).
        level: mean diagonal of ``inputs``, one if all inputs are zero; of shape (groups, 1, 1).
        count: number of columns.
    """

    inputs: Tensor
    products: Tensor
    level: Tensor
    count: int

    @property
    def finite(self) -> bool:
        """Whether all of them are finite."""
        return bool(self.inputs.isfinite().all() and self.products.isfinite().all())


def moments(pairs: Iterable[tuple[Tensor, Tensor]], centred: bool) -> Moments:
    """Add up columns and results, of shapes (columns, groups, inputs) and (columns, groups, outputs).

    Args:
        pairs: at least one.
        centred: subtract the means, because a bias corrects them.
    """
    pairs = iter(pairs)
    first = next(pairs)
    pivots = [part.mean(0) * centred for part in first]  # subtracted first: large means cost float32 precision
    inputs, products, x, y, count = _sums(first, pivots)
    for pair in pairs:
        for total, term in zip((inputs, products, x, y, count), _sums(pair, pivots), strict=True):
            total += term
    noise = _ROUNDING * _mean_diagonal(inputs)
    if centred:
        inputs -= x[:, :, None] * x[:, None] / count
        products -= y[:, :, None] * x[:, None] / count
    level = torch.maximum(_mean_diagonal(inputs), noise)  # constant inputs leave rounding errors only
    return Moments(inputs, products, torch.where(level > 0, level, 1), int(count))


def _sums(pair: tuple[Tensor, Tensor], pivots: Sequence[Tensor]) -> list[Tensor]:
    x, y = ((part - pivot).transpose(0, 1) for part, pivot in zip(pair, pivots, strict=True))
    return [term.double() for term in (x.mT @ x, y.mT @ x, x.sum(1), y.sum(1), torch.tensor(x.shape[1]))]


def least_squares(matrix: Tensor, given: Moments) -> Tensor:
    """Return the matrix whose results are nearest to the wanted ones, by ridge regression around ``matrix``."""
    missing = (given.products - matrix @ given.inputs) / given.level
    ridge = _RIDGE + matrix.shape[2] / max(1, given.count)
    factor = torch.linalg.cholesky(_damped(given.inputs / given.level, ridge))
    return matrix + torch.cholesky_solve(missing.mT, factor).mT


@dataclass(frozen=True)
class Grid:
    """What a matrix can be rounded to.

    Args:
        scale: the step between levels, in float32, of a shape that broadcasts with the matrix.
        lowest: the lowest level, relative to the zero point.
        highest: the highest level, relative to the zero point.
    """

    scale: Tensor
    lowest: Tensor
    highest: Tensor

    def nearest(self, matrix: Tensor) -> Tensor:
        """Return the levels nearest to a matrix, as floats."""
        return (matrix / self.scale).round().clamp(self.lowest, self.highest)


def grid(matrix: Tensor, spec: QuantSpec, shared: tuple[int, ...], clip: float = 1.0) -> Grid:
    """Spread the levels over the range of a matrix.

    Args:
        matrix: the matrix to be rounded.
        spec: which integers it becomes.
        shared: dimensions that share one scale.
        clip: the share of the range that is represented.
    """
    low, high = (clip * extreme for extreme in (matrix.amin(shared, keepdim=True), matrix.amax(shared, keepdim=True)))
    scale = scale_of(low, high, spec).clamp(min=_SMALLEST_SCALE).float()
    zero_point = zero_point_of(low, scale, spec)
    return Grid(scale, spec.lowest - zero_point, spec.highest - zero_point)


def best_grid(matrix: Tensor, inputs: Tensor, spec: QuantSpec, shared: tuple[int, ...]) -> Grid:
    """Return the grid that changes the results least, among several shares of the range."""
    best = grid(matrix, spec, shared)
    least = torch.full_like(best.scale, torch.inf, dtype=torch.float64)
    for clip in _CLIPS:
        tried = grid(matrix, spec, shared, clip)
        error = tried.nearest(matrix) * tried.scale - matrix
        harm = ((error @ inputs) * error).sum(shared, keepdim=True)
        better = harm < least
        least = torch.minimum(harm, least)
        best = Grid(*(torch.where(better, new, old) for new, old in zip(_parts(tried), _parts(best), strict=True)))
    return best


def rounded(matrix: Tensor, given: Moments, to: Grid, keep_ends: bool = False) -> Tensor:
    """Round a matrix column by column; the columns that follow compensate for each error (GPTQ).

    Columns with the largest inputs are rounded first.

    Args:
        matrix: the matrix.
        given: second moments of its inputs.
        to: what it is rounded to.
        keep_ends: what is nearest to the lowest or the highest level stays there, so that the range of the result tells
            its scale.

    Returns:
        The levels, as floats.
    """
    groups, outputs, size = matrix.shape
    order = given.inputs.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    factor = _inverse_factor(given.inputs / given.level, order)
    matrix = matrix.gather(2, order[:, None].expand(-1, outputs, -1))
    plain = to.nearest(matrix)
    kept = ((plain == to.lowest) | (plain == to.highest)) & keep_ends
    to = Grid(*(part[..., 0].expand(groups, outputs) for part in _parts(to)))
    levels = torch.empty_like(matrix)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        errors = torch.empty_like(matrix[..., start:end])
        for column in range(start, end):
            wanted = matrix[..., column]
            levels[..., column] = torch.where(kept[..., column], plain[..., column], to.nearest(wanted))
            error = (wanted - levels[..., column] * to.scale) / factor[:, None, column, column]
            errors[..., column - start] = error
            matrix[..., column + 1 : end] -= error[..., None] * factor[:, None, column, column + 1 : end]
        matrix[..., end:] -= errors @ factor[:, start:end, end:]
    return levels.gather(2, order.argsort(1)[:, None].expand(-1, outputs, -1))


def _inverse_factor(inputs: Tensor, order: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of second moments, with their columns in the given order."""
    size = inputs.shape[1]
    inputs = inputs.gather(1, order[:, :, None].expand(-1, -1, size)).gather(2, order[:, None].expand(-1, size, -1))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(inputs, _DAMPING)))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _parts(given: Grid) -> tuple[Tensor, Tensor, Tensor]:
    return given.scale, given.lowest, given.highest


def _mean_diagonal(inputs: Tensor) -> Tensor:
    return inputs.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]


def _damped(inputs: Tensor, damping: float) -> Tensor:
    """Add a number to the diagonal: some inputs may always be zero, or there may be fewer columns than inputs."""
    made = inputs.clone()
    made.diagonal(dim1=1, dim2=2).add_(damping)
    return made
