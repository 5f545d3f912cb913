"""What holds for every scan, whatever its shape."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import PARAM_ORDERS, Case, make_inputs

from vcmamba_mm.ops import multi_directional_scan
from vcmamba_mm.ops.scan_paths import BEGIN, DOWN, LEFT, RIGHT, UP

# The same examples every time.
examples = settings(
    max_examples=40, derandomize=True, deadline=None, database=None
)
param_orders = st.sampled_from(PARAM_ORDERS)
sides = st.integers(1, 6)
any_size = st.tuples(sides, sides)


@st.composite
def scans(draw, sizes=any_size):
    """Inputs and size; up to 36 tokens, more than two chunks."""
    size = draw(sizes)
    batch, channels, states = (draw(st.integers(1, n)) for n in (3, 7, 9))
    torch.manual_seed(draw(st.integers(0, 999)))
    inputs = make_inputs(batch, *size, channels, states)
    return [t.detach() for t in inputs], size


def scan(inputs, size, param_order='raster'):
    return multi_directional_scan(*inputs, *size, param_order=param_order)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def as_map(tokens, size):
    return tokens.unflatten(1, size)


def transpose(tokens, size):
    return as_map(tokens, size).transpose(1, 2).flatten(1, 2)


def rotate(tokens):
    """By 180 degrees."""
    return tokens.flip(1)


@examples
@given(scans(), param_orders)
def test_torch_is_the_specification(scan_of, param_order):
    inputs, size = scan_of
    case = Case.of(inputs, size, param_order, torch.float64)
    case.check('torch', 'cpu', torch.float64)


@examples
@given(scans(sizes=st.just((1, 1))), param_orders)
def test_one_token(scan_of, param_order):
    """All four paths begin, and end, there."""
    inputs, size = scan_of
    x, delta, _, B, C, D, theta = inputs
    read = (C * (B + theta[BEGIN])).sum(-1, keepdim=True)
    close(scan(inputs, size, param_order), 4 * x * (delta * read + D))


@examples
@given(scans(), param_orders)
def test_linear_in_x(scan_of, param_order):
    (x, *others), size = scan_of
    other = torch.randn_like(x)
    close(
        scan([2 * x - 3 * other, *others], size, param_order),
        2 * scan([x, *others], size, param_order)
        - 3 * scan([other, *others], size, param_order),
    )


@examples
@given(scans(), param_orders)
def test_steps_of_no_size_leave_the_skip_connection(scan_of, param_order):
    (x, delta, *others), size = scan_of
    D = others[3]
    close(scan([x, 0 * delta, *others], size, param_order), 4 * D * x)


@examples
@given(scans(), param_orders)
def test_B_and_theta_are_added(scan_of, param_order):
    (x, delta, A, B, C, D, theta), size = scan_of
    shift = torch.randn_like(theta[0])
    close(
        scan((x, delta, A, B + shift, C, D, theta - shift), size, param_order),
        scan((x, delta, A, B, C, D, theta), size, param_order),
    )


@examples
@given(scans())
def test_orders_differ_only_in_whose_parameters_they_use(scan_of):
    (x, delta, A, B, C, D, theta), size = scan_of
    delta, B, C = (t[:, :1].expand_as(t) for t in (delta, B, C))
    inputs = (x, delta, A, B, C, D, theta)
    close(scan(inputs, size, 'raster'), scan(inputs, size, 'path'))


@examples
@given(scans(), param_orders)
def test_images_and_channels_do_not_mix(scan_of, param_order):
    (x, delta, A, B, C, D, theta), size = scan_of
    y = scan((x, delta, A, B, C, D, theta), size, param_order)
    close(
        scan(
            (
                x[-1:, :, ::2],
                delta[-1:, :, ::2],
                A[::2],
                B[-1:],
                C[-1:],
                D[::2],
                theta,
            ),
            size,
            param_order,
        ),
        y[-1:, :, ::2],
    )


@examples
@given(scans(), param_orders)
def test_rows_and_columns_are_treated_alike(scan_of, param_order):
    """Transposing the map swaps row and column snakes."""
    (x, delta, A, B, C, D, theta), size = scan_of
    y = scan((x, delta, A, B, C, D, theta), size, param_order)
    if param_order == 'path':  # in raster order they belong to the steps
        delta, B, C = (transpose(t, size) for t in (delta, B, C))
    theta = theta[[BEGIN, DOWN, UP, LEFT, RIGHT]]
    transposed = scan(
        (transpose(x, size), delta, A, B, C, D, theta), size[::-1], param_order
    )
    close(transposed, transpose(y, size))


@examples
@given(
    scans(
        sizes=st.one_of(
            st.tuples(*2 * [st.sampled_from([1, 3, 5])]),
            st.tuples(st.just(1), sides),
            st.tuples(sides, st.just(1)),
        )
    ),
    param_orders,
)
def test_both_ends_are_treated_alike(scan_of, param_order):
    """Where a snake ends in the corner opposite to its beginning, rotating
    the map swaps it with the reversed one."""
    (x, delta, A, B, C, D, theta), size = scan_of
    y = scan((x, delta, A, B, C, D, theta), size, param_order)
    if param_order == 'path':
        delta, B, C = (rotate(t) for t in (delta, B, C))
    theta = theta[[BEGIN, LEFT, RIGHT, DOWN, UP]]
    rotated = scan((rotate(x), delta, A, B, C, D, theta), size, param_order)
    close(rotated, rotate(y))
