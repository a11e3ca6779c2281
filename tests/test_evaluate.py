"""What evaluation counts and tells, without Ray: figures, plots, the page, the table.

Run: pytest tests/test_evaluate.py; with SEGPIPE_DATA=folder-that-holds-DRIVE also on DRIVE
"""

import base64
import io
import json
import math
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats
from sklearn import metrics as sk

from segpipe import kernels, metrics, plots
from segpipe.data.canvas import padded
from segpipe.data.classes import VESSEL
from segpipe.data.datasets import Labelled
from segpipe.data.layouts import open_labelled
from segpipe.errors import UserError
from segpipe.evaluate import bootstrap, report
from segpipe.evaluate import run as evaluate
from segpipe.evaluate.run import LabelledData, Tally, as_json, summarise, unique_name
from segpipe.evaluate.stages import EvaluateJob, Scoring, count, load_labelled
from segpipe.measurement import agreement
from segpipe.metrics import BINS, Confusion
from segpipe.models import checkpoint
from segpipe.models.checkpoint import Card
from segpipe.models.engine import REFERENCE, Engine, open_score
from segpipe.models.networks import load_network
from segpipe.models.predict import Predictor
from segpipe.storage import open_store

PIXELS = ("dice", "mcc", "sensitivity", "specificity", "accuracy")
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
        tally.add(count(row | {"score": score, "engine": "torch fp32"}, job), CARD.threshold)
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
        found = {name: row["second_observer"][name] for name in PIXELS}
        assert found == pytest.approx(
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
        "engine": "torch fp32",
        "counts": counts,
        "hits": np.tile([1, 2], (5, 1)),
        "second": second or (0, 0, 0, 0),
        "second_hits": np.zeros((5, 2), np.int64),
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


def test_what_goes_beyond_pixels_is_counted_of_the_mask_that_is_written(measured):
    """Of each photograph, and of all together: the sum of their pixels."""
    data, tally, job, result = measured
    total = np.zeros((5, 2), np.int64)
    for example in data.examples:
        labelled = job.load({"set": 0} | example.as_row())
        mask = np.asarray(Image.open(io.BytesIO(tally.masks[example.name])))
        hits = agreement.compare(mask == VESSEL, labelled.label == VESSEL, labelled.fov)
        wanted = agreement.summary(hits)
        figures = tally.images[example.name]
        assert {name: figures[name] for name in wanted} == wanted
        total += hits
    assert result["pooled"].items() >= agreement.summary(total).items()
    vessels = sum(grey(path).sum() for path in data_labels(data))
    assert total[2:, 1].sum() == pytest.approx(vessels, rel=0.01)  # some lie outside the field


def data_labels(data: LabelledData) -> list[Path]:
    return [Path(data.store.uri(example.label)) for example in data.examples]


def test_the_engines_that_scored_are_told(measured):
    assert measured[3]["engine"] == "torch fp32"
    tally = Tally()
    tally.add(row("a") | {"engine": "native fp32"}, 0.5)
    tally.add(row("b"), 0.5)
    assert tally.engines == {"native fp32", "torch fp32"}


# ---- engines


@pytest.fixture(scope="module")
def loaded_rows(labelled):
    job = tallied(labelled)[2]
    examples = open_labelled(job.stores[0], ["test"]).examples("test")
    rows = [load_labelled({"set": 0} | example.as_row(), job) for example in examples]
    return {key: np.stack([row[key] for row in rows]) for key in ("canvas", "fov", "side", "error")}


@pytest.mark.parametrize("name", ["resunet", "segnet-lite"])
def test_scores_are_those_of_the_engine_in_the_field(loaded_rows, name):
    """Of each engine against the plain network, layer after layer, on the whole canvas.

    Rounding may choose another of two equal maxima where segnet-lite pools.
    """
    weights = checkpoint.read(name)
    network = load_network(checkpoint.load(weights, name))
    wanted = Predictor(network).scores(loaded_rows["canvas"])
    inside = loaded_rows["fov"] > 0
    for engine in (Engine("native", "fp32"), Engine("torch", "fp32")):
        if engine.backend == "native" and kernels.missing():
            continue
        scored = Scoring(weights, "none", None, engine, False, "cpu", 1)(dict(loaded_rows))
        assert scored["engine"].tolist() == [engine.name] * 2
        apart = np.abs(scored["score"] - wanted)[inside]
        assert (apart > 2e-3).mean() < (1e-3 if name == "segnet-lite" else 1e-9)


def test_canvases_of_several_sizes_are_scored_as_each_alone():
    """In one batch, each in the corner of the largest."""
    rng, weights, sides = np.random.default_rng(1), checkpoint.read("resunet"), (96, 128)
    alone = [rng.integers(0, 256, (side, side, 3), np.uint8) for side in sides]
    batch = {
        "canvas": np.stack([padded(one, 128) for one in alone]),
        "fov": np.stack([padded(np.full(one.shape[:2], 255, np.uint8), 128) for one in alone]),
        "side": np.array(sides),
        "error": np.array(["", ""]),
    }
    scores = Scoring(weights, "none", None, REFERENCE, True, "cpu", 1)(batch)["score"]
    score = open_score(weights, REFERENCE, 1, "none")
    for side, one, found in zip(sides, alone, scores, strict=True):
        wanted = score(one, np.full((side, side), 255, np.uint8))
        np.testing.assert_allclose(found[:side, :side], wanted, atol=1e-6)
        assert not found[side:].any()
        assert not found[:, side:].any()


def test_a_photograph_that_cannot_be_read_is_not_scored(loaded_rows):
    weights = checkpoint.read("segnet-lite")
    scoring = Scoring(weights, "none", None, REFERENCE, True, "cpu", 1)
    scored = scoring(loaded_rows | {"error": np.array(["a.png: broken", ""])})["score"]
    assert not scored[0].any()
    assert scored[1].any()


def test_where_an_engine_is_missing_the_reference_takes_its_place_or_the_flag_is_named(
    monkeypatch,
):
    """The latter where the engine was named though it does not match the reference."""
    monkeypatch.setattr(kernels, "missing", lambda: "no C++ compiler")
    weights, native = checkpoint.read("segnet-lite"), Engine("native", "fp32")
    assert Scoring(weights, "none", None, native, True, "cpu", 1).engine == REFERENCE
    with pytest.raises(UserError, match=r"--backend native --precision fp32: .*no C\+\+ compiler"):
        Scoring(weights, "none", None, native, False, "cpu", 1)


# ---- intervals


def photographs(num: int, seed: int = 0) -> tuple[list, list, list]:
    """Histograms, hits and kept rows of photographs that differ."""
    rng = np.random.default_rng(seed)
    counts, hits = [], []
    for _ in range(num):
        truth = rng.random((1, 4000)) < rng.uniform(0.05, 0.2)
        logit = rng.normal(np.where(truth, rng.uniform(0.5, 3), -2.5), 1.5)
        score = (1 / (1 + np.exp(-logit))).astype(np.float32)
        counts.append(metrics.count_scores(score, truth, np.ones_like(truth)))
        total = rng.integers(1, 500, 5)
        hits.append(np.stack([rng.binomial(total, 0.7), total], axis=1))
    kept = [bootstrap.keep(*of) for of in zip(counts, [0.5] * num, hits, strict=True)]
    return counts, hits, kept


def test_an_interval_holds_what_resampled_photographs_give():
    """scipy's bootstrap, from pixels' histograms at full resolution."""
    counts, hits, kept = photographs(12)
    found = bootstrap.intervals(kept)

    @cache  # the resamples are the same for each figure
    def figures(places):
        pooled, lines = (sum(some[place] for place in places) for some in (counts, hits))
        at = metrics.confusion(pooled, 0.5).summary()
        return {"auc": metrics.auc(pooled)} | at | agreement.summary(lines)

    for name in found["low"]:
        independent = stats.bootstrap(
            (np.arange(12),),
            lambda places, name=name: figures(tuple(places))[name],
            vectorized=False,
            n_resamples=600,
            method="percentile",
            rng=np.random.default_rng(1),
        )
        low, high = independent.confidence_interval
        width = high - low
        assert width > 0
        assert abs(found["low"][name] - low) < 0.12 * width, name
        assert abs(found["high"][name] - high) < 0.12 * width, name


def test_the_interval_of_a_share_of_photographs_is_the_binomials():
    """Of ten photographs with as many vessels four are found whole, six not at all."""
    kept = []
    for found in [True] * 4 + [False] * 6:
        counts = np.zeros((2, BINS), np.int64)
        counts[0, 100], counts[1, -100 if found else 100] = 500, 100
        hits = np.array([[0, 0], [90 * found, 90]] + [[100 * found, 100]] * 3)
        kept.append(bootstrap.keep(counts, 0.5, hits))
    ends = bootstrap.intervals(kept)
    for end, share in (("low", 0.025), ("high", 0.975)):
        wanted = stats.binom.ppf(share, 10, 0.4) / 10
        for name in ("sensitivity", "cldice_sensitivity", "sensitivity_3_to_6_px"):
            assert ends[end][name] == pytest.approx(wanted), name


def test_an_interval_is_the_same_each_time_and_narrows_with_more_photographs():
    _, _, kept = photographs(10, seed=2)
    found, again = bootstrap.intervals(kept), bootstrap.intervals(kept)
    assert found == again
    more = bootstrap.intervals(kept * 16)  # a quarter as wide: the root of sixteen
    for name, low in found["low"].items():
        wide, narrow = found["high"][name] - low, more["high"][name] - more["low"][name]
        assert narrow == pytest.approx(wide / 4, rel=0.2), name


def test_alike_photographs_have_an_interval_without_a_width():
    _, _, kept = photographs(1)
    found = bootstrap.intervals(kept * 5)
    assert found["low"] == pytest.approx(found["high"])
    assert found["low"] == pytest.approx(bootstrap.figures(kept[0]))


def test_what_is_kept_of_a_photograph_is_small_and_has_its_figures():
    counts, hits, kept = photographs(6)
    wanted = metrics.summary(sum(counts), 0.5) | agreement.summary(sum(hits))
    found = bootstrap.figures(sum(kept))
    assert found == pytest.approx({name: wanted[name] for name in found}, abs=1e-5)
    assert kept[0].nbytes < 30_000


def test_a_figure_that_no_resample_has_is_no_number():
    """And one that some have is told of those: of five photographs one has a vessel."""
    counts, hits, _ = photographs(5)
    none = np.zeros_like(hits[0])
    empty = [one * [[1], [0]] for one in counts[1:]]
    kept = [bootstrap.keep(one, 0.5, none) for one in empty]
    found = bootstrap.intervals(kept)
    for name in ("auc", "sensitivity", "cldice"):
        assert math.isnan(found["low"][name])
        assert math.isnan(found["high"][name])
    assert found["low"]["specificity"] < found["high"]["specificity"]
    some = bootstrap.intervals([bootstrap.keep(counts[0], 0.5, hits[0]), *kept])
    sensitivity = metrics.confusion(counts[0], 0.5).sensitivity
    assert some["low"]["sensitivity"] == some["high"]["sensitivity"] == pytest.approx(sensitivity)


def test_one_photograph_has_no_interval(measured):
    data, tally, _, result = measured
    assert result["intervals"]["low"].keys() == result["intervals"]["high"].keys()
    for name, low in result["intervals"]["low"].items():
        assert low <= result["pooled"][name] + 1e-5
        assert result["pooled"][name] <= result["intervals"]["high"][name] + 1e-5
    one = replace(data, examples=data.examples[:1])
    assert "intervals" not in summarise(one, tally, CARD)


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
            *(result["pooled"][key] for key in ("cldice", "best_threshold", "best_dice")),
        )
    ]
    assert second.startswith("| a\\|b | 2 | given | – |")
    beyond = " | ".join(cells[-3:])
    assert second.endswith(f"| – | – | {beyond} |")


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
        for key in (*PIXELS, "cldice", *agreement.SHARES[2:]):
            assert f"{figures[key]:.4f}" in text
    for key in ("best_threshold", "best_dice"):
        assert f"{result['pooled'][key]:.4f}" in text
    for ends in result["intervals"].values():
        assert f"{ends['cldice']:.4f}" in text
    assert "Scores by torch fp32" in text
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
