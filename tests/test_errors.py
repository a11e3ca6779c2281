"""The error of ours behind one that Ray raises.

Run: pytest tests/test_errors.py
"""

import pytest
import ray

from segpipe.cluster.errors import own_error
from segpipe.errors import StoreDown, UserError


@pytest.mark.parametrize("kind", [StoreDown, UserError])
def test_the_error_behind_rays_is_found_and_its_message_is_one_line(ray_cluster, kind):
    def fails(_):
        raise kind("what happened")

    dataset = ray.data.range(1, override_num_blocks=1).map_batches(fails)
    with pytest.raises(Exception) as raised:  # noqa: PT011  whatever Ray makes of it
        dataset.materialize()
    found = own_error(raised.value)
    assert type(found) in (kind, OSError)
    assert str(found) == "what happened"


def test_other_errors_are_not_taken_for_ours():
    assert own_error(KeyError("x")) is None
