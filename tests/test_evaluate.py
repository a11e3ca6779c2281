"""What evaluation counts and tells, without Ray: figures, plots, the page, the table.

Run: pytest tests/test_evaluate.py; with SEGPIPE_DATA=folder-that-holds-DRIVE also on DRIVE
"""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn import metrics as sk

from segpipe import plots
from segpipe.data.datasets import Labelled
from segpipe.data.layouts import open_labelled
from segpipe.evaluate import report
from segpipe.evaluate import run as evaluate
from segpipe.evaluate.run import LabelledData, Tally, as_json, summarise, unique_name
from segpipe.evaluate.stages import EvaluateJob, count, load_labelled
from segpipe.metrics import BINS, Confusion
from segpipe.models.checkpoint import Card
from segpipe.storage import open_store

CARD = Card("net", 540.0, 0.5, "drawn", ("outside", "vessel", "background"), "0")


def grey(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L")) > 127


def tallied(root: Path, find_field: bool = False) -> tuple[LabelledData, Tally, EvaluateJob]:
    """A set measured with a network that calls what is bright a vessel."""
    store = open_store(str(root))
    examples = open_labelled(store, ["test"]).examples("test")
    data = LabelledData(root.name, store, examples, "found" if find_field else "given")
    job = EvaluateJob((store,), CARD.diameter, CARD.threshold, find_field)
    tally = Tally()
    for example in examples:
        row = load_labelled({"set": 0} | example.as_row(), job)
        score = row.pop("canvas").mean(axis=-1, dtype=np.float32) / 255
        tally.add(count(row | {"score": score}, job), CARD.threshold)
    return data, tally, job


@pytest.fixture(scope="module")
def measured(labelled):
    data, tally, job = tallied(labelled)
    return data, tally, job, summarise(data, tally, CARD)


# ---- counting


def test_the_second_observer_is_measured_on_each_photograph(measured, labelled):
    for row in measured[3]["images"]:
        number = row["name"].split("_")[0]
        inside = grey(labelled / f"test/mask/{row['name']}_mask.gif")
        first, second = (
            grey(labelled / f"test/{folder}_manual/{number}_manual{folder[0]}.gif")[inside]
            for folder in ("1st", "2nd")
        )
        assert row["second_observer"] == pytest.approx(
            {
                "dice": sk.f1_score(first, second),
                "mcc": sk.matthews_corrcoef(first, second),
                "sensitivity": sk.recall_score(first, second),
                "specificity": sk.recall_score(~first, ~second),
                "accuracy": sk.accuracy_score(first, second),
            }
        )


def test_drives_second_observer_has_the_published_dice(drive):
    """0.7891 of all pixels; the mean of the photographs is another figure close by."""
    _, tally, _ = tallied(drive)
    assert tally.second_observer is not None
    assert tally.second_observer.dice == pytest.approx(0.7891, abs=5e-5)
    dice = [figures["second_observer"]["dice"] for figures in tally.images.values()]
    assert len(dice) == 20
    assert np.mean(dice) == pytest.approx(0.7891, abs=5e-3)


def test_pooled_figures_are_those_of_all_pixels_together(measured):
    _, tally, _, result = measured
    inside = tally.counts.sum()
    shares = [row["accuracy"] for row in result["images"]]
    assert min(shares) < result["pooled"]["accuracy"] < max(shares)
    assert sum(b["pixels"] for b in result["calibration"]["bins"]) == inside


def test_the_found_field_is_used_in_place_of_the_given_one(labelled):
    """Pixels that are counted and the fields' overlap, against the given masks."""
    (_, given, _), (data, found, _) = tallied(labelled), tallied(labelled, find_field=True)
    given_px = sum(grey(path).sum() for path in labelled.glob("test/mask/*"))
    assert given.counts.sum() == given_px
    assert found.counts.sum() != given_px
    overlaps = [given.images[name]["field_iou"] for name in found.images]
    assert overlaps == [figures["field_iou"] for figures in found.images.values()]
    assert 0.97 < min(overlaps) <= max(overlaps) < 1
    result = summarise(data, found, CARD)
    assert result["field_iou"] == pytest.approx(np.mean(overlaps))
    assert min(overlaps) < found.counts.sum() / given_px < 1 / min(overlaps)


def test_a_photographs_mask_is_kept_small_and_exact(measured):
    """The PNG's vessels are the pixels that the figures count."""
    data, tally, job, _ = measured
    for example in data.examples:
        mask = np.asarray(Image.open(io.BytesIO(tally.masks[example.name])))
        labelled = job.load({"set": 0} | example.as_row())
        predicted = (mask == 1)[labelled.fov]
        wanted = sk.f1_score(labelled.label[labelled.fov] == 1, predicted)
        assert tally.images[example.name]["dice"] == pytest.approx(wanted)
        assert len(tally.masks[example.name]) < mask.size / 10


def row(name: str, *second: int, field_iou: float = math.nan) -> dict:
    counts = np.zeros((2, BINS), np.int64)
    counts[:, [100, -100]] = [[90, 10], [5, 20]]
    return {
        "name": name,
        "counts": counts,
        "second": second or (0, 0, 0, 0),
        "field_iou": field_iou,
        "mask_png": b"",
    }


def test_a_second_observer_who_drew_some_photographs_is_measured_on_those():
    tally = Tally()
    tally.add(row("a", 3, 1, 2, 4), 0.5)
    tally.add(row("b"), 0.5)
    assert tally.second_observer == Confusion(3, 1, 2, 4)
    assert "second_observer" in tally.images["a"]
    assert "second_observer" not in tally.images["b"]
    assert "field_iou" not in tally.images["a"]


def test_without_a_second_observer_there_are_no_such_figures():
    tally = Tally()
    tally.add(row("a"), 0.5)
    assert tally.second_observer is None


# ---- JSON, names, table


def test_json_has_null_for_what_is_no_number():
    """And is read by parsers that know no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    value = {"a": math.nan, "b": [1.5, {"c": math.inf}], "d": None}
    found = json.loads(as_json(value), parse_constant=refuse)
    assert found == {"a": None, "b": [1.5, {"c": None}], "d": None}


@pytest.mark.parametrize(
    ("uri", "taken", "wanted"),
    [
        ("/data/DRIVE", [], "DRIVE"),
        ("/data/DRIVE", ["STARE"], "DRIVE"),
        ("s3://bucket/sets/DRIVE/", ["DRIVE"], "DRIVE-2"),
        ("/other/DRIVE", ["DRIVE", "DRIVE-2"], "DRIVE-3"),
        ("/other/DRIVE-2", ["DRIVE", "DRIVE-2"], "DRIVE-2-2"),
        ("s3://bucket", [], "bucket"),
        ("s3://bucket/..", [], "set"),
        ("/", ["set"], "set-2"),
    ],
)
def test_every_set_has_a_folder_of_its_own(uri, taken, wanted):
    assert unique_name(uri, taken) == wanted


def test_the_table_has_a_row_for_each_set(measured):
    data, _, _, result = measured
    one = evaluate.table_row(data, result)
    none = one | {"name": "a|b", "second_observer_dice": None, "field_iou": None, "auc": math.nan}
    head, rule, first, second = report.table([one, none]).splitlines()
    assert head.startswith("| set | images | field of view | AUC | AP | Dice |")
    assert head.count("|") == rule.count("|") == first.count("|")
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[:3] == [data.name, "2", "given"]
    assert cells[3:] == [
        f"{figure:.4f}"
        for figure in (
            *(result["pooled"][key] for key in ("auc", "average_precision", "dice", "mcc")),
            *(result["pooled"][key] for key in ("sensitivity", "specificity", "accuracy")),
            result["second_observer"]["dice"],
            result["field_iou"],
        )
    ]
    assert second.startswith("| a\\|b | 2 | given | – |")
    assert second.endswith("| – | – |")


# ---- pictures


def test_errors_are_coloured_by_their_kind():
    truth, predicted = np.array([[1, 1, 0, 0]], bool), np.array([[1, 0, 1, 0]], bool)
    hit, missed, false_alarm, nothing = plots.errors(truth, predicted)[0].tolist()
    assert (hit, nothing) == ([255, 255, 255], [0, 0, 0])
    assert missed[2] > 200 > missed[1] > missed[0]  # blue
    assert false_alarm[0] > 200 > max(false_alarm[1:])  # red


@pytest.mark.parametrize("share", [0.08, 0.5])
def test_every_point_of_the_reference_lines_has_that_dice(share):
    left, right = Figure().subplots(1, 2)
    plots.lines_of_equal_dice(left, right, 0.7, share)
    vessels, others = 1000 * share, 1000 * (1 - share)
    rate, sensitivity = left.lines[0].get_data()
    recall, precision = right.lines[0].get_data()
    tp, fp = sensitivity * vessels, rate * others
    np.testing.assert_allclose(2 * tp / (tp + fp + vessels), 0.7)
    tp, called = recall * vessels, recall * vessels / precision
    np.testing.assert_allclose(2 * tp / (called + vessels), 0.7)
    assert precision[0] == pytest.approx(1)


@pytest.mark.parametrize("vessels", [True, False])
@pytest.mark.parametrize("names", [["a", "$\\frac{", "b\nc", "名" * 50], []])
def test_plots_are_drawn_of_whatever_there_is(vessels, names):
    """Also without a vessel, without names, with names that are no formulas and no letters."""
    counts = row("a")["counts"] * np.array([[1], [vessels]])
    second = Confusion(3, 1, 2, 4) if vessels else None
    dice = [0.5, 0.7, math.nan if not vessels else 0.2, 0.1]
    drawn = [
        plots.roc_and_precision_recall(counts, 0.5, second),
        plots.reliability(counts, 0.5),
        plots.dice_of_images(dice, [math.nan] * 3 + [0.4], 0.5, names),
        plots.comparison(
            [(name, np.zeros((9, 9, 3), np.uint8), *[np.eye(9)] * 2) for name in "a$"]
        ),
    ]
    for png in drawn:
        with Image.open(io.BytesIO(png)) as picture:
            assert min(picture.size) >= 400


def test_the_photographs_shown_are_the_extremes_and_evenly_between():
    rng = np.random.default_rng(0)
    dice = rng.random(101)
    shown = report.spread(dice, 5)
    assert dice[shown].tolist() == np.sort(dice)[::-25].tolist()
    assert report.spread([0.3, math.nan, 0.9], 24) == [2, 0, 1]
    assert report.spread(dice, 0) == []


def test_pictures_are_cut_to_the_field_and_small_enough():
    fov = np.zeros((900, 2000), bool)
    fov[100:700, 300:1500] = True
    label = np.where(fov, 2, 0).astype(np.uint8)
    label[100:400, 300:1500] = 1
    image = np.dstack([fov * np.uint8(200)] * 3)
    pictures = report.draw(Labelled(image, label, fov), ~fov | (label == 1))
    for picture in pictures:
        assert picture.size == (600, 300)
    assert np.asarray(pictures.image).min() == 200
    for of in (pictures.label, pictures.predicted):
        np.testing.assert_array_equal(np.asarray(of)[:, 0], np.repeat([255, 0], 150))


# ---- the page


class Page(HTMLParser):
    """What a browser would see of a page: its tags with attributes, its text."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


def files_of(measured, with_images: bool) -> dict[str, bytes]:
    data, tally, job, result = measured
    return evaluate.files_of_set(job, 0, data, tally, result, with_images)


@pytest.fixture(scope="module")
def files(measured):
    return files_of(measured, with_images=True)


def test_the_page_holds_its_figures_and_every_photograph_four_times(files):
    images = Page(files["report.html"]).images()
    assert len(images) == 3 + 2 * 4
    sizes = []
    for image in images:
        kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", image["src"]).groups()
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.format.lower() == kind
            sizes.append(picture.size)
        assert image["alt"]
    assert len(set(sizes[3:7])) == 1
    for name in ("curves.png", "reliability.png", "dice.png"):
        assert base64.b64encode(files[name]) in files["report.html"]


def test_the_page_tells_the_figures_beside_the_second_observers(files, measured):
    result, text = measured[3], Page(files["report.html"]).text
    for figures in (result["pooled"], result["second_observer"]):
        for key in ("dice", "mcc", "sensitivity", "specificity", "accuracy"):
            assert f"{figures[key]:.4f}" in text
    for image in result["images"]:
        second = image["second_observer"]["dice"]
        assert f"{image['name']}: Dice {image['dice']:.4f}, second observer {second:.4f}" in text


def test_the_page_asks_for_nothing_and_runs_nothing(files):
    page = Page(files["report.html"])
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "a"}
    assert "http" not in page.text
    assert b"url(" not in files["report.html"]


def test_without_images_the_page_names_no_photograph(measured, files):
    off = files_of(measured, with_images=False)
    page = Page(off["report.html"])
    assert len(page.images()) == 3
    assert "image/jpeg" not in off["report.html"].decode()
    assert "01_test" in files["report.html"].decode()
    assert "01_test" not in off["report.html"].decode()
    assert base64.b64encode(off["dice.png"]) not in off["report.html"]  # it names photographs
    assert off["dice.png"] == files["dice.png"]
    assert off["comparison.png"] == files["comparison.png"]


def test_hostile_names_are_text(measured):
    _, _, _, result = measured
    name, other = "<script>alert(1)</script>", '"><img src=x onerror=alert(2)>'
    photograph = result["images"][0] | {"name": other}
    small = Image.new("RGB", (20, 20))
    pictures = report.Pictures(small, small, small, small)
    html = report.page(name, result, {}, [(photograph, pictures)])
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert all(image["src"].startswith("data:image/") for image in page.images())
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.images()[0]["alt"] == f"Photograph {other}"
    assert name in page.text
    assert other in page.text


def test_of_many_photographs_a_few_are_shown(measured):
    _, _, _, result = measured
    many = result | {"images": result["images"] * 50}
    small = Image.new("RGB", (20, 20))
    pictures = report.Pictures(small, small, small, small)
    html = report.page("x", many, {}, [(result["images"][0], pictures)] * 24)
    assert "24 of 100 photographs, evenly over their ranks" in Page(html).text


# ---- the documentation


def keys(value: object, above: str = "") -> set[str]:
    """The paths of all keys of a JSON value; a list's items share theirs, a card is one thing."""
    if isinstance(value, list):
        return set().union(*(keys(item, f"{above}[]") for item in value))
    if isinstance(value, dict) and above != ".checkpoint":
        return set().union(*(keys(item, f"{above}.{key}") for key, item in value.items()))
    return {above.removeprefix(".")}


def test_the_documentation_has_every_key_of_the_files(measured):
    text = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
    data, _, _, result = measured
    row = evaluate.table_row(data, result)
    table = {"checkpoint": result["checkpoint"], "sets": [row]}
    for name, value in (("metrics.json", result), ("table.json", table)):
        section = text.partition(f"## {name}")[2].partition("\n## ")[0]
        told = set()
        for cell in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE):
            above, *below = re.findall(r"`([^`]+)`", cell)  # a path, or its start and its ends
            told |= {above + key for key in below or [""]}
        assert told == keys(value), name


def test_the_documentation_names_every_file(files):
    text = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
    for name in (*files, "table.md", "table.json"):
        assert re.search(rf"^{re.escape(name)} ", text, re.MULTILINE), name
