"""Which measurements there are of arteries, of veins and of each zone; nothing here measures."""

from __future__ import annotations

OF_COURSE = (
    "tortuosity",
    "total_squared_curvature_per_px",
    "total_squared_curvature",
    "mean_squared_curvature_per_px2",
    "mean_squared_curvature",
    "branch_angle_mean_deg",
    "num_branch_points",
)
OF_KIND = (
    "density",
    "length_density_per_px",
    "length_density",
    "calibre_mean_px",
    "calibre_mean",
    "calibre_std_px",
    "calibre_std",
    "fractal_dimension",
    *OF_COURSE,
)
OF_ZONE = ("density", "length_density", "calibre_mean_px", "calibre_mean", *OF_COURSE)
KINDS = {"artery": "arteries", "vein": "veins"}
"""By the beginning of their columns' names, in words."""
ZONES = {"zone_b": (0.5, 1.0), "zone_c": (0.5, 2.0)}
"""Of each the inner and the outer edge, in disc diameters from the disc's margin."""
