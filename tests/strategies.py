"""Random problems for the property-based tests, and how many of them."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fusedref import Problem

# The same examples in every run, so that a failure can be repeated.
fast = settings(derandomize=True, deadline=None, max_examples=100)
# For tests that compile a kernel for each example.
compiling = settings(
    derandomize=True, deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def problems(draw) -> Problem:
    """Draw small problems of every kind: strides, paddings, dilations, groups, with and without bias."""

    def number(low, high):
        return draw(st.integers(low, high))

    groups = number(1, 3)
    stride = (number(1, 3), number(1, 3))
    kernel = (number(1, 4), number(1, 4))
    dilation = (number(1, 2), number(1, 2))
    paddings = [st.just("valid"), st.integers(0, 3), st.tuples(st.integers(0, 3), st.integers(0, 3))]
    padding = draw(st.one_of(*paddings, *([st.just("same")] if stride == (1, 1) else [])))
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    return Problem(
        number(1, 3),
        groups * number(1, 3),
        groups * number(1, 3),
        span[0] + number(0, 9),
        span[1] + number(0, 9),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    )


def options(problem: Problem) -> dict:
    """Return the keyword arguments of ``fused_conv_bn_scale`` for a problem."""
    return problem.conv_options
