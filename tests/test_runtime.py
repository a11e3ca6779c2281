"""What Ray hides and what people see: rates, time left, the error behind Ray's.

Run: pytest tests/test_runtime.py
"""

import pytest
import ray

from segpipe import runtime
from segpipe.errors import StoreDown, UserError


def test_the_steady_rate_leaves_the_first_group_out():
    """Two at once start the clock; four more in the next two seconds are two a second."""
    rate = runtime.SteadyRate()
    assert rate.value is None
    rate.add(10.0, 2)
    assert rate.value is None
    rate.add(11.0, 2)
    rate.add(12.0, 2)
    assert rate.value == 2.0


def test_time_left_is_told_in_hours_minutes_and_seconds():
    assert runtime.time_left(10, 110, 0.01) == "2:46:40 left"
    assert runtime.time_left(0, 10, None) == "time left unknown"


@pytest.mark.parametrize("kind", [StoreDown, UserError])
def test_the_error_behind_rays_is_found_and_its_message_is_one_line(ray_cluster, kind):
    def fails(_):
        raise kind("what happened")

    dataset = ray.data.range(1, override_num_blocks=1).map_batches(fails)
    with pytest.raises(Exception) as raised:  # noqa: PT011  whatever Ray makes of it
        dataset.materialize()
    found = runtime.own_error(raised.value)
    assert type(found) in (kind, OSError)
    assert str(found) == "what happened"


def test_other_errors_are_not_taken_for_ours():
    assert runtime.own_error(KeyError("x")) is None
