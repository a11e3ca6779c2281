"""The circle that a region's rim lies on.

Run: pytest tests/test_circle.py
"""

import apertures
import numpy as np
import pytest
from apertures import disc

from segpipe.data.circle import fit_circle


def test_a_circle_is_fitted_through_dents_bumps_and_cuts():
    """To a fifth of a pixel, though 40 % of the rim is not on it."""
    fov = disc((280, 300), 110, off=(3.3, -7.6))
    fov[:70] = False
    fov[150:190, :80] = False
    fov[200:230, 200:250] = True
    circle = fit_circle(fov)
    assert circle is not None
    wanted = 299 / 2 - 7.6, 279 / 2 + 3.3, 110
    np.testing.assert_allclose((circle.x, circle.y, circle.radius), wanted, atol=0.2)


@pytest.mark.parametrize("shape", ["square", "rounded", "octagon"])
def test_no_circle_is_fitted_to_a_field_with_corners(shape):
    camera = apertures.Camera(shape, 0.45)
    assert fit_circle(apertures.draw(camera, 240, 300).fov) is None


def test_no_circle_is_fitted_to_what_has_no_rim_or_a_straight_or_a_short_one():
    whole = np.ones((200, 300), bool)
    assert fit_circle(whole) is None
    assert fit_circle(np.zeros((200, 300), bool)) is None
    half = whole.copy()
    half[:, 150:] = False
    assert fit_circle(half) is None
    half[::7, 150] = True
    assert fit_circle(half) is None
    assert fit_circle(disc((200, 300), 400, off=(330, 0))) is None
