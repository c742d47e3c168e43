"""What `make test` leaves to `make test SLOW=1`: more cases of a test that has some without the mark."""

import pytest
from hypothesis import settings


def slow(cases):
    """The same cases, marked `slow`; a tuple holds several arguments."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


def some_slow(cases, quick):
    """The same cases, marked `slow` unless `quick` is true of them."""
    return [case if quick(case) else slow([case])[0] for case in cases]


def random_cases(few, many, given):
    """A test of so many random cases, drawn by `hypothesis.given(..)`: few of them in the quick run."""

    def decorate(check):
        @pytest.mark.parametrize("cases", [few, *slow([many])])
        def test(cases):
            settings(max_examples=cases, deadline=None, derandomize=True)(given(check))()

        return test

    return decorate
