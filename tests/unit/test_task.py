"""Which input a result is a view of: the whole of it, and without going through all inputs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vortex_worker._core.handle import TensorHandle
from vortex_worker.errors import InvalidHandle
from vortex_worker.supervisor.task import Work

U8 = 2


def handle(offset, nbytes):
    return TensorHandle(64 * offset, 64 * nbytes, U8, (64 * nbytes,))


def work(*spans):
    return Work("Op", {}, {}, [(handle(*span), span) for span in spans])


def test_a_result_that_begins_where_a_smaller_input_does_may_be_the_larger_one():
    for inputs in (work((0, 1), (0, 10)), work((0, 10), (0, 1))):
        assert inputs.owner_of_view(handle(0, 10)) == (0, 10)
        assert inputs.owner_of_view(handle(0, 1)) in {(0, 1), (0, 10)}


def test_a_result_that_reaches_out_of_an_input_is_refused():
    with pytest.raises(InvalidHandle, match="reaches out of the input at 64"):
        work((1, 2), (1, 1)).owner_of_view(handle(2, 2))


def test_what_lies_beside_every_input_is_no_view():
    inputs = work((1, 2), (5, 0))
    assert work().owner_of_view(handle(0, 1)) is None
    assert inputs.owner_of_view(handle(0, 0)) is None
    assert inputs.owner_of_view(handle(3, 1)) is None
    assert inputs.owner_of_view(handle(5, 0)) == (5, 0)


SPANS = st.tuples(st.integers(0, 12), st.integers(0, 6))


@given(spans=st.lists(SPANS, max_size=8), asked=SPANS)
def test_the_owner_is_an_input_that_holds_all_of_it(spans, asked):
    start, end = asked[0], asked[0] + asked[1]
    touched = [span for span in spans if span[0] <= start and (start < span[0] + span[1] or start == span[0])]
    holders = [span for span in touched if end <= span[0] + span[1]]
    try:
        owner = work(*spans).owner_of_view(handle(*asked))
    except InvalidHandle:
        assert touched
        assert not holders
    else:
        assert owner in holders if touched else owner is None


def test_a_fault_is_never_in_an_input_without_bytes():
    inputs = Work("Op", {"mask": handle(1, 0), "image": handle(1, 2)}, {})
    assert inputs.input_covering(64) == "image"
    assert inputs.input_covering(3 * 64) == ""
