"""`segpipe evaluate --structures all`: how kinds are counted, by which drawing, discs, refusals.

Run: pytest tests/test_evaluate_structures.py
"""

import json
import math
import re
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from verbs import ONE, run

import segpipe
from segpipe import labels
from segpipe.data.datasets import Labelled, load_kinds
from segpipe.data.globs import Reading
from segpipe.data.layouts import Example, open_labelled
from segpipe.data.synthetic import draw_fundus
from segpipe.errors import UserError
from segpipe.evaluate import discs, report
from segpipe.evaluate import run as evaluate
from segpipe.evaluate.config import EvaluateConfig
from segpipe.evaluate.discs import DiscRow, discs_of, of_photograph, read_discs
from segpipe.evaluate.run import LabelledData, Tally, summarise
from segpipe.measurement import kinds
from segpipe.measurement.disc import Disc, DiscPlace
from segpipe.measurement.kind_agreement import FIGURES, KindCounts, compare
from segpipe.metrics import BINS
from segpipe.models.checkpoint import Card
from segpipe.storage import open_store

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ARTERY, VEIN, CROSSING, UNCERTAIN = 1, 2, 3, 4  # of a label
HEADER = "set,file,x,y,height,width,ok\n"
FLAGS = ["--structures", "all", "--fov", "found"]


# ---- counting


def by_pixel(told: np.ndarray, label: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """The rules of docs/evaluation.md, pixel by pixel."""
    hit, missed, wrong = ({"artery": 0, "vein": 0} for _ in range(3))
    right, found, known = [], 0, 0
    for t, drawn in zip(told[inside].tolist(), label[inside].tolist(), strict=True):
        predicted = {
            kinds.ARTERY: {"artery"},
            kinds.VEIN: {"vein"},
            kinds.CROSSING: {"artery", "vein"},
        }.get(t, set())
        if drawn in (ARTERY, VEIN):
            own = "artery" if drawn == ARTERY else "vein"
            known += 1
            found += bool(predicted)
            hit[own] += own in predicted
            missed[own] += own not in predicted
            right += [own in predicted] if predicted else []
            for other in predicted - {own} if own not in predicted else ():
                wrong[other] += 1
        elif drawn == CROSSING:
            for name in predicted:
                hit[name] += 1
        elif drawn == 0:
            for name in predicted:
                wrong[name] += 1
    dice = {n: 2 * hit[n] / (2 * hit[n] + missed[n] + wrong[n]) for n in hit}
    return {
        "artery_dice": dice["artery"],
        "vein_dice": dice["vein"],
        "artery_vein_accuracy": sum(right) / len(right),
        "artery_vein_found": found / known,
    }


@pytest.mark.parametrize("seed", range(3))
def test_pixels_are_counted_by_the_rules(seed):
    rng = np.random.default_rng(seed)
    told, label = (rng.integers(0, top, (50, 60)).astype(np.uint8) for top in (5, 6))
    inside = rng.random(told.shape) < 0.7
    assert compare(told, label, inside).summary() == pytest.approx(by_pixel(told, label, inside))


@pytest.mark.parametrize(
    ("told", "drawn", "wanted"),
    [
        (kinds.ARTERY, ARTERY, KindCounts(artery_hit=1, right=1, found=1, known=1)),
        (kinds.VEIN, ARTERY, KindCounts(artery_missed=1, vein_wrong=1, found=1, known=1)),
        (kinds.CROSSING, VEIN, KindCounts(vein_hit=1, right=1, found=1, known=1)),
        (kinds.BACKGROUND, VEIN, KindCounts(vein_missed=1, known=1)),
        (kinds.CROSSING, 0, KindCounts(artery_wrong=1, vein_wrong=1)),
        (kinds.VEIN, 0, KindCounts(vein_wrong=1)),
        (kinds.ARTERY, CROSSING, KindCounts(artery_hit=1)),
        (kinds.BACKGROUND, CROSSING, KindCounts()),
        (kinds.ARTERY, UNCERTAIN, KindCounts()),
        (kinds.ARTERY, 5, KindCounts()),  # a vessel that was drawn without saying which
    ],
)
def test_one_pixel_of_each_kind_is_counted_as_it_is_told(told, drawn, wanted):
    pixel = np.ones((1, 1), np.uint8)
    assert compare(pixel * told, pixel * drawn, pixel > 0) == wanted
    assert compare(pixel * told, pixel * drawn, pixel == 0) == KindCounts()


def test_counts_of_photographs_add():
    one, other = KindCounts(*range(9)), KindCounts(*range(9, 18))
    assert one + other == KindCounts(*range(9, 27, 2))
    assert all(map(math.isnan, KindCounts().summary().values()))


# ---- which drawing tells kinds, and what its colours mean

HEIGHT, WIDTH = 96, 104  # px
IMAGE, VESSEL, FOV = draw_fundus(5, HEIGHT, WIDTH)
OF_COLOUR = {RED: ARTERY, BLUE: VEIN}
PLACES = {  # layout, or who ships RITE so -> image, vessels, kinds, mask, what green and white are
    "RITE": (
        "training/images/21_training.tif",
        "training/vessel/21_training.png",
        "training/av/21_training.png",
        None,
        {GREEN: CROSSING, WHITE: UNCERTAIN},
    ),
    "VC-Net": (
        "training/images/0.png",
        "training/vessel/0.png",
        "training/label/0.png",
        "training/mask/0.png",
        {GREEN: UNCERTAIN, WHITE: CROSSING},
    ),
    "LES-AV": (
        "images/27.png",
        "vessel-segmentations/27.png",
        "arteries-and-veins/27.png",
        "masks/27.png",
        {GREEN: UNCERTAIN, WHITE: CROSSING},
    ),
    "HRF": (
        "images/06_h.png",
        "manual1/06_h.tif",
        "manual_av/06_h.png",
        "mask/06_h_mask.tif",
        {GREEN: UNCERTAIN},
    ),
    "DRIVE": (
        "training/images/21_training.tif",
        "training/1st_manual/21_manual1.gif",
        "training/21_av.png",
        "training/mask/21_training_mask.gif",
        {GREEN: UNCERTAIN},
    ),
    "DRIVE_AV": (
        "DRIVE/training/images/21_training.tif",
        "DRIVE/training/1st_manual/21_manual1.gif",
        "DRIVE_AV/training/21_av.png",
        "DRIVE/training/mask/21_training_mask.gif",
        {GREEN: UNCERTAIN},
    ),
}


def striped(vessel: np.ndarray, *colours: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """vessel [H, W] bool -> stripes of these colours [H, W, 3] uint8, and which stripe [H, W]."""
    stripe = np.indices(vessel.shape)[1] // 10 % len(colours)
    return np.array(colours, np.uint8)[stripe] * vessel[..., None], stripe


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_set(
    root: Path, layout: str, *colours: tuple[int, int, int], vessels: bool = True
) -> Path:
    image, vessel, drawing, mask, _ = PLACES[layout]
    white = {vessel: VESSEL} if vessels else {}
    for key, pixels in (white | ({mask: FOV} if mask else {})).items():
        save(pixels.view(np.uint8) * np.uint8(255), root / key)
    save(IMAGE, root / image)
    save(striped(VESSEL, *colours)[0], root / drawing)
    return root


@pytest.mark.parametrize("vessels", [True, False])
@pytest.mark.parametrize("layout", PLACES)
def test_the_coloured_drawing_of_a_layout_tells_kinds_by_its_own_colours(tmp_path, layout, vessels):
    """Also where the layout's label of the vessels is another file, which stays the label."""
    _, vessel, drawing, mask, doubts = PLACES[layout]
    meanings = OF_COLOUR | doubts
    store = open_store(str(write_set(tmp_path, layout, *meanings, vessels=vessels)))
    found = open_labelled(store)
    [example] = found.training
    assert found.layout == layout.replace("VC-Net", "RITE")
    assert (example.kinds, example.mask) == (drawing, mask)
    assert example.label == (vessel if vessels else drawing)
    assert Example.from_row(example.as_row()) == example
    told = load_kinds(store, example, Labelled(IMAGE, FOV.view(np.uint8), FOV))
    stripe = striped(VESSEL, *meanings)[1]
    wanted = np.array(list(meanings.values()))[stripe] * VESSEL
    np.testing.assert_array_equal(told, wanted)


def test_colours_that_are_named_go_before_the_layouts(tmp_path):
    store = open_store(str(write_set(tmp_path, "RITE", RED, BLUE, GREEN)))
    reading = Reading(colours="artery=0000FF,vein=FF0000,vessel=00FF00")
    [example] = open_labelled(store, reading=reading).training
    told = load_kinds(store, example, Labelled(IMAGE, FOV.view(np.uint8), FOV))
    stripe = striped(VESSEL, RED, BLUE, GREEN)[1]
    np.testing.assert_array_equal(told, np.array([VEIN, ARTERY, 5])[stripe] * VESSEL)


@pytest.mark.parametrize("colours", ["", "vessel=FF0000"])
def test_a_set_that_tells_no_kinds_has_no_such_drawing(tmp_path, colours):
    write_set(tmp_path, "LES-AV", RED)
    (tmp_path / "arteries-and-veins/27.png").unlink()
    [example] = open_labelled(open_store(str(tmp_path)), reading=Reading(colours=colours)).training
    assert (example.kinds, example.kind_colours) == (None, "")


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (striped(VESSEL, RED, (255, 255, 0))[0], "holds colour FFFF00, of no meaning in artery="),
        (VESSEL.view(np.uint8) * np.uint8(255), "holds no colours, wanted artery=FF0000"),
        (striped(VESSEL, RED, BLUE)[0][:-1], "104x95 px, but its image images/27.png has 104x96"),
    ],
)
def test_a_drawing_of_kinds_that_does_not_fit_is_named(tmp_path, pixels, told):
    write_set(tmp_path, "LES-AV", RED, BLUE)
    save(pixels, tmp_path / "arteries-and-veins/27.png")
    store = open_store(str(tmp_path))
    [example] = open_labelled(store).training
    with pytest.raises(UserError, match=f"arteries-and-veins/27.png: .*{told}") as refused:
        load_kinds(store, example, Labelled(IMAGE, FOV.view(np.uint8), FOV))
    assert "\n" not in str(refused.value)


# ---- discs

STORE = open_store("/sets/DRIVE")
EXAMPLES = tuple(
    Example(f"{n}_test", f"test/images/{n}_test.tif", "label", None, None) for n in ("01", "02")
)


def found_in(path: Path, text: str, *names: str) -> dict[str, discs.DiscRow]:
    """The rows of a file that are EXAMPLES' own."""
    path.write_text(text)
    return discs_of(read_discs(str(path)), str(path), STORE, EXAMPLES, *names)


@pytest.mark.parametrize(
    "name", ["DRIVE,test/01_test.tif", ",01_test.tif", ",test/images/01_test.tif", "D2,01_test.tif"]
)
def test_a_row_names_a_photograph_by_some_of_its_folders(tmp_path, name):
    text = f"{HEADER}{name},10,20,8,12,1\n,test/9.tif,1,1,1,1,1\n"
    found = found_in(tmp_path / "d.csv", text, "D2", "DRIVE")
    assert {name: row.label for name, row in found.items()} == {"01_test": DiscPlace(10, 20, 8, 12)}


@pytest.mark.parametrize("name", ["HRF,01_test.tif", ",training/01_test.tif", ",1_test.tif"])
def test_a_row_of_another_photograph_is_left_out(tmp_path, name):
    text = f"{HEADER}{name},10,20,8,12,1\n"
    assert found_in(tmp_path / "d.csv", text, "DRIVE", "DRIVE") == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has the columns of an empty file, wanted file, x, y, height, width, ok; add file, x"),
        ("file,x,y,ok\n", "has the columns file, x, y, ok, wanted .*; add height, width$"),
        (f"{HEADER},a.png,1,2,3,abc,1\n", 'line 2: width is "abc", wanted a number of px above 0'),
        (f"{HEADER},a.png,1,2,0,4,1\n", 'line 2: height is "0", wanted a number of px above 0'),
        (f"{HEADER},a.png,,2,3,4,1\n", 'line 2: x is "", wanted a number of px; correct it'),
        (f"{HEADER},a.png,1,inf,3,4,1\n", 'line 2: y is "inf", wanted a number of px'),
        (f"{HEADER},a.png,1,2,3,4,yes\n", r'line 2: ok is "yes", wanted 1 \(right\), 0'),
        (f"{HEADER},,1,2,3,4,1\n", "line 2: names no file"),
        (f'{HEADER},"a,1\n', "cannot be read as CSV"),
        (f"{HEADER},a.png,1,5,2,5,3,4,1\n", "line 2: has 9 values, wanted 7, as there are columns"),
        (f"x,{HEADER}1,,a.png,1,2,3,4,1\n", "has the column x twice, leave one"),
        (HEADER + ",01_test.tif,1,2,3,4,1\n" * 2, "lines 2 and 3 are both of test/images/01_test"),
    ],
)
def test_a_file_of_discs_that_does_not_hold_is_told_in_one_line(tmp_path, text, told):
    with pytest.raises(UserError, match=f"^--discs {tmp_path}/d.csv: .*{told}") as refused:
        found_in(tmp_path / "d.csv", text)
    assert "\n" not in str(refused.value)


def test_a_file_that_may_be_of_two_photographs_is_told(tmp_path):
    both = [replace(one, image=f"{n}/a.tif") for n, one in enumerate(EXAMPLES)]
    (tmp_path / "d.csv").write_text(f"{HEADER},a.tif,1,2,3,4,1\n")
    rows = read_discs(str(tmp_path / "d.csv"))
    with pytest.raises(UserError, match=r"line 2: a\.tif may be 0/a\.tif and 1/a\.tif, name its"):
        discs_of(rows, "d.csv", STORE, both)


def test_discs_are_compared_as_arithmetic_says():
    label = DiscPlace(100, 100, 90, 110)
    away = of_photograph(label, Disc(115, 80, 100, 120, 0.9))
    assert away == {
        "labelled": True,
        "found": True,
        "distance": 0.25,
        "diameter_error": pytest.approx(0.1),
    }
    far = of_photograph(label, Disc(115.1, 80, 70, 70, 0.9))
    missed, none, alarm = (
        of_photograph(label, None),
        of_photograph(None, None),
        of_photograph(None, Disc(1, 1, 1, 1, 1)),
    )
    assert discs.summary([away, far, missed, none, alarm]) == {
        "num_labelled": 3,
        "num_near": 1,
        "share_near": pytest.approx(1 / 3),
        "median_diameter_error": pytest.approx(0.2),
        "num_without": 2,
        "num_said_none": 1,
    }
    assert math.isnan(discs.summary([none])["median_diameter_error"])


# ---- intervals

CARD = Card("net", 1024.0, 0.5, "drawn", ("outside", "vessel", "background"), "0")


def summarised(kinds_of: list[KindCounts], near: list[bool | None]) -> dict:
    """What metrics.json holds of photographs with these counts, and discs that are found near, are
    found far, or (None) are not there at all."""
    tally, rows = Tally(), {}
    blank = {"counts": np.ones((2, BINS), int), "hits": np.ones((5, 2), int), "second": [0] * 4}
    blank |= {"second_hits": 0, "field_iou": math.nan, "engine": "torch fp32", "mask_png": b""}
    for number, (counts, is_near) in enumerate(zip(kinds_of, near, strict=True)):
        name = str(number)
        disc = [100.0 if is_near else 200.0, 100, 80, 80, 0.9]
        tally.add(blank | {"name": name, "kinds": astuple(counts), "disc": disc}, 0.5)
        label = None if is_near is None else DiscPlace(100, 100, 80, 80)
        rows[name] = DiscRow(2, "", name, "none" if is_near is None else "1", label)
    examples = tuple(Example(name, name, "label", None, None) for name in rows)
    return summarise(LabelledData("EYES", STORE, examples, "given", discs=rows), tally, CARD)


def drawn_counts(num: int) -> list[KindCounts]:
    rng = np.random.default_rng(4)
    outcomes = [rng.multinomial(900, rng.dirichlet([8, 2, 1])) for _ in range(3 * num)]
    return [
        KindCounts(*outcomes[n], *outcomes[n + num], int(a), int(a + b), 900)
        for n, (a, b, _) in enumerate(outcomes[2 * num :])
    ]


def test_the_intervals_of_kinds_are_scipys():
    """Of those photographs alone that have a label of them."""
    counts = drawn_counts(12)
    result = summarised([*counts, KindCounts(), KindCounts()], [None] * 14)
    told = result["arteries_veins"]
    assert told["num_labelled"] == 12
    for name in FIGURES:

        def pooled(places, name=name):
            return sum((counts[n] for n in places), KindCounts()).summary()[name]

        found = stats.bootstrap(
            (np.arange(12),),
            pooled,
            vectorized=False,
            n_resamples=2000,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval
        for end, wanted in (("low", found.low), ("high", found.high)):
            width = found.high - found.low
            assert abs(told["intervals"][end][name] - wanted) < 0.06 * width, (end, name)
        assert told[name] == pytest.approx(pooled(range(12)))


def test_the_interval_of_the_share_of_discs_near_is_the_binomials():
    """Seven of ten; photographs without a disc do not count."""
    result = summarised([KindCounts()] * 14, [True] * 7 + [False] * 3 + [None] * 4)
    told = result["discs"]
    assert (told["num_near"], told["num_labelled"], told["share_near"]) == (7, 10, 0.7)
    for end, share in (("low", 0.025), ("high", 0.975)):
        wanted = stats.binom.ppf(share, 10, 0.7) / 10
        assert told["intervals"][end] == {"share_near": pytest.approx(wanted)}
    assert "arteries_veins" not in result


def test_intervals_of_kinds_and_discs_are_printed_and_on_the_page():
    result = summarised(drawn_counts(3), [True, False, True])
    told = result["arteries_veins"]
    ends = [told["intervals"][end]["vein_dice"] for end in ("low", "high")]
    vein = f"{told['vein_dice']:.4f} ({ends[0]:.4f} to {ends[1]:.4f})"
    disc = "2 of 3 (0.0% to 100.0%)"
    lines = report.structure_lines(result)
    assert f"vein Dice {vein}," in lines[0]
    assert f"disc centres within 0.25 diameters: {disc}," in lines[1]
    assert lines[2] == "in parentheses: 95 % intervals over photographs"
    page = report.page("EYES", result, {}, []).decode()
    assert f'vein Dice</th><td class="number">{vein}<' in page
    assert f'diameters</th><td class="number">{disc}<' in page
    assert "In parentheses: 95 % intervals over photographs (bootstrap)." in page
    table = report.table([dict.fromkeys(report.COLUMNS.values(), 0.5) | result])
    assert f"| {vein} |" in table
    assert f"| {disc} |" in table


def test_one_photograph_with_arteries_veins_and_a_disc_has_no_interval_of_them():
    result = summarised([*drawn_counts(1), KindCounts()], [True, None])
    assert "intervals" in result
    assert "intervals" not in result["arteries_veins"] | result["discs"]
    assert "parentheses" not in report.page("EYES", result, {}, []).decode()
    assert len(report.structure_lines(result)) == 2


# ---- a run


@pytest.fixture(scope="module")
def eyes(tmp_path_factory) -> Path:
    """In LES-AV's layout: two drawn photographs, of which the first has arteries and veins."""
    root = tmp_path_factory.mktemp("drawn") / "EYES"
    for number in (1, 2):
        image, vessel, _ = draw_fundus(number, 620, 620)
        save(image, root / f"images/{number}.png")
        save(vessel.view(np.uint8) * np.uint8(255), root / f"vessel-segmentations/{number}.png")
    colours = striped(draw_fundus(1, 620, 620)[1], RED, BLUE, GREEN, WHITE)[0]
    save(colours, root / "arteries-and-veins/1.png")
    return root


@pytest.fixture(scope="module")
def model() -> segpipe.Model:
    return segpipe.load_model(structures=True)


@pytest.fixture(scope="module")
def results(eyes, model) -> dict[str, segpipe.Result]:
    """What `segment` finds in them."""
    return {n: model.segment(eyes / f"images/{n}.png") for n in ("1", "2")}


@pytest.fixture(scope="module")
def measured(eyes, results, tmp_path_factory, ray_cluster) -> Path:
    """With a disc of the first photograph 20 px to the right of what is found, and none in the
    second."""
    output = tmp_path_factory.mktemp("measured")
    disc = results["1"].disc
    assert disc
    place = f"{disc.x + 20},{disc.y},{disc.height},{disc.width}"
    (output / "discs.csv").write_text(f"{HEADER}EYES,1.png,{place},1\n,images/2.png,,,,,none\n")
    words = ["--data", eyes, "--output", output / "all", "--discs", output / "discs.csv"]
    assert run("evaluate", *ONE, *words, *FLAGS) == 0
    return output / "all"


@pytest.fixture(scope="module")
def metrics(measured) -> dict:
    return json.loads((measured / "metrics.json").read_text())


def test_arteries_and_veins_are_those_that_segment_finds(metrics, results, eyes):
    vessel = draw_fundus(1, 620, 620)[1]
    stripe = striped(vessel, RED, BLUE, GREEN, WHITE)[1]
    label = np.array([ARTERY, VEIN, UNCERTAIN, CROSSING])[stripe] * vessel
    fov = segpipe.find_fov(np.asarray(Image.open(eyes / "images/1.png")))
    wanted = by_pixel(results["1"].kinds, label, fov)
    assert metrics["images"][0]["arteries_veins"] == pytest.approx(wanted, abs=1e-3)
    assert "arteries_veins" not in metrics["images"][1]
    pooled = metrics["arteries_veins"]
    assert pooled == {"num_labelled": 1} | metrics["images"][0]["arteries_veins"]


def test_discs_are_those_that_segment_finds(metrics, results):
    found = [results[n].disc for n in ("1", "2")]
    first, second = (image["disc"] for image in metrics["images"])
    assert (first["labelled"], first["found"]) == (True, True)
    assert first["distance"] == pytest.approx(20 / found[0].diameter, rel=0.02)
    assert first["diameter_error"] == pytest.approx(0, abs=0.01)
    assert second == {"labelled": False, "found": found[1] is not None}
    assert metrics["discs"] == {
        "num_labelled": 1,
        "num_near": int(first["distance"] <= 0.25),
        "share_near": float(first["distance"] <= 0.25),
        "median_diameter_error": first["diameter_error"],
        "num_without": 1,
        "num_said_none": int(not found[1]),
    }


def test_figures_of_vessels_are_those_without(metrics, eyes, tmp_path, ray_cluster):
    words = ["--data", eyes, "--output", tmp_path, "--fov", "found"]
    assert run("evaluate", *ONE, *words) == 0
    alone = json.loads((tmp_path / "metrics.json").read_text())
    for image in metrics["images"]:
        plain = {k: v for k, v in image.items() if k not in ("arteries_veins", "disc")}
        assert plain in alone["images"]
    assert alone.keys() == metrics.keys() - {"arteries_veins", "discs"}
    assert alone["pooled"] == metrics["pooled"]


def test_the_page_tells_arteries_veins_and_discs(measured, metrics):
    page = (measured / "report.html").read_text()
    for key, title in report.KIND_TITLES.items():
        assert re.search(rf"{title}</th><td[^>]*>{metrics['arteries_veins'][key]:.4f}<", page)
    for title, value in report.disc_titles(metrics["discs"]).items():
        assert re.search(rf"{title}</th><td[^>]*>{value}<", page)
    assert f"artery Dice {metrics['images'][0]['arteries_veins']['artery_dice']:.4f}" in page


def test_the_table_has_columns_of_them_where_a_set_does(metrics):
    row = dict.fromkeys(report.COLUMNS.values(), 0.5)
    both = row | {key: metrics[key] for key in ("arteries_veins", "discs")}
    head, _, plain, full = report.table([row, both]).splitlines()
    assert "artery" not in report.table([row])
    assert head.count("|") == plain.count("|") == full.count("|")
    assert f"| {metrics['arteries_veins']['vein_dice']:.4f} |" in full
    assert plain.endswith("| – | – | – | – | – | – | – |")
    assert "| artery Dice | vein Dice |" in head


def test_the_documentation_has_their_keys(metrics):
    text = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
    section = text.partition("## Arteries, veins and the optic disc")[2].partition("\n## ")[0]
    told = {
        (above, key)
        for above, cell in re.findall(r"^\| `([a-z_.]+)\.`: (`.*?) \|", section, re.MULTILINE)
        for key in re.findall(r"`([^`]+)`", cell)
    }
    of_one = metrics["images"][0]["disc"] | metrics["images"][1]["disc"]
    wanted = {"arteries_veins": metrics["arteries_veins"], "discs": metrics["discs"]}
    wanted["disc"] = of_one
    for end in ("low", "high"):
        wanted[f"arteries_veins.intervals.{end}"] = dict.fromkeys(FIGURES)
        wanted[f"discs.intervals.{end}"] = {"share_near": None}
    assert told == {(above, key) for above, values in wanted.items() for key in values}


# ---- sets that lack labels


def told_of(capfd, data_of: dict[str, str | None], path: Path | None = None) -> list[str]:
    """What is logged of sets, by their names and their photograph's drawing of kinds."""
    sets = [
        LabelledData(name, open_store(f"/{name}"), (replace(EXAMPLES[0], kinds=kinds),), "given")
        for name, kinds in data_of.items()
    ]
    config = EvaluateConfig(("sets",), "out", structures="all", discs=path and str(path))
    for data in evaluate._with_discs(sets, config):
        labels.settle("evaluate", data.store.uri, [], False, data.name, data.notes)
    return capfd.readouterr().err.splitlines()


def no_kinds(name: str) -> str:
    why = "(docs/training-data.md), they are not measured there"
    return f"evaluate: no labels in the colours of arteries and veins in {name} {why}"


def test_a_set_without_arteries_and_veins_beside_one_with_them_is_told(capfd):
    assert told_of(capfd, {"DRIVE": None, "RITE": "av.png"}) == [no_kinds("DRIVE")]
    assert told_of(capfd, {"RITE": "av.png", "LES-AV": "av.png"}) == []


@pytest.mark.parametrize("row", ["DRIVE,01_test.tif,1,2,3,4,0", ",9.tif,1,2,3,4,1"])
def test_a_set_without_a_right_disc_is_told(capfd, tmp_path, row):
    path = tmp_path / "d.csv"
    path.write_text(f"{HEADER}RITE,01_test.tif,1,2,3,4,1\n{row}\n")
    told = told_of(capfd, {"DRIVE": "av.png", "RITE": None}, path)
    disc = f"evaluate: --discs {path}: no right row of DRIVE, discs are not measured there"
    assert told == [disc, no_kinds("RITE")]


@pytest.mark.parametrize("row", ["01_test.tif,1,2,3,4,1", "01_test.tif,,,,,none"])
def test_a_set_with_a_disc_or_a_photograph_without_one_is_not_told(capfd, tmp_path, row):
    path = tmp_path / "d.csv"
    path.write_text(f"{HEADER},{row}\n")
    assert told_of(capfd, {"DRIVE": "av.png"}, path) == []


# ---- refusals


@pytest.fixture
def refused(capfd, tmp_path):
    """Run `evaluate --structures all` that must be refused -> its one line; nothing is written."""

    def refuse(*words: object) -> str:
        output = tmp_path / "output"
        assert run("evaluate", *ONE, "--output", output, *words) == 2
        [line] = [x for x in capfd.readouterr().err.splitlines() if x.startswith("segpipe")]
        assert not [path for path in output.rglob("*") if path.is_file()]
        return line

    return refuse


def test_discs_without_the_network_that_finds_them_are_refused(refused, eyes):
    line = refused("--data", eyes, "--discs", "d.csv")
    assert line.endswith("--discs d.csv: needs --structures all, give both or none")


@pytest.mark.usefixtures("no_ray")
def test_discs_of_no_photograph_are_refused(refused, eyes, tmp_path):
    (tmp_path / "d.csv").write_text(f"{HEADER}DRIVE,1.png,1,2,3,4,1\n,3.png,1,2,3,4,1\n")
    line = refused("--data", eyes, "--discs", tmp_path / "d.csv", *FLAGS)
    wanted = "names no photograph of EYES, wanted files as images/1.png in its column file"
    assert f"--discs {tmp_path}/d.csv: {wanted}" in line


@pytest.mark.parametrize("place", ["1e9,2,3,4", "1,-2,3,4", "1,2,1e308,1e308"])
def test_a_disc_that_is_not_within_its_photograph_is_refused(refused, eyes, tmp_path, place):
    (tmp_path / "d.csv").write_text(f"{HEADER},1.png,{place},1\n")
    line = refused("--data", eyes, "--discs", tmp_path / "d.csv", *FLAGS)
    assert f"--discs {tmp_path}/d.csv: line 2: the disc is not within images/1.png, which" in line


@pytest.mark.usefixtures("no_ray")
def test_a_set_without_labels_of_arteries_and_veins_is_refused(refused, labelled):
    line = refused("--data", labelled, *FLAGS)
    wanted = f"no labels in the colours of arteries and veins in {labelled.name} (docs/"
    assert f"--structures all: {wanted}" in line


@pytest.mark.usefixtures("no_ray")
def test_a_file_of_discs_that_is_not_there_is_refused(refused, eyes, tmp_path):
    line = refused("--data", eyes, "--discs", tmp_path / "d.csv", *FLAGS)
    assert f"--discs {tmp_path}/d.csv: no such file, check the path" in line


@pytest.mark.usefixtures("no_ray")
def test_a_checkpoint_of_another_canvas_is_refused(refused, eyes):
    line = refused("--data", eyes, "--checkpoint", "resunet", *FLAGS)
    assert "--structures all: " in line
    assert "working diameter of 5" in line


def test_a_label_in_other_colours_is_refused(refused, eyes, tmp_path, ray_cluster):
    root = tmp_path / "set"
    for folder in ("images", "vessel-segmentations"):
        save(np.asarray(Image.open(eyes / folder / "1.png")), root / folder / "1.png")
    vessel = draw_fundus(1, 620, 620)[1]
    save(striped(vessel, RED, (255, 0, 255))[0], root / "arteries-and-veins/1.png")
    line = refused("--data", root, *FLAGS)
    assert f"{root}/arteries-and-veins/1.png: holds colour FF00FF, of no meaning in" in line


def test_the_flags_are_checked_together():
    config = EvaluateConfig(("set",), "out", structures="all", discs="d.csv")
    config.check()
    with pytest.raises(UserError, match="--structures none: choose from vessels, all"):
        replace(config, structures="none").check()
