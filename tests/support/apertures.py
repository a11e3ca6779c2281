"""Drawn photographs as many cameras frame them, each with its exact field of view and diameter.

The retina is synthetic.draw_fundus's, seen through an aperture that is drawn here. Lengths are in
field radii about the field's centre, x to the right and y down, unless they say px.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from segpipe.data import synthetic

RETINA_PX = 640  # of the drawn retina, which is then enlarged to the field
SIZES = ((480, 640), (960, 999), (2336, 3504), (2848, 4288))  # px: shorter and longer side


class Drawn(NamedTuple):
    """A photograph [H, W, 3] uint8, its field [H, W] bool, the diameter (px) of its aperture."""

    image: np.ndarray
    fov: np.ndarray
    diameter: float


@dataclass
class Scene:
    """What a change of a photograph sees: light [H, W, 3] float32, and the field's coordinates."""

    light: np.ndarray
    x: np.ndarray  # [1, W]
    y: np.ndarray  # [H, 1]
    radius: float  # px

    def spot(self, x: float, y: float, radius: float) -> np.ndarray:
        """-> share [H, W] float32: 1 in a spot, 0 outside, with an edge of a tenth of it."""
        return np.clip((1 - np.hypot(self.x - x, self.y - y) / radius) * 10, 0, 1)


Change = Callable[[Scene], None]


@dataclass(frozen=True)
class Camera:
    """How a photograph is framed; what is not said is a sharp round field in a black frame."""

    shape: str = "round"
    """round, square, rounded (a square with round corners), octagon."""
    radius: float = 0.47
    """Of the field, in shorter sides of the frame; half the side of a square."""
    diagonal: bool = False
    """Whether the radius is in half diagonals of the frame instead."""
    cuts: tuple[float, float, float, float] = (9.0, 9.0, 9.0, 9.0)
    """Straight dark cuts so far above, below, left and right of the field's centre."""
    shift: tuple[float, float] = (0.0, 0.0)
    """Of the field's centre from the frame's, down and right, in shorter sides."""
    frame: float = 5.0
    """Grey level around the field."""
    grain: float = 3.0
    """Standard deviation of the noise, in grey levels."""
    grain_px: int = 1
    """Side of a grain: 1 of a sensor, more of a scanned film."""
    rim: float = 0.008
    """Width of the aperture's soft edge, but 1.5 px at least."""
    blur: float = 0.0
    """Standard deviation of the whole photograph's blur."""
    falloff: float = 0.25
    """Share of the light that is lost from the field's centre to its rim."""
    sector: float = 0.0
    """Half the angle (degrees) of a wedge that is missing on the left."""
    exposure: float = 1.0
    """Of the retina; 1.0 gives a red of about 170."""
    pads: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Pure black added above, below, left and right of the photograph, in its shorter sides."""
    quality: int = 92
    """Of the JPEG."""
    before: tuple[Change, ...] = ()
    """Changes of the light in front of the aperture."""
    after: tuple[Change, ...] = ()
    """Changes of the picture behind it."""
    least: float = 0.98
    """The overlap with which its field is found at least; if 0.98, the diameter is within 2 %."""


def shadow(scene: Scene) -> None:
    """The retina fades to nothing on the left, as behind the iris."""
    fade = np.clip((scene.x + 0.25 * scene.y + 0.95) / 0.45, 0.0, 1.0)
    scene.light *= (fade**2)[..., None]


def dim_sides(scene: Scene) -> None:
    """The retina is at a quarter of its light left and right."""
    dim = np.clip((np.abs(scene.x) - 0.5) / 0.3, 0.0, 1.0)
    scene.light *= (1 - 0.75 * dim)[..., None]


def crescent(scene: Scene) -> None:
    """A dark crescent at the lower right."""
    away = np.hypot(scene.x + 0.25, scene.y + 0.2)
    scene.light *= (1 - 0.97 * np.clip((away - 0.95) / 0.12, 0, 1))[..., None]


def burnt_disc(scene: Scene) -> None:
    """The optic disc overexposed at the rim."""
    scene.light += 400 * scene.spot(0.88, 0.1, 0.2)[..., None]


def lesions(scene: Scene) -> None:
    for x, y, radius in ((-0.85, 0.3, 0.15), (-0.6, 0.72, 0.12), (0.3, -0.9, 0.18)):
        share = scene.spot(x, y, radius)[..., None]
        scene.light += share * (np.array((250, 235, 150), np.float32) - scene.light)


def thick_vessels(scene: Scene) -> None:
    """Dark bands that cross the rim."""
    for slope, height in ((0.3, -0.5), (-0.4, 0.45)):
        band = np.abs(scene.y - height - slope * scene.x) < 0.035
        scene.light[band & (np.abs(scene.x) > 0.5)] *= 0.08


def halo(scene: Scene) -> None:
    """Stray light around the field, stronger on the right."""
    away = np.hypot(scene.x, scene.y) - 1
    glow = 30 * np.exp(-np.maximum(away, 0) / 0.15) * np.clip(0.5 + 0.5 * scene.x, 0, 1)
    scene.light += glow[..., None] * np.array((1.0, 0.6, 0.4), np.float32)


def flare(scene: Scene) -> None:
    """A bright streak that leaves the field on the left."""
    streak = (np.abs(scene.y + 0.3 + 0.3 * scene.x) < 0.05) & (scene.x < -0.5) & (scene.x > -1.25)
    scene.light[streak] = 150


def text(scene: Scene) -> None:
    """Annotations in the corners, one of them touching the rim."""
    height, width = scene.light.shape[:2]
    scale, thickness = scene.radius / 330, max(1, round(scene.radius / 110))
    drawn = np.zeros((height, width), np.uint8)
    for words, x, y in (
        ("OD 45", 0.02, 0.06),
        ("2019-03-07", 0.02, 0.97),
        ("R/23 ID 4711", 0.62, 0.06),
    ):
        at = round(x * width), round(y * height)
        cv2.putText(drawn, words, at, 0, scale, (255,), thickness)
    scene.light[drawn > 127] = 255


def label(scene: Scene) -> None:
    """A filled white label that lies over the lower rim on the right."""
    scene.light[(scene.x > 0.55) & (scene.x < 0.95) & (scene.y > 0.75) & (scene.y < 0.98)] = 235


def tab(scene: Scene) -> None:
    """A lit tab at the rim, as some cameras mark the upper side."""
    scene.light[(np.abs(scene.x - 0.71) < 0.05) & (np.abs(scene.y + 0.71) < 0.05)] = 120


def notch(scene: Scene) -> None:
    """A dark triangle that points inward at the right rim."""
    scene.light[np.abs(scene.y) < 0.6 * (scene.x - 0.9)] = 4


def red_free(scene: Scene) -> None:
    scene.light[:] = scene.light[..., 1:2] * 1.6


def margin(level: float) -> Change:
    """A flat margin of this grey level around the whole photograph, as scans have."""

    def draw(scene: Scene) -> None:
        height, width = scene.light.shape[:2]
        rim = round(0.035 * min(height, width))
        inner = scene.light[rim:-rim, rim:-rim].copy()
        scene.light[:] = level
        scene.light[rim:-rim, rim:-rim] = inner

    return draw


SLIDE = Camera(frame=18, grain=8, grain_px=3, rim=0.03, blur=0.008, falloff=0.75)
"""A film of the 1990s, scanned: vignetted, soft and grainy, in a frame that is not quite dark."""

CAMERAS = {
    "round": Camera(),
    "round, noisy frame": Camera(frame=12, grain=9),
    "round, larger than the frame's height": Camera(radius=0.56),
    "round, cut above and below inside the frame": Camera(cuts=(0.86, 0.84, 9, 9)),
    "round, cut and a noisy frame": Camera(radius=0.5, cuts=(0.9, 0.88, 9, 9), frame=14, grain=10),
    "round, cut slightly": Camera(cuts=(0.97, 0.96, 9, 9)),
    "round, cut on all sides inside the frame": Camera(cuts=(0.8, 0.8, 0.9, 0.9)),
    "round, cut by the frame on all sides": Camera(radius=0.88, diagonal=True),
    "round, cut on three sides": Camera(radius=0.55, shift=(0.02, -0.25)),
    "round, cut on one side": Camera(radius=0.45, shift=(0.16, 0.0)),
    "round, small and off the centre": Camera(radius=0.3, shift=(0.1, -0.2)),
    "square": Camera("square", 0.4),
    "square, rounded corners": Camera("rounded", 0.42),
    "octagon": Camera("octagon", 0.46),
    "octagon, noisy frame": Camera("octagon", 0.44, frame=12, grain=9),
    "underexposed": Camera(exposure=0.35, grain=2),
    "coarse JPEG": Camera(quality=25, grain=6),
    "bright lesions at the rim": Camera(before=(lesions,)),
    "overexposed disc at the rim": Camera(before=(burnt_disc,)),
    "dark vessels at the rim": Camera(before=(thick_vessels,)),
    "shadow on one side": Camera(before=(shadow,)),
    "shadow on one side, cut": Camera(cuts=(0.85, 0.85, 9, 9), before=(shadow,)),
    "dark crescent": Camera(before=(crescent,)),
    "stray light in the frame": Camera(after=(halo,)),
    "flare across the rim": Camera(after=(flare,)),
    "text in the frame": Camera(after=(text,)),
    "label over the rim": Camera(after=(label,)),
    "lit tab at the rim": Camera(after=(tab,)),
    "dark notch at the rim": Camera(after=(notch,)),
    "grey frame": Camera(frame=70),
    "light grey frame": Camera(frame=190),
    "white frame": Camera(frame=255),
    "white frame, cut above and below": Camera(radius=0.56, frame=255),
    "square, white frame": Camera("square", 0.44, frame=255),
    "octagon, grey frame": Camera("octagon", 0.46, frame=90),
    "white margin around a black frame": Camera(radius=0.45, after=(margin(250),)),
    "grey margin around a black frame, text": Camera(radius=0.45, after=(text, margin(120))),
    "no frame": Camera(radius=1.2, diagonal=True),
    "no frame, red-free": Camera(radius=1.2, diagonal=True, before=(red_free,)),
    "round, red-free": Camera(before=(red_free,)),
    "white frame, overexposed disc": Camera(frame=255, before=(burnt_disc,), least=0.95),
    "underexposed, shadow": Camera(exposure=0.4, before=(shadow,)),
    "square, shadow": Camera("square", 0.4, before=(shadow,), least=0.88),
    "octagon, label over the rim": Camera("octagon", 0.46, after=(label,), least=0.96),
    "stray light, noisy frame, shadow": Camera(frame=14, grain=10, before=(shadow,), after=(halo,)),
    "vignetted": Camera(falloff=0.75),
    "vignetted, cut": Camera(falloff=0.75, cuts=(0.85, 0.8, 9, 9)),
    "vignetted, cut on one side": Camera(falloff=0.8, cuts=(9, 9, 0.7, 9)),
    "vignetted, noisy frame": Camera(falloff=0.75, frame=12, grain=15),
    "vignetted, square": Camera("square", 0.4, falloff=0.6),
    "vignetted, octagon": Camera("octagon", 0.46, falloff=0.75, frame=12, grain=9),
    "soft cut of 2 % of the radius": Camera(cuts=(0.85, 0.8, 9, 9), rim=0.02),
    "soft cut of 4 % of the radius": Camera(cuts=(0.85, 0.8, 9, 9), rim=0.04, least=0.96),
    "soft cut, vignetted": Camera(cuts=(0.85, 0.8, 9, 9), rim=0.04, falloff=0.7, least=0.97),
    "soft cut on one side, grainy": Camera(
        cuts=(9, 9, 9, 0.75), rim=0.04, frame=15, grain=12, grain_px=2, least=0.96
    ),
    "soft deep cut": Camera(cuts=(0.6, 9, 9, 9), rim=0.04, falloff=0.5, grain=6, least=0.96),
    "soft cuts on all sides": Camera(
        cuts=(0.85, 0.8, 0.9, 0.85), rim=0.04, falloff=0.5, least=0.96
    ),
    "blurred": Camera(blur=0.02, least=0.95),
    "blurred, cut": Camera(blur=0.02, cuts=(0.85, 0.8, 9, 9), least=0.95),
    "blurred, cut, grainy": Camera(
        blur=0.02, cuts=(0.9, 0.9, 9, 9), frame=12, grain=10, least=0.95
    ),
    "blurred, octagon": Camera("octagon", 0.46, blur=0.02, least=0.95),
    "missing sector": Camera(sector=40),
    "missing wide sector": Camera(sector=65),
    "missing sector, soft and vignetted": Camera(
        sector=40, rim=0.04, falloff=0.7, grain=8, least=0.97
    ),
    "dim sides": Camera(before=(dim_sides,)),
    "dim sides, cut": Camera(before=(dim_sides,), cuts=(0.8, 0.8, 9, 9)),
    "dim sides, noisy frame": Camera(before=(dim_sides,), frame=12, grain=10, radius=0.56),
    "slide": replace(SLIDE, least=0.97),
    "slide, larger than its height": replace(SLIDE, radius=0.56, least=0.92),
    "slide, much larger than its height": replace(
        SLIDE, radius=0.62, shift=(0.03, 0.02), least=0.89
    ),
    "slide, coarse grain": replace(SLIDE, radius=0.56, grain=15, least=0.85),
    "slide, grey frame": replace(SLIDE, radius=0.56, frame=28, grain=10, least=0.8),
    "slide, less vignetted": replace(SLIDE, radius=0.56, falloff=0.4, least=0.97),
    "slide, cut": replace(SLIDE, cuts=(0.85, 0.85, 9, 9)),
    "slide, cut on two sides": replace(SLIDE, radius=0.56, cuts=(9, 9, 0.85, 0.9), least=0.94),
    "slide, dim sides": replace(SLIDE, radius=0.56, falloff=0.4, before=(dim_sides,), least=0.84),
    "slide, shadow": replace(SLIDE, radius=0.56, falloff=0.4, before=(shadow,)),
    "slide, missing sector": replace(SLIDE, radius=0.56, sector=40, least=0.95),
    "grey frame of 40, padded above and on the left": Camera(frame=40, pads=(0.1, 0, 0.1, 0)),
    "grey frame of 60, padded below": Camera(frame=60, grain=5, pads=(0, 0.15, 0, 0)),
    "grey frame of 80, letterbox": Camera(frame=80, pads=(0.12, 0.12, 0, 0)),
    "grey frame of 100, slide mount": Camera(frame=100, grain=5, pads=(0.1, 0.1, 0.1, 0.1)),
    "grey frame of 50, padded on three sides, cut": Camera(
        frame=50, cuts=(0.85, 0.9, 9, 9), pads=(0.2, 0, 0.08, 0.1)
    ),
    "grey frame of 70, larger than its height, mount": Camera(
        radius=0.54, frame=70, pads=(0.08, 0.08, 0.08, 0.08)
    ),
    "grey frame of 90, dark retina, padded": Camera(
        frame=90, exposure=0.65, falloff=0.4, pads=(0.1, 0.05, 0.2, 0)
    ),
    "dark grey frame with a black strip, cut, dim at the cut": Camera(
        radius=0.5, cuts=(0.9, 0.8, 9, 9), frame=25, falloff=0.6, pads=(0, 0.03, 0, 0)
    ),
    "octagon, grey frame, letterbox": Camera("octagon", 0.46, frame=70, pads=(0.1, 0.1, 0, 0)),
    "square, grey frame, slide mount": Camera("square", 0.42, frame=70, pads=(0.1, 0.1, 0.1, 0.1)),
}


def draw(camera: Camera, shorter: int, longer: int, portrait: bool = False, seed: int = 0) -> Drawn:
    """A pure function; portrait is landscape turned by a quarter."""
    height, width = shorter, longer
    radius = camera.radius * (math.hypot(height, width) / 2 if camera.diagonal else shorter)
    down, right = height * (0.5 + camera.shift[0]), width / 2 + height * camera.shift[1]
    y = ((np.arange(height, dtype=np.float32) + 0.5 - down) / radius)[:, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5 - right) / radius)[None, :]
    inside = _inside(camera, x, y) * radius  # px
    scene = Scene(_light(camera, x, y, seed), x, y, radius)
    for change in camera.before:
        change(scene)
    share = np.clip(inside / max(1.5, camera.rim * radius) + 0.5, 0, 1)[..., None]
    scene.light = np.float32(camera.frame) + share * (scene.light - np.float32(camera.frame))
    for change in camera.after:
        change(scene)
    if camera.blur:
        scene.light = cv2.GaussianBlur(scene.light, (0, 0), camera.blur * radius)
    fov, light = inside >= 0, scene.light + _grain(camera, height, width, seed)
    if portrait:
        fov, light = np.rot90(fov), np.rot90(light)
    rows, columns = np.flatnonzero(fov.any(1)), np.flatnonzero(fov.any(0))
    extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    picture = np.clip(light + 0.5, 0, 255).astype(np.uint8)
    top, bottom, left, right = (round(pad * shorter) for pad in camera.pads)
    image = _compressed(np.pad(picture, ((top, bottom), (left, right), (0, 0))), camera.quality)
    fov = np.pad(fov, ((top, bottom), (left, right)))
    aperture_px = 2 * radius if camera.shape == "round" and not fov.all() else extent
    return Drawn(image, np.ascontiguousarray(fov), aperture_px)


def _inside(camera: Camera, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """-> how far inside the aperture each pixel lies, [H, W], negative outside."""
    across, down = np.abs(x), np.abs(y)
    if camera.shape == "round":
        inside = 1 - np.hypot(x, y)
    elif camera.shape == "square":
        inside = 1 - np.maximum(across, down)
    elif camera.shape == "rounded":
        corner = 0.3
        inside = corner - np.hypot(
            np.maximum(across - (1 - corner), 0), np.maximum(down - (1 - corner), 0)
        )
    else:
        diagonal = (across + down) / np.float32(np.sqrt(2))
        inside = 1 - np.maximum(np.maximum(across, down), diagonal)
    top, bottom, left, right = camera.cuts
    for cut in (top + y, bottom - y, left + x, right - x):
        inside = np.minimum(inside, cut)
    if camera.sector:
        half = math.radians(camera.sector)
        wedge = down * math.cos(half) + (x + 0.3) * math.sin(half)
        inside = np.minimum(inside, wedge.astype(np.float32))
    return inside


@functools.cache
def _retina(seed: int) -> np.ndarray:
    """[RETINA_PX, RETINA_PX, 3] uint8, retina all over."""
    return synthetic.draw_fundus(seed, RETINA_PX, RETINA_PX, 1.45 * RETINA_PX)[0]


def _light(camera: Camera, x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    retina = _retina(seed % 3)
    to_retina = RETINA_PX / (2 * 1.45)  # the square of 1.45 radii holds every aperture's corners
    maps = np.broadcast_arrays(x * to_retina + RETINA_PX / 2, y * to_retina + RETINA_PX / 2)
    light = cv2.remap(retina, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    falloff = (1 - camera.falloff) ** (x**2 + y**2)
    scale = np.float32(camera.exposure * 170 / retina[..., 0].mean())
    return light * (scale * falloff)[..., None]


def _grain(camera: Camera, height: int, width: int, seed: int) -> np.ndarray:
    """[H, W, 3] float32; a tile repeated, since normal numbers for 12 megapixels take a second."""
    side = 512
    tile = np.random.default_rng(seed).normal(0, camera.grain, (side, side, 3)).astype(np.float32)
    if camera.grain_px > 1:
        soft = cv2.GaussianBlur(tile, (0, 0), camera.grain_px / 2)
        tile = soft * (np.float32(camera.grain) / soft.std())
    return np.tile(tile, (-(-height // side), -(-width // side), 1))[:height, :width]


def _compressed(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def disc(size: tuple[int, int], radius: float, off: tuple[float, float] = (0, 0)) -> np.ndarray:
    """-> [H, W] bool, a disc so far (down, right) from the middle, in px."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    centre = (size[0] - 1) / 2 + off[0], (size[1] - 1) / 2 + off[1]
    return np.hypot(rows - centre[0], columns - centre[1]) <= radius


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    return float((a & b).sum() / (a | b).sum())


def photograph(
    height: int, width: int, radius: float, noise: float = 3.0, cut: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc in a dark frame, cut off above and below at `cut` radii -> image, fov."""
    rows, columns = np.mgrid[:height, :width]
    rows, columns = rows - (height - 1) / 2, columns - (width - 1) / 2
    fov = (np.hypot(rows, columns) <= radius) & (np.abs(rows) <= cut * radius)
    rng = np.random.default_rng(0)
    image = np.where(fov[..., None], (190, 100, 50), (4, 4, 6)) + rng.normal(
        0, noise, (height, width, 3)
    )
    return image.clip(0, 255).astype(np.uint8), fov
