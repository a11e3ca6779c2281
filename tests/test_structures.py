"""Arteries, veins, the optic disc and its zones: on drawn canvases whose answers arithmetic gives.

Run: pytest tests/test_structures.py
"""

import io
import itertools
import math

import cv2
import numpy as np
import pytest
import safetensors.numpy
import torch
from drawn_vessels import arc, draw, fork, star, straight
from PIL import Image, ImageOps

from segpipe import kernels
from segpipe.data import codecs
from segpipe.data.arrays import DISC_STEP, StructureMaps
from segpipe.data.canvas import Geometry, canvas_side
from segpipe.data.eye import eye_in_name
from segpipe.errors import UserError
from segpipe.kernels.resunet import bf16_problem
from segpipe.measurement import structures, vessels
from segpipe.measurement.disc import Disc, find_disc, laterality, offset
from segpipe.measurement.kinds import ARTERY, CROSSING, VEIN, agreed
from segpipe.measurement.names import OF_KIND, OF_ZONE, ZONES
from segpipe.measurement.traced import cut, trace_mask
from segpipe.measurement.zones import ARTERIOLES, VENULES, equivalent
from segpipe.measuring.measured import Files, measured
from segpipe.models import structures as networks
from segpipe.models.engine import Engine
from segpipe.models.resunet import DiscUNet, KindsUNet

FIELD = 1024  # px across
NATIVE = kernels.missing()


def canvas_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """A drawn mask [D, D] as the network's canvas has it: score and fov [S, S], and how it came."""
    side = canvas_side(networks.DIAMETER)
    score, fov = np.zeros((side, side), np.float32), np.zeros((side, side), np.uint8)
    size = len(mask)
    score[:size, :size] = mask == 1
    fov[:size, :size] = np.where(mask, 255, 0)
    return score, fov, Geometry(size, size, 0, 0, size, size, size, size)


def found_in(mask: np.ndarray, artery: np.ndarray, disc: np.ndarray | None = None):
    """Structures of a drawn mask where `artery` and `disc` [D, D] in [0, 1] are the maps."""
    score, fov, geometry = canvas_of(mask)
    of_artery, of_disc = np.zeros((2, *score.shape), np.float32)
    of_artery[: len(mask), : len(mask)] = artery
    if disc is not None:
        of_disc[: len(mask), : len(mask)] = disc
    maps = StructureMaps(of_artery, squares(of_disc))
    return structures.find(score, maps, fov, geometry, 0.5), geometry


def squares(plane: np.ndarray) -> np.ndarray:
    """[S, S] -> the means of squares of DISC_STEP px."""
    num = len(plane) // DISC_STEP
    return plane.reshape(num, DISC_STEP, num, DISC_STEP).mean(axis=(1, 3))


def ellipse(x: float, y: float, width: float, height: float, side: int = FIELD) -> np.ndarray:
    """[side, side] float32: 0.9 inside, 0.05 outside."""
    rows, columns = np.mgrid[:side, :side]
    inside = ((columns - x) / width * 2) ** 2 + ((rows - y) / height * 2) ** 2 <= 1
    return np.where(inside, 0.9, 0.05).astype(np.float32)


# ---- the network


@pytest.mark.skipif(bool(NATIVE), reason=NATIVE)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("side", [256, 320, 288])
def test_the_native_maps_are_those_of_torch(precision, side):
    """Weights of no training, the field a disc: each pixel of it, and both maps; where the
    network's cells of 128 px reach beyond the canvas too."""
    if precision == "bf16" and (problem := bf16_problem()):
        pytest.skip(problem)
    rng = np.random.default_rng(3)
    canvas, fov = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.uint8)
    canvas[:256, :256] = rng.integers(0, 256, (256, 256, 3))
    canvas[-1] = canvas[:, -1] = 0
    fov[:256, :256] = draw(straight(0.02), 256, 0.0).clip(0, 1) * np.uint8(255)
    data = safetensors.numpy.save(untrained())
    found = networks.open_maps(data, Engine("native", precision))(canvas, fov)
    wanted = networks.open_maps(data, Engine("torch", "fp32"))(canvas, fov)
    worst = {"fp32": 2e-6, "bf16": 0.02}[precision]
    eroded = cv2.erode(fov, np.ones((7, 7), np.uint8))
    for one, other, step in zip(found, wanted, (1, DISC_STEP), strict=True):
        assert one.shape == other.shape == (side // step, side // step)
        inside = cv2.resize(eroded, one.shape, interpolation=cv2.INTER_NEAREST) > 0
        assert np.abs(one - other)[inside].max() < worst
        assert other[inside].std() > 0.01  # a constant would agree too


def untrained() -> dict[str, np.ndarray]:
    """Both networks with weights of no training, as a file has them."""
    torch.manual_seed(3)
    of_kinds, of_disc = KindsUNet().eval(), DiscUNet().eval()
    for layer in [*of_kinds.modules(), *of_disc.modules()]:
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.running_mean, std=0.1)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2.0)
    both = {networks.KINDS_NETWORK: of_kinds, networks.DISC_NETWORK: of_disc}
    parts = [networks.dump(name, network.state_dict()) for name, network in both.items()]
    return parts[0] | parts[1]


def test_the_discs_network_sees_the_whole_field_at_a_quarter_of_its_size():
    """Means of 4x4 px, and where the field ends and the canvas does nothing."""
    rng = np.random.default_rng(4)
    canvas = rng.integers(0, 256, (272, 272, 3), dtype=np.uint8)
    fov = np.zeros((272, 272), np.uint8)
    fov[:240, 20:200] = 255
    image, inside = networks.reduced(canvas, fov)
    assert image.shape == (68, 68, 3)
    wanted = canvas.reshape(68, 4, 68, 4, 3).mean(axis=(1, 3))
    difference = image[:60, 5:50].astype(int) - wanted[:60, 5:50]
    assert np.abs(difference).max() <= 0.5
    image[:60, 5:50] = 0
    inside[:60, 5:50] -= 255
    assert not image.any()
    assert not inside.any()


def test_the_file_keeps_statistics_whole_and_halves_weights():
    network = KindsUNet()
    state = network.state_dict()
    arrays = networks.dump(networks.KINDS_NETWORK, state)
    size = sum(one.nbytes for one in arrays.values())
    assert size < 0.55 * sum(one.numel() * one.element_size() for one in state.values())
    np.testing.assert_array_equal(
        arrays["kinds.first.1.running_var"], state["first.1.running_var"].numpy()
    )


def test_a_file_that_is_gone_is_told_as_a_damaged_one(monkeypatch):
    monkeypatch.setattr(networks, "FILE", "gone.maps")
    with pytest.raises(UserError, match=r"gone\.maps is damaged, install segpipe again"):
        networks.read()


def test_one_network_of_the_file_is_replaced_and_the_other_stays():
    shipped = safetensors.numpy.load(networks.read())
    other = untrained()
    state = DiscUNet().state_dict()
    made = safetensors.numpy.load(networks.replaced(networks.DISC_NETWORK, state))
    assert made.keys() == shipped.keys() == other.keys()
    for name, one in made.items():
        of_disc = name.startswith("disc.")
        wanted = networks.dump("disc", state)[name] if of_disc else shipped[name]
        np.testing.assert_array_equal(one, wanted)


# ---- kinds


def crossed() -> tuple[np.ndarray, np.ndarray]:
    """A vessel across one that goes down, and where the first is."""
    across, down = (draw(straight(0.012), FIELD, angle) for angle in (0.0, 90.0))
    return np.where(across == 1, across, down), across == 1


def test_a_segment_has_one_kind_however_noisy_the_map_is():
    mask, across = crossed()
    rng = np.random.default_rng(5)
    wrong = rng.random(mask.shape) < 0.4  # of the pixels are told the other kind
    found, geometry = found_in(mask, np.where(across ^ wrong, 0.8, 0.2))
    picture = structures.native_kinds(found.plane, mask, geometry)
    away = np.abs(np.arange(FIELD) - FIELD / 2) > 40  # px from the crossing
    assert set(picture[:, away][(mask == 1)[:, away] & across[:, away]]) == {ARTERY}
    assert set(picture[away][(mask == 1)[away] & ~across[away]]) == {VEIN}
    middle = FIELD // 2
    assert picture[middle, middle] == CROSSING
    assert 50 < np.count_nonzero(picture == CROSSING) < 1000  # px: about two widths each way


def test_answers_lose_least_of_all_there_are():
    """Against every answer of small graphs."""
    rng = np.random.default_rng(7)
    for _ in range(40):
        num = int(rng.integers(2, 8))
        evidence, pairs = rng.normal(size=num) * 20, rng.integers(0, num, (6, 2))
        costs = rng.choice([0.0, 5.0, 30.0], 6)

        def lost(answers: np.ndarray, of=(evidence, pairs, costs)) -> float:
            evidence, pairs, costs = of
            apart = answers[pairs[:, 0]] != answers[pairs[:, 1]]
            return float(np.abs(evidence[answers != (evidence > 0)]).sum() + costs[apart].sum())

        every = [np.array(one) for one in itertools.product([False, True], repeat=num)]
        found = agreed(evidence, pairs, costs)
        assert lost(found) == pytest.approx(min(map(lost, every)), abs=0.1)


def test_a_short_piece_goes_with_the_vessel_that_it_continues():
    """From the crossing to where a branch leaves the map says the other kind, but not surely."""
    mask, across = crossed()
    cv2.line(mask, (575, 512), (640, 600), 1, 8)
    artery = np.full(mask.shape, 0.9)
    artery[:, 520:590][across[:, 520:590]] = 0.42
    artery[~across & (np.abs(np.arange(FIELD) - 512) < 60)] = 0.1  # what goes down
    found, geometry = found_in(mask, artery)
    picture = structures.native_kinds(found.plane, mask, geometry)
    assert set(picture[512, [300, 550, 560, 800]]) == {ARTERY}
    assert set(picture[[300, 800], 512]) == {VEIN}


def test_what_crosses_its_own_kind_is_no_crossing():
    mask, _ = crossed()
    found, geometry = found_in(mask, np.ones(mask.shape))
    picture = structures.native_kinds(found.plane, mask, geometry)
    assert set(np.unique(picture)) == {0, ARTERY, 4}


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.3])
def test_both_pictures_agree_on_what_is_vessel(factor):
    """At any native size: a vessel's pixel has a kind, every other none."""
    mask, across = crossed()
    found, geometry = found_in(mask, np.where(across, 0.9, 0.1))
    size = round(FIELD * factor)
    native = cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST)
    native = np.pad(native, ((7, 3), (5, 11)))
    geometry = Geometry(*native.shape, 7, 5, size, size, FIELD, FIELD)
    picture = structures.native_kinds(found.plane, native, geometry)
    wanted = np.array([0, 1, 4])[native]  # outside, vessel, background
    assert np.array_equal(np.where(np.isin(picture, (ARTERY, VEIN, CROSSING)), 1, picture), wanted)


def test_a_mask_without_vessels_has_no_kinds():
    mask = np.full((FIELD, FIELD), 2, np.uint8)
    found, geometry = found_in(mask, np.ones(mask.shape))
    assert set(np.unique(structures.native_kinds(found.plane, mask, geometry))) == {4}
    columns = structures.measure(found, 1.0)
    assert columns["artery_density"] == columns["vein_length_density"] == 0
    assert columns["artery_calibre_mean"] is None


def test_a_picture_of_kinds_is_measured_as_what_it_was_made_of():
    """By `segpipe measure`; within crossings a file does not say which branch is which."""
    mask, artery, disc = spokes()
    found, geometry = found_in(mask, artery, disc)
    picture = structures.native_kinds(found.plane, mask, geometry)
    columns, _ = measured(Files(codecs.encode_kinds(picture)), None, 200.0)
    assert columns["zone_note"] == "no optic disc"
    wanted = structures.measure(found, 1.0)
    for name in OF_KIND:
        for kind in ("artery", "vein"):
            if (value := wanted[f"{kind}_{name}"]) is None:
                continue
            assert columns[f"{kind}_{name}"] == pytest.approx(value, rel=0.01), (kind, name)
    assert columns["calibre_mean_px"] == vessels.measure(mask).calibre_mean_px


def test_parts_of_paths_are_runs_of_their_points():
    traced = trace_mask(draw(star("cross", 0.01, [0, 90, 180, 270], 0.3), 512, 10.0))
    assert traced is not None
    kept = np.abs(traced.points - traced.points.mean()) > 60
    paths, at = cut(traced.paths, kept)
    assert kept[at].all()
    assert len(paths.start) == 4
    for first, last in zip(paths.start, paths.last, strict=True):
        steps = np.abs(np.diff(paths.points[first : last + 1]))
        assert steps.max() < 1.5  # px: neighbours
    assert not paths.forks.any()  # the branch point is cut off


@pytest.mark.parametrize("width", [7, 8])
@pytest.mark.parametrize("missing", ["", "no C++ compiler"])
def test_kinds_come_back_from_their_file_in_their_colours(width, missing, monkeypatch):
    """Packed by the kernels and without them."""
    if not missing and (problem := kernels.missing()):
        pytest.skip(problem)
    monkeypatch.setattr(kernels, "missing", lambda: missing)
    kinds_ = np.random.default_rng(0).integers(0, 5, (6, width), dtype=np.uint8)
    with Image.open(io.BytesIO(codecs.encode_kinds(kinds_))) as picture:
        assert np.array_equal(np.asarray(picture), kinds_)
        colours = np.asarray(picture.convert("RGB"))
    assert {tuple(map(int, one)) for one in colours[kinds_ == ARTERY]} == {(255, 0, 0)}
    assert {tuple(map(int, one)) for one in colours[kinds_ == VEIN]} == {(0, 0, 255)}


# ---- the disc


@pytest.mark.parametrize(("width", "height"), [(130, 160), (150, 150), (180, 120)])
def test_a_disc_is_found_where_it_was_drawn(width, height):
    fov = np.full((FIELD, FIELD), 255, np.uint8)
    found = find_disc(squares(ellipse(300.3, 520.6, width, height)), fov, FIELD)
    assert found is not None
    assert math.hypot(found.x - 300.3, found.y - 520.6) < 0.5
    assert abs(found.width - width) < 0.02 * width
    assert abs(found.height - height) < 0.02 * height
    assert abs(found.confidence - 0.9) < 0.01


def test_the_disc_in_the_photograph_is_scaled_and_moved():
    geometry = Geometry(2336, 3504, 100, 200, 3000, 3300, 930, 1024)
    disc = Disc(511.5, 464.5, 93.0, 102.4, 0.8).in_photograph(geometry)
    assert math.isclose(disc.x, 200 + 512 * 3300 / 1024 - 0.5)
    assert math.isclose(disc.y, 100 + 465 * 3000 / 930 - 0.5)
    assert math.isclose(disc.height, 300)
    assert math.isclose(disc.width, 330)


@pytest.mark.parametrize(
    "prob",
    [
        np.zeros((FIELD, FIELD), np.float32),
        ellipse(500, 500, 20, 20),  # too small
        ellipse(500, 500, 600, 600),  # too large
        ellipse(500, 500, 150, 150) * np.float32(0.65),  # sure of none of its pixels
    ],
)
def test_a_picture_without_a_disc_is_said_to_have_none(prob):
    fov = np.full((FIELD, FIELD), 255, np.uint8)
    assert find_disc(squares(prob), fov, FIELD) is None
    mask = np.full((FIELD, FIELD), 2, np.uint8)
    found, geometry = found_in(mask, np.ones(mask.shape), prob)
    assert structures.disc_columns(found, geometry, 1) == {"disc": "none"}
    assert structures.measure(found, 1.0)["zone_note"] == "no optic disc"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_eye_is_that_of_the_photograph_as_it_is_shown(orientation):
    """Pillow turns a file with a disc at each of its four sides."""
    for right, down in ((0.3, 0.02), (-0.3, 0.02), (0.02, 0.3), (0.02, -0.3)):
        stored = np.zeros((101, 101), np.uint8)
        stored[round(50 + 100 * down), round(50 + 100 * right)] = 255
        file, exif = io.BytesIO(), Image.Exif()
        exif[0x112] = orientation
        Image.fromarray(stored).save(file, "PNG", exif=exif)
        shown = np.asarray(ImageOps.exif_transpose(Image.open(file)))
        across = np.argwhere(shown)[0][1] - 50
        wanted = None if abs(across) < 12 else "R" if across > 0 else "L"
        assert laterality(right, down, orientation) == wanted


def test_how_far_a_disc_is_from_the_middle_of_the_field():
    disc = Disc(299.5, 549.5, 150, 150, 1.0)
    assert offset(disc, (0, 0, 1000, 1000)) == pytest.approx((-0.2, 0.05))


@pytest.mark.parametrize(
    ("key", "eye"),
    [
        ("a/0123_OD.jpg", "R"),
        ("a/0123-os.jpg", "L"),
        ("right/17_left.png", "L"),
        ("Image_01L.jpg", "L"),
        ("Image_01R.tif", "R"),
        ("both_left_right.jpg", None),
        ("01_dr.JPG", None),
        ("model.png", None),
        ("OD/17.png", None),
        ("21_training.tif", None),
    ],
)
def test_the_eye_that_a_name_says(key, eye):
    assert eye_in_name(key) == eye


# ---- zones and equivalents


def test_equivalents_are_those_of_knudtsons_rounds():
    """By hand: 6 -> 3 -> 2 -> 1, the middle one of three goes on."""
    widths = [120.0, 110.0, 100.0, 95.0, 90.0, 80.0]
    first = sorted(0.88 * math.sqrt(a * a + b * b) for a, b in ((120, 80), (110, 90), (100, 95)))
    second = [0.88 * math.sqrt(first[0] ** 2 + first[2] ** 2), first[1]]
    wanted = 0.88 * math.sqrt(second[0] ** 2 + second[1] ** 2)
    assert math.isclose(equivalent(widths, ARTERIOLES), wanted)
    assert math.isclose(equivalent([*widths, 70.0], ARTERIOLES), wanted)  # the six largest
    assert math.isclose(equivalent([2 * one for one in widths], ARTERIOLES), 2 * wanted)
    assert equivalent(widths, VENULES) > wanted
    assert math.isnan(equivalent(widths[:5], ARTERIOLES))


WIDTHS = {0.010: 7, 0.014: 7}  # diameters: of arteries and of veins, and how many of each


def spokes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arteries and veins from a disc in the middle, by turns -> mask, artery and disc maps."""
    number = sum(WIDTHS.values())
    (thin, _), (wide, _) = WIDTHS.items()
    arteries, veins = (
        draw(star("", width, list(360 / number * np.arange(first, number, 2)), 0.45), FIELD, 3.0)
        for width, first in ((thin, 0), (wide, 1))
    )
    mask = np.where(arteries == 1, arteries, veins)
    middle = (FIELD - 1) / 2
    return mask, np.where(arteries == 1, 0.9, 0.1), ellipse(middle, middle, 140, 140)


def test_zones_hold_what_arithmetic_says():
    found, _ = found_in(*spokes())
    columns = structures.measure(found, 2.0)
    thin, wide = (1024 * width for width in WIDTHS)
    assert columns["zone_note"] is None
    for name, width, number in (("artery", thin, 7), ("vein", wide, 7)):
        for zone, (inner, outer) in ZONES.items():
            area = math.pi * 140**2 * ((outer + 0.5) ** 2 - (inner + 0.5) ** 2)
            length = number * 140 * (outer - inner)
            of = f"{zone}_{name}"
            assert columns[f"{of}_calibre_mean_px"] == pytest.approx(2 * width, rel=0.04)
            assert columns[f"{of}_calibre_mean"] == pytest.approx(width / FIELD, rel=0.04)
            assert columns[f"{of}_length_density"] == pytest.approx(length / area * FIELD, rel=0.04)
            assert columns[f"{of}_density"] == pytest.approx(length * width / area, rel=0.06)
            assert columns[f"{of}_tortuosity"] == pytest.approx(1.0, abs=0.005)
    crae = equivalent([thin] * 6, ARTERIOLES)
    crve = equivalent([wide] * 6, VENULES)
    assert columns["crae_px"] == pytest.approx(2 * crae, rel=0.04)
    assert columns["crve_px"] == pytest.approx(2 * crve, rel=0.04)
    assert columns["crae_disc_diameters"] == pytest.approx(crae / 140, rel=0.04)
    assert columns["avr"] == pytest.approx(crae / crve, rel=0.03)
    assert columns["artery_density"] + columns["vein_density"] == pytest.approx(
        np.count_nonzero(found.mask == 1) / np.count_nonzero(found.mask), rel=0.08
    )


def around(x: float, y: float) -> np.ndarray:
    """The map of a disc 140 px wide, so far from the field's middle."""
    return ellipse((FIELD - 1) / 2 + x, (FIELD - 1) / 2 + y, 140, 140)


@pytest.mark.parametrize("kind", ["artery", "vein"])
def test_the_squared_curvature_in_a_zone_is_the_angle_within_it_over_the_radius(kind):
    """An arc about the field's middle, a disc upon it, and a straight vessel outside the zones: the
    arc's points that are an angle apart from the disc's centre are 2 R sin(angle / 2) away."""
    radius, at = 0.3 * FIELD, math.radians(75 + 10)
    mask = draw(arc(0.01, 0.3, 150.0), FIELD, 10.0)
    cv2.line(mask, (300, 212), (724, 212), 1, 9)
    disc = around(radius * math.cos(at), radius * math.sin(at))
    found, _ = found_in(mask, np.full(mask.shape, 0.9 if kind == "artery" else 0.1), disc)
    columns = structures.measure(found, 2.0)
    for (zone, edges), near in zip(ZONES.items(), (0.1, 0.06), strict=True):
        inner, outer = (2 * math.asin((edge + 0.5) * 140 / (2 * radius)) for edge in edges)
        total, mean = 2 * (outer - inner) / 0.3, 0.3**-2
        for name in ("vessel", kind):
            of = f"{zone}_{name}"
            told = {key: columns[f"{of}_{key}"] for key in OF_ZONE}
            assert told["total_squared_curvature"] == pytest.approx(total, rel=near), of
            assert told["mean_squared_curvature"] == pytest.approx(mean, rel=near), of
            per_px = total / (2 * FIELD)
            assert told["total_squared_curvature_per_px"] == pytest.approx(per_px, rel=near)
            per_px2 = (2 * radius) ** -2
            assert told["mean_squared_curvature_per_px2"] == pytest.approx(per_px2, rel=near)
            assert told["num_branch_points"] == 0
            assert told["branch_angle_mean_deg"] is None
        other = "vein" if kind == "artery" else "artery"
        assert columns[f"{zone}_{other}_total_squared_curvature"] is None


@pytest.mark.parametrize(("away", "zones"), [(60, ""), (175, "bc"), (280, "c")])
def test_a_branch_point_belongs_to_the_zones_that_it_lies_in(away, zones):
    """An artery's Y in the field's middle, a disc so many px below, and a vein that crosses the
    zones without a branch."""
    mask = draw(fork(0.01, 70.0), FIELD, 0.0)
    row = FIELD // 2 + away + 160
    cv2.line(mask, (FIELD // 2 - 60, row), (FIELD // 2 + 60, row), 1, 9)
    artery = np.where(np.arange(FIELD)[:, None] < row - 8, 0.9, 0.1) * np.ones(FIELD)
    columns = structures.measure(found_in(mask, artery, around(0, away))[0], 1.0)
    assert columns["artery_branch_angle_mean_deg"] == pytest.approx(70.0, abs=3)
    for zone in ZONES:
        inside = zone[-1] in zones
        for name in ("vessel", "artery"):
            assert columns[f"{zone}_{name}_num_branch_points"] == inside
            angle = columns[f"{zone}_{name}_branch_angle_mean_deg"]
            assert angle == (pytest.approx(70.0, abs=3) if inside else None)
        assert columns[f"{zone}_vein_num_branch_points"] == 0
        assert columns[f"{zone}_vein_branch_angle_mean_deg"] is None


def test_a_vessel_that_forks_in_the_zone_counts_once():
    """Seven spokes of each kind; each artery's twin leaves it within the zone."""
    mask, artery, disc = spokes()
    middle = FIELD / 2
    drawn = mask.copy()
    for number in range(7):
        angle = math.radians(3 + 360 / 7 * number)
        start = middle + 175 * math.cos(angle), middle + 175 * math.sin(angle)
        end = (
            middle + 330 * math.cos(angle + 0.18),
            middle + 330 * math.sin(angle + 0.18),
        )
        cv2.line(drawn, tuple(map(round, start)), tuple(map(round, end)), 1, 5)
    found, _ = found_in(drawn, np.where((drawn == 1) & (mask != 1), 0.9, artery), disc)
    columns = structures.measure(found, 1.0)
    thin = 1024 * min(WIDTHS)
    assert columns["crae_px"] == pytest.approx(equivalent([thin] * 6, ARTERIOLES), rel=0.06)


def test_a_zone_that_is_not_in_the_picture_is_not_told():
    mask, artery, _ = spokes()
    found, _ = found_in(mask, artery, ellipse(60, 512, 140, 140))
    columns = structures.measure(found, 1.0)
    assert "zone_c_vessel_density" not in columns
    assert "C: " in columns["zone_note"]
    assert "of it in the field of view" in columns["zone_note"]


def test_fewer_than_six_vessels_have_no_equivalent():
    mask, artery, disc = spokes()
    mask[:, : FIELD // 2][mask[:, : FIELD // 2] == 1] = 2  # half of them go
    found, _ = found_in(mask, artery, disc)
    columns = structures.measure(found, 1.0)
    assert "crae_px" not in columns
    assert "avr" not in columns
    assert columns["zone_note"].startswith("B: ")
    assert "of 6 arteries" in columns["zone_note"]


def test_kinds_measured_alone_are_masks_measured_alone():
    """Arteries beside veins, and the same arteries in a mask of their own."""
    mask, artery, disc = spokes()
    of_both = structures.measure(found_in(mask, artery, disc)[0], 1.0)
    ring = np.hypot(*(np.mgrid[:FIELD, :FIELD] - (FIELD - 1) / 2)) > 80  # the tangle in the middle
    parted = np.where((mask == 1) & ~ring, 2, mask)
    found, _ = found_in(parted, artery, disc)
    parts = structures.measure(found, 1.0)
    alone = vessels.measure(np.where((parted == 1) & (artery < 0.5), 2, parted).astype(np.uint8))
    for name in ("length_density", "calibre_mean_px", "calibre_std_px", "tortuosity"):
        assert parts[f"artery_{name}"] == pytest.approx(getattr(alone, name), rel=0.01, abs=0.02)
    assert parts["artery_fractal_dimension"] == pytest.approx(alone.fractal_dimension, abs=0.01)
    assert parts["artery_density"] == pytest.approx(alone.vessel_density, rel=0.01)
    assert of_both["artery_length_density"] > 0
