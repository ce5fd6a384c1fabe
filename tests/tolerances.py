"""The one table of tolerances. Errors are relative to the norm of what is expected."""

import torch

RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-5}
"""For dtypes whose own rounding is far below the tolerance: ||got - expected|| / ||expected||."""

HALF_FACTOR, HALF_FLOOR = 2.0, 1e-6
"""bfloat16 and float16: the error against float64 may be HALF_FACTOR times that of the reference in that dtype, plus
HALF_FLOOR."""

ROUNDINGS_OF_A_DRAW = 4
"""In place of HALF_FLOOR where a result may be a single number, which the reference may round well by chance: so many
times the spacing of the dtype."""


def relative_error(got, expected):
    """||got - expected|| / ||expected||, in float64; NaN and inf count as infinite error unless both agree."""
    assert got.shape == expected.shape, f"shape {tuple(got.shape)} instead of {tuple(expected.shape)}"
    got, expected = got.detach().double(), expected.detach().double()
    error = (got - expected).norm() / expected.norm().clamp(min=1e-30)
    return float("inf") if error.isnan() else error.item()


def assert_close(got, expected, what=""):
    """``got`` in float32 or float64 against ``expected``, by the table."""
    error = relative_error(got, expected)
    # An expected value of zero (a gradient that is cut off, say) must be met exactly or nearly so.
    if expected.norm() == 0:
        error = got.detach().double().norm().item()
    assert error <= RELATIVE[got.dtype], f"{what}: relative error {error:.3g} > {RELATIVE[got.dtype]:g}"


def assert_as_good_as(got, reference, truth, what=""):
    """``got`` in a 16-bit dtype against the float64 ``truth``, beside the ``reference`` in that dtype."""
    allowed = HALF_FACTOR * relative_error(reference, truth) + HALF_FLOOR
    error = relative_error(got, truth)
    assert error <= allowed, f"{what}: relative error {error:.3g} > {allowed:.3g}"
