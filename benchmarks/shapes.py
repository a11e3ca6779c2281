"""Measurements of drawn vessels against arithmetic, at eight angles, three widths, three sizes.

    python benchmarks/shapes.py [--before COMMIT]

The shapes are those of tests/support/drawn_vessels.py, drawn and calculated without segpipe. With
COMMIT they are measured by the package as it was, too. Two minutes a package on one core. Writes
results/shapes.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from common import ROOT, facts, last_json, run, tree_at, write

from segpipe.data import synthetic
from segpipe.data.arrays import Image8
from segpipe.data.classes import VESSEL, classes_of
from segpipe.measurement import vessels

sys.path.insert(0, str(ROOT / "tests" / "support"))
import drawn_vessels
from drawn_vessels import SHAPES, Shape

ANGLES = (0, 13, 27, 45, 58, 71, 90, 121)  # degrees
WIDTHS = (1 / 256, 1 / 128, 1 / 64)  # diameters: 2, 4 and 8 px of a field of 512
FIELDS = (512, 1024, 2048)  # px
WORKING = (540.0, 768.0, 1024.0, 2048.0)  # px across, at which masks might be measured
OF_KINDS = np.array([0, 1, 1, 1, 2], np.uint8)  # classes of a picture of kinds
AREA = math.pi / 4  # of the field, in squared diameters
DRAWN = "calibre_mean, against the pixels drawn"
RELATIVE = (
    *("calibre_mean", DRAWN, "length_density", "tortuosity", "vessel_density"),
    *("total_squared_curvature", "mean_squared_curvature"),
)
DIFFERENCES = {  # and what is added to them
    "fractal_dimension": "",
    "branch_angle_mean_deg": "degrees",
    "num_branch_points": "",
    "mean_squared_curvature": "1/diameter^2, of straight lines",
}
BOUND = ("calibre_mean", DRAWN, "length_density", "tortuosity", "vessel_density")
SIDES = tuple(cells / 270 for cells in (2, 3, 4, 6, 8, 12, 16, 24, 32))  # diameters
FINEST = 9  # levels of the Koch curve whose boxes are counted: more than boxes tell apart
PEERS = (
    "Published for peers, median error on 36 such drawn masks at four angles (Fundus Atlas): VascX "
    "0.7 %, PVBM 3.8 %, AutoMorphalyzer 7.0 %, AutoMorph 8.0 %; worst width VascX 1.1 %, "
    "AutoMorphalyzer 18.6 %, AutoMorph 56.5 %. Their shapes and widths are their own."
)

Errors = npt.NDArray[np.float64]
"""[widths, angles] of one shape, column and size; NaN where arithmetic has no answer."""
Table = dict[str, dict[str, Errors]]
"""Of each shape and column."""


def answers(shape: Shape, mask: Image8) -> dict[str, float]:
    """What is true of each column."""
    drawn = np.count_nonzero(mask == VESSEL) / len(mask) ** 2 / shape.area
    return {
        "calibre_mean": shape.width if shape.area == shape.area else math.nan,
        DRAWN: shape.width * drawn,
        "length_density": shape.length / AREA,
        "tortuosity": shape.length / shape.chord,
        "vessel_density": shape.area / AREA,
        "total_squared_curvature": shape.squared_curvature,
        "mean_squared_curvature": shape.squared_curvature / shape.length,
        "fractal_dimension": shape.more.get("fractal_dimension", 1.0),
        "branch_angle_mean_deg": shape.branch_angle,
        "num_branch_points": math.nan if shape.more else float(shape.branch_points),
    }


def masks(shape: Shape, diameter: int) -> Iterator[Image8]:
    """At each angle, each at another place among the pixels."""
    for number, angle in enumerate(ANGLES):
        offset = complex(0.37 * number % 1, 0.61 * number % 1) - (0.5 + 0.5j)
        yield drawn_vessels.draw(shape, diameter, angle, offset)


def measured(diameter: int) -> tuple[Table, Table]:
    """Relative errors, and differences."""
    relative: Table = {name: {} for name in SHAPES}
    difference: Table = {name: {} for name in SHAPES}
    for name, make in SHAPES.items():
        pairs = []
        for width in WIDTHS:
            shape = make(width)
            for mask in masks(shape, diameter):
                found = vessels.measure(mask)
                pairs.append((found, answers(shape, mask)))
        for column in RELATIVE:
            values = _values(pairs, column)
            with np.errstate(divide="ignore"):
                relative[name][column] = values[0] / values[1] - 1
        for column in DIFFERENCES:
            values = _values(pairs, column)
            difference[name][column] = values[0] - values[1]
        if name in ("arc", "sine"):
            difference[name]["mean_squared_curvature"] *= math.nan
    return relative, difference


def _values(pairs: list[tuple[vessels.Measurements, dict[str, float]]], column: str) -> Errors:
    """[2, widths, angles]: found and true."""
    name = column.partition(",")[0]
    values = [(getattr(found, name, math.nan), true[column]) for found, true in pairs]
    return np.array(values, np.float64).T.reshape(2, len(WIDTHS), len(ANGLES))


def summary(tables: dict[int, tuple[Table, Table]]) -> dict[str, list[float]]:
    """Median and largest error of each column that is bound, over shapes, widths, angles, sizes;
    of the dimension the Koch curve's, of the largest error also that of vessels from 8 px."""
    found = {}
    for column in BOUND:
        errors = np.array([[one[column] for one in tables[d][0].values()] for d in tables])
        wide = np.array([[width * d >= 8 for width in WIDTHS] for d in tables])
        errors = np.abs(errors).transpose(0, 2, 1, 3)  # [sizes, widths, shapes, angles]
        found[column] = [float(of) for of in (np.nanmedian(errors), np.nanmax(errors[wide]))]
        found[column].append(float(np.nanmax(errors)))
    koch = np.abs([tables[d][1]["Koch"]["fractal_dimension"] for d in tables])
    found["fractal_dimension"] = [float(np.median(koch)), math.nan, float(koch.max())]
    return found


def of_boxes() -> list[float]:
    """What boxes of the sides that segpipe takes give for the Koch curve without any width, with
    segpipe's correction for ends: at each angle."""
    points = drawn_vessels.koch_points(FINEST, 0.8)
    sides = np.array(SIDES)
    size = np.log(sides) - np.log(sides).mean()
    found = []
    for angle in ANGLES:
        line, counts = points * np.exp(1j * math.radians(angle)), []
        for side in sides:
            places = [(a / 4 + 1j * b / 4) * side for a in range(4) for b in range(4)]
            boxes = [(line + place) / side for place in places]
            counts.append(
                np.mean([len(np.unique(np.floor(b.real) + 1j * np.floor(b.imag))) for b in boxes])
            )
        dimension = 1.5
        for _ in range(10):
            across = np.log(np.array(counts) ** (1 / dimension) - 1)
            dimension *= float(-(size @ across) / (size @ size))
        found.append(dimension)
    return found


def beside() -> list[str]:
    """An artery beside a vein, each against its own arithmetic."""
    from segpipe.measuring.measured import measured_vessels  # --summary runs without

    lines = ["| | " + " | ".join(f"{size:,} px: median | worst" for size in FIELDS) + " |"]
    lines.append("|---|" + "---|---|" * len(FIELDS))
    errors: dict[str, list[Errors]] = {}
    for size in FIELDS:
        of_size: dict[str, list[float]] = {}
        for name, width in itertools.product(drawn_vessels.PAIRS, WIDTHS):
            pair = drawn_vessels.beside(name, width)
            for angle in ANGLES:
                picture = drawn_vessels.draw_kinds(pair, size, angle, 0.37 - 0.11j)
                mask = np.asarray(OF_KINDS[picture])
                found = measured_vessels(mask, picture)
                for kind, code in (("artery", 1), ("vein", 2)):
                    shape = pair[kind]
                    drawn = np.count_nonzero(picture == code) / size**2 / shape.area
                    true = {
                        DRAWN: shape.width * drawn,
                        "length_density": shape.length / AREA,
                        "tortuosity": shape.length / shape.chord,
                        "density, against the pixels drawn": drawn * shape.area / AREA,
                    }
                    for column, answer in true.items():
                        value = found[f"{kind}_{column.partition(',')[0]}"]
                        of_size.setdefault(f"{kind}_{column}", []).append(value / answer - 1)
        for title, values in of_size.items():
            errors.setdefault(title, []).append(np.abs(values))
    for title, sizes in errors.items():
        cells = [f"{np.median(one):.2%} | {one.max():.2%}" for one in sizes]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def at_working_sizes() -> list[str]:
    """The thinnest straight, curved and forked vessels of a field of 2,048 px, measured at others;
    and the CPU time for the mask of a drawn photograph as large."""
    from segpipe.measurement import traced  # --summary runs without

    lines = ["| measured at, px across | calibre: median | worst | length: worst | ms |"]
    lines.append("|---|---|---|---|---|")
    _, *fundus = synthetic.draw_fundus(1, 2 * FIELDS[1] + 48, 2 * FIELDS[1] + 48)
    photograph = classes_of(*fundus)
    usual = traced.LARGEST_FIELD
    for size in WORKING:
        traced.LARGEST_FIELD = size
        errors = []
        for name in ("straight", "arc", "sine", "Y"):
            shape = SHAPES[name](WIDTHS[0])
            for mask in masks(shape, FIELDS[-1]):
                found, true = vessels.measure(mask), answers(shape, mask)
                errors.append(
                    (
                        found.calibre_mean / true[DRAWN] - 1,
                        found.length_density / true["length_density"] - 1,
                    )
                )
        calibre, length = np.abs(errors).T
        spent = []
        for _ in range(5):
            start = time.process_time()
            vessels.measure(photograph)
            spent.append(1000 * (time.process_time() - start))
        lines.append(
            f"| {size:,.0f} | {np.median(calibre):.2%} | {calibre.max():.2%} | {length.max():.2%} "
            f"| {min(spent):.0f} |"
        )
    traced.LARGEST_FIELD = usual
    return lines


def cell(errors: Errors, form: str) -> str:
    """Median, largest, and the widest span over angles; all as one cell each."""
    if np.isnan(errors).all() or np.isinf(errors).any():
        return "– | – | –"
    worst = errors.ravel()[np.nanargmax(np.abs(errors))]
    spans = np.ptp(errors, axis=1)
    return " | ".join(format(one, form) for one in (np.nanmedian(errors), worst, spans.max()))


def table(tables: dict[int, Table], columns: dict[str, str], form: str) -> list[str]:
    heads = [f"{size:,} px: median | worst | over angles" for size in tables]
    lines = [
        f"| shape | column | {' | '.join(heads)} |",
        "|---|---|" + "---|---|---|" * len(tables),
    ]
    for name in SHAPES:
        for column, unit in columns.items():
            cells = [cell(tables[size][name][column], form) for size in tables]
            if set(cells) != {"– | – | –"}:
                title = f"{column}, {unit}" if unit else column
                lines.append(f"| {name} | {title} | {' | '.join(cells)} |")
    return lines


def before_at(commit: str) -> dict[str, list[float]]:
    """The summary by the package as it was."""
    with tempfile.TemporaryDirectory() as folder:
        tree = tree_at(commit, Path(folder) / "before", "segpipe")
        _, printed = run([__file__, "--summary"], {"PYTHONPATH": str(tree)})
    found: dict[str, list[float]] = last_json(printed)
    return found


def compared(found: dict[str, list[float]], before: dict[str, list[float]]) -> list[str]:
    heads = "median error | worst from 8 px | worst of all"
    lines = [f"| | {heads}{f' | before: {heads}' if before else ''} |"]
    lines.append("|---|" + "---|---|---|" * (2 if before else 1))
    for column, figures in found.items():
        form = ".3f" if column == "fractal_dimension" else ".2%"
        title = f"{column} of the Koch curve" if column == "fractal_dimension" else column
        shown = [*figures, *before.get(column, [])]
        cells = ["–" if math.isnan(one) else format(one, form) for one in shown]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--before", default="", help="Measure by the package of this commit too.")
    parser.add_argument("--summary", action="store_true", help="Print the summary as JSON alone.")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    tables = {size: measured(size) for size in FIELDS}
    found = summary(tables)
    if given.summary:
        print(json.dumps(found))
        return
    boxes = of_boxes()
    before = before_at(given.before) if given.before else {}
    command = "python benchmarks/shapes.py" + (f" --before {given.before}" if given.before else "")
    lines = [
        *facts(command),
        f"Vessels 1/256, 1/128 and 1/64 of the field wide, at {len(ANGLES)} angles and places "
        "among the pixels, in round fields. A pixel is vessel where its centre lies inside; ends "
        "are flat. All answers are closed forms. Pixels have another width than was drawn: at 45 "
        "degrees a vessel of 4 px is 4.24 or 3.54 px wide. So the calibre is told against the "
        "width drawn and against that of the pixels, which is their area over the length; and the "
        "density, a plain count of pixels, has the raster's error alone.",
        "",
        "All shapes and sizes, absolute errors (of the dimension the difference):",
        "",
        *compared(found, before),
        "",
        PEERS,
        "",
        f"The Koch curve's dimension is log 4 / log 3 = {math.log(4) / math.log(3):.3f}. Boxes of "
        f"these sides give {np.median(boxes):.3f} ({min(boxes):.3f} to {max(boxes):.3f} over "
        "angles) for the curve without any width.",
        "",
        "Relative errors, over three widths and all angles; `over angles` is the widest span of "
        "one width:",
        "",
        *table({size: one[0] for size, one in tables.items()}, dict.fromkeys(RELATIVE, ""), ".2%"),
        "",
        "Differences, of lines of dimension 1 and the Koch curve:",
        "",
        *table({size: one[1] for size, one in tables.items()}, DIFFERENCES, ".3f"),
        "",
        "Arteries of these widths beside veins 1.5 times as wide, an artery's width between them, "
        "straight and in arcs: `segpipe measure` on the picture of both, absolute errors over all "
        "angles and widths:",
        "",
        *beside(),
        "",
        "Where a field of 2,048 px is measured: vessels of 1/256 of it against the pixels drawn, "
        "and CPU time for the mask of a drawn photograph of that size:",
        "",
        *at_working_sizes(),
    ]
    write("shapes.md", lines)


if __name__ == "__main__":
    main()
