"""What `import segpipe` offers: one photograph in this process, without Ray.

The same path as that of `segpipe segment`, with the same masks: fit -> engine -> native mask.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np

from segpipe.data import fov as fields
from segpipe.data.arrays import Image8, Mask, Plane
from segpipe.data.canvas import Diameter, native_mask, restore
from segpipe.data.classes import BACKGROUND, OUTSIDE, VESSEL, classes_of
from segpipe.data.fitting import Fitted, fit, fit_array
from segpipe.data.photograph import MAX_MEGAPIXELS
from segpipe.errors import Fault, RejectedImage, UserError
from segpipe.measurement import structures, trust, vessels
from segpipe.measurement.disc import Disc
from segpipe.measurement.quality import Quality
from segpipe.measurement.vessels import Measurements
from segpipe.models import checkpoint, engine
from segpipe.models import structures as networks
from segpipe.models.checkpoint import Card
from segpipe.models.forms import Score
from segpipe.models.structures import Maps
from segpipe.segment.fetch import LARGEST_FILE_BYTES


@dataclass(frozen=True)
class Result:
    """A segmented photograph. H, W are its own size, in the file's own pixels: where EXIF says to
    turn it for display, nothing here is turned."""

    mask: Image8
    """[H, W] uint8: 0 outside the field of view, 1 vessel, 2 background."""
    score: Plane
    """[H, W] float32 in [0, 1]: how sure of a vessel the network is; 0 outside the field."""
    fov: Mask
    """[H, W] bool: the field of view."""
    measurements: Measurements
    """Of the vessels, at the network's scale, as `segpipe segment --measure full` tells them."""
    quality: Quality
    """Hints at how well the photograph shows its vessels, and how far the mask can be trusted."""
    note: str
    """What was odd about the file or its field, or ''."""
    kinds: Image8 | None = None
    """[H, W] uint8: 0 outside the field, 1 artery, 2 vein, 3 crossing, 4 background; None of a
    model without structures."""
    disc: Disc | None = None
    """The optic disc, in px of the photograph; None where there is none, or as `kinds`."""
    structures: Mapping[str, Any] | None = None
    """Measurements of arteries, veins and zones, as docs/columns.md names them; or as `kinds`."""


@dataclass(frozen=True)
class Model:
    """A checkpoint's network on this machine's CPU. Make one with `segpipe.load_model`."""

    card: Card
    """What the checkpoint says of itself: network, working diameter (px), threshold, data."""
    engine: str
    """How the network runs here, such as "native fp32"."""
    _score: Score = field(repr=False)
    _maps: Maps | None = field(default=None, repr=False)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """A network keeps its activations: threads that share a model take turns in it."""

    def segment(self, image: Image8 | str | os.PathLike[str]) -> Result:
        """image [H, W, 3] uint8 RGB, or the path of a file (docs/formats.md tells which) -> Result.

        A file is decoded in this process. One that you do not trust may crash, hang or bloat it:
        `segpipe segment` decodes in a child process with limits, and turns such files into rows.

        Raises ValueError for another array (it says which shape and dtype came), and for a picture
        that cannot be segmented: no image, more than 200 megapixels, no field of view. OSError for
        a file that cannot be read.
        """
        fitted = _fitted(image, self.card.working)
        canvas, fov, geometry = fitted.canvas, fitted.fov, fitted.geometry
        with self._one_at_a_time:
            score = self._score(canvas, fov)  # [S, S] float32
            maps = self._maps(canvas, fov) if self._maps else None
        mask = native_mask(score, fov, geometry, self.card.threshold)
        field = mask != OUTSIDE
        native: Plane = restore(score, geometry).clip(0, 1)
        native[~field] = 0
        threshold, zoom = self.card.threshold, vessels.zoom_of(geometry)
        hints = trust.assess_mask(canvas, fov, score, threshold, zoom)
        if maps is None:
            measured = vessels.measure_canvas(score, fov, geometry, threshold)
            return Result(mask, native, field, measured, hints, fitted.note)
        found = structures.find(score, maps, fov, geometry, threshold)
        return Result(
            *(mask, native, field, structures.of_all_vessels(found, zoom), hints, fitted.note),
            kinds=structures.native_kinds(found.plane, mask, geometry),
            disc=found.disc and found.disc.in_photograph(geometry),
            structures=structures.measure(found, zoom),
        )


def load_model(
    name_or_path: str | os.PathLike[str] = checkpoint.DEFAULT, structures: bool = False
) -> Model:
    """A shipped checkpoint by its name (`segpipe models` lists them), or a .safetensors of
    `segpipe train` by its path or s3:// URI -> a Model.

    It runs by the quickest engine that matches the reference here, as that of `segpipe segment`.
    The first time a checkpoint is loaded on a machine this is tried, which takes some seconds.
    With `structures` it finds arteries, veins and the optic disc too.

    Raises ValueError where there is no such checkpoint, where it is damaged, or where structures
    are not found at its working diameter.
    """
    if not isinstance(name_or_path, str | os.PathLike) or not os.fspath(name_or_path):
        raise ValueError(f"checkpoint {name_or_path!r}: wanted a name or a path")
    name = os.fspath(name_or_path)
    try:
        weights = checkpoint.read(name)
        loaded = checkpoint.load(weights, name)
        engine.check_fits(loaded)
        more = networks.wanted(loaded) if structures else None
        chosen = engine.select(engine.find_trials(weights, "cpu"), "auto", "auto").engine
    except UserError as error:
        raise ValueError(str(error).removeprefix("--checkpoint ")) from error
    num_threads = _num_threads(chosen)
    score = engine.open_score(weights, chosen, num_threads, loaded.card.tta)
    maps = networks.open_maps(more, chosen, num_threads) if more else None
    return Model(loaded.card, chosen.name, score, maps)


def measure(mask: Image8 | Mask, fov: Mask | None = None) -> Measurements:
    """mask [H, W] uint8 classes, as Result.mask (0 outside the field, 1 vessel, 2 background), or
    vessels and their field: mask [H, W] bool, or uint8 with 1 for vessel, and fov [H, W] bool.

    Lengths in px are those of the mask. Of a mask whose field is less than 540 px wide thin vessels
    may be missing; Result.measurements are taken before the mask is resampled. NaN is what cannot
    be measured, with the reason in `measure_note`. docs/results.md defines each figure.

    Raises ValueError for other shapes, dtypes or classes.
    """
    came = _described(mask)
    if not (isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.dtype in (bool, np.uint8)):
        raise ValueError(f"mask: {came}; wanted [H, W] uint8 classes or bool vessels")
    if mask.dtype == np.uint8 and mask.size and mask.max() > BACKGROUND:
        raise ValueError(
            f"mask: {came} with values up to {mask.max()}; wanted 0 outside, 1 vessel, 2 "
            "background, or bool vessels (such as label > 127) with fov"
        )
    if fov is None:
        if mask.dtype == bool or ((mask == VESSEL).any() and not (mask == BACKGROUND).any()):
            raise ValueError(f"mask: {came} of vessels alone; wanted fov, [H, W] bool, with it")
        return vessels.measure(mask.view(np.uint8))
    if not (isinstance(fov, np.ndarray) and fov.dtype == bool and fov.shape == mask.shape):
        size = " x ".join(map(str, mask.shape))
        raise ValueError(f"fov: {_described(fov)}; wanted bool [{size}], as mask")
    return vessels.measure(classes_of(mask == VESSEL, fov))


def find_fov(image: Image8) -> Mask:
    """image [H, W, 3] uint8 RGB -> its field of view [H, W] bool: where the retina is seen.

    Raises ValueError for another array, and for a picture without a field of view.
    """
    try:
        return fields.find_fov(_checked(image))
    except RejectedImage as error:
        raise ValueError(f"image: {error}") from error


def _fitted(image: Image8 | str | os.PathLike[str], working: Diameter) -> Fitted:
    path = None if isinstance(image, np.ndarray) else _path(image)
    try:
        if path is None:
            return fit_array(_checked(image), working)
        return fit(_read(path), working, MAX_MEGAPIXELS)
    except RejectedImage as error:
        reason = str(error)
        if error.fault is Fault.TOO_MANY_PIXELS:
            reason = f"more than {MAX_MEGAPIXELS:g} megapixels"
        raise ValueError(f"{path or 'image'}: {reason}") from error


def _path(image: object) -> Path:
    if not isinstance(image, str | os.PathLike):
        raise ValueError(f"image: {_described(image)}; {WANTED}, or a path")
    return Path(image).expanduser()


def _read(path: Path) -> bytes:
    """Of a regular file: a pipe would be waited for, and a device read for ever."""
    stat = path.stat()
    if not S_ISREG(stat.st_mode):
        raise ValueError(f"{path}: no regular file; wanted a photograph")
    if stat.st_size > LARGEST_FILE_BYTES:
        raise ValueError(f"{path}: larger than {LARGEST_FILE_BYTES >> 20} MiB")
    return path.read_bytes()


def _checked(image: object) -> Image8:
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image: {_described(image)}; {WANTED}")
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    raise ValueError(f"image: {_described(image)}; {WANTED}")


WANTED = "wanted an array [H, W, 3] of dtype uint8, RGB"


def _described(value: object) -> str:
    """An array's dtype and shape, or another value's type."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} [{' x '.join(map(str, value.shape))}]"
    return type(value).__name__


def _num_threads(chosen: engine.Engine) -> int:
    """The process's own, where torch runs the network: nothing is set that was not."""
    if chosen.backend == "native":
        return 1
    import torch

    return torch.get_num_threads()
