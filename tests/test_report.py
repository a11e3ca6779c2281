"""The HTML report: the numbers it shows, what it leaves out, and how a browser sees it.

Run: pytest tests/test_report.py; with -m cluster in a real browser (apt-get install chromium).
"""

import base64
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from needs import lacking
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from verbs import run

from segpipe.data import codecs
from segpipe.errors import StoreDown
from segpipe.segment import report
from segpipe.segment.rows import ROW
from segpipe.storage import open_store

THROUGHPUT, SIZES, DENSITIES = "Throughput", "Image size", "Vessel density"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DEADLINE_MS = 30_000


def ok(path: str, **more) -> dict:
    return {"path": path, "status": "ok", "height": 500, "width": 600} | more


def rejected(path: str, error: str, **more) -> dict:
    return {"path": path, "status": "rejected", "error": error} | more


def at(seconds: float) -> datetime:
    """Since 1970."""
    return datetime.fromtimestamp(seconds, UTC)


def write_results(folder: Path, rows: list[dict], schema=ROW, group_rows=7) -> dict:
    """results/ of these rows, in two files of small row groups -> the summary of their run."""
    (folder / "results").mkdir(parents=True)
    half = len(rows) // 2
    for number, some in enumerate((rows[:half], rows[half:])):
        table = pa.Table.from_pylist(some, schema=schema)
        name = folder / f"results/part-{number:05d}.parquet"
        pq.write_table(table, name, row_group_size=group_rows)
    reasons = Counter(row["error"] for row in rows if row["status"] == "rejected")
    return {
        "inputs": len(rows),
        "ok": len(rows) - reasons.total(),
        "rejected": reasons.total(),
        "rejected_by_reason": dict(reasons.most_common()),
        "skipped": {},
        "open": 0,
        "seconds": 12.0,
        "images_per_second": None,
        "model": {"model": "segnet-lite", "training_data": "DRIVE"},
    }


def page_of(output: Path, summary: dict, overlays: int = 0, source: Path | None = None) -> str:
    """The report; its photographs lie in `in/` beside its results unless said otherwise."""
    stores = open_store(str(source or output / "in")), open_store(str(output))
    return report.archive_report(*stores, summary, overlays).decode()


def stats_of(output: Path, summary: dict) -> report.ReportStats:
    return report.gather(open_store(str(output)), summary, 0)


def filled(histogram: report.Histogram | report.RunTrace) -> list[int]:
    """Counts of its bins, from left to right, without the empty ones."""
    return [int(count) for count in histogram.counts if count]


def figures(page: str) -> dict[str, tuple[str, np.ndarray]]:
    """By title what the page tells of each figure, and its pixels [H, W] grey."""
    found = re.findall(
        r'<img src="data:image/png;base64,([^"]+)" alt="([^,]+), [^:]*: (.*?)">', page
    )
    grey = {
        title: Image.open(io.BytesIO(base64.b64decode(png))).convert("L") for png, title, _ in found
    }
    return {title: (text, np.asarray(grey[title])) for _, title, text in found}


def pictures(page: str) -> list[np.ndarray]:
    """Photograph, overlay, photograph, ... as arrays [H, W, 3]."""
    found = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


# ---- numbers


def test_histograms_have_numpys_counts(tmp_path):
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(40, 4300, (2, 500))
    shares = rng.beta(2, 9, 500).astype(np.float32)
    rows = [
        ok(f"{n:03d}", height=h, width=w, vessel_density=share)
        for n, (h, w, share) in enumerate(zip(heights, widths, shares, strict=True))
    ]
    stats = stats_of(tmp_path, write_results(tmp_path, rows))
    sizes = np.histogram(heights * widths / 1e6, 2.0 ** (np.arange(-48, 41) / 4))[0]
    assert stats.sizes.counts.tolist() == sizes.tolist()
    densities = np.histogram(shares, np.arange(201) / 200)[0]
    assert stats.densities.counts.tolist() == densities.tolist()


def test_throughput_is_shown_over_the_time_worked(tmp_path):
    """Ten a second for ten seconds, a day's pause, five a second; rejections are work as well."""
    first = 1.7e9 + np.arange(100) / 10
    second = 1.7e9 + 86400 + np.arange(50) / 5
    rows = [ok(f"a{n}", finished=at(when)) for n, when in enumerate(first)]
    rows += [rejected(f"b{n}", "empty file", finished=at(when)) for n, when in enumerate(second)]
    np.random.default_rng(0).shuffle(rows)
    summary = write_results(tmp_path, rows)
    trace = stats_of(tmp_path, summary).timeline.trace()
    assert filled(trace) == [20] * 5 + [10] * 5
    assert trace.edges.tolist() == list(range(0, 21, 2))
    assert trace.pauses == [(10.0, pytest.approx(86390, abs=1))]
    text, _ = figures(page_of(tmp_path, summary))[THROUGHPUT]
    assert text == "150 photographs in 20 s of work, without 1 pause of 24 h (dashed)"


def test_slow_work_is_no_pause():
    timeline = report.Timeline()
    timeline.add(np.repeat(1.7e9 + 100.0 * np.arange(40), 16))  # a group each 100 s
    edges, in_bins, pauses = timeline.trace()
    assert (edges[-1], in_bins.sum(), pauses) == (3901, 640, [])


def test_a_timeline_of_years_is_small_and_complete():
    timeline = report.Timeline()
    finished = 1.6e9 + np.random.default_rng(0).uniform(0, 1e8, 100_000)
    for some in np.split(finished, 10):
        timeline.add(some)
    assert len(timeline.moments) <= report.MOST_MOMENTS
    edges, in_bins, _ = timeline.trace()
    assert in_bins.sum() == timeline.counts.sum() == 100_000
    assert len(in_bins) == len(edges) - 1 <= report.MOST_BARS
    assert timeline.moments[0] == finished.min() // timeline.moment_s
    assert timeline.moments[-1] == finished.max() // timeline.moment_s


def test_the_commonest_reasons_are_named_each_with_a_few_of_its_inputs(tmp_path):
    rows = [rejected(f"{r}-{n}.jpg", f"reason {r}") for r in range(25) for n in range(30 - r)]
    page = page_of(tmp_path, write_results(tmp_path, rows), overlays=1)
    table = re.findall(
        r'number">([\d,]+)</td><th scope="row">(.*?)</th><td>(.*?)</td>', page, re.DOTALL
    )
    for r, (count, reason, examples) in enumerate(table[:20]):
        named = [f"<bdi>{r}-{n}.jpg</bdi>" for n in range(5)]
        assert (int(count), reason, examples) == (30 - r, f"reason {r}", "".join(named))
    [(count, text, _)] = table[20:]
    assert (int(count), text) == (10 + 9 + 8 + 7 + 6, "5 other reasons, see summary.json")


def test_stages_and_engine_are_shown_where_the_summary_has_them(tmp_path):
    summary = write_results(tmp_path, [ok("a"), ok("b")])
    bare = page_of(tmp_path, summary)
    assert bare == page_of(tmp_path, summary | {"bottleneck": None, "stages": None, "engine": None})
    assert "Where the time went" not in bare
    more = {"bottleneck": "decode", "engine": {"name": "torch & co"}}
    page = page_of(tmp_path, summary | more | {"stages": {"fetch": 25.0, "decode": 1975.0}})
    assert "<b>decode</b>bottleneck" in page
    assert "the network was run by torch &amp; co" in page
    rows = re.findall(r'row">(\w+)</th><td class="number">([\d,.]+)</td>.*width: ([\d.]+)%', page)
    assert rows == [("fetch", "25.0", "1.2"), ("decode", "1,975.0", "98.8")]


def test_bars_are_as_high_as_their_counts(tmp_path):
    """In pixels of the figure: bars from 11.0, 12.0, 13.0 and 14.0 %, each 0.5 % wide."""
    shares = np.repeat([0.112, 0.123, 0.134, 0.142], [1, 4, 3, 2])
    rows = [ok(f"{n}", vessel_density=float(share)) for n, share in enumerate(shares)]
    _, grey = figures(page_of(tmp_path, write_results(tmp_path, rows)))[DENSITIES]
    bar = np.abs(grey.astype(int) - 90) < 16  # the colour of bars
    columns = np.flatnonzero(bar.sum(axis=0) > 20)
    left, right = columns.min(), columns.max()
    places = left + (right - left) * np.array([0.07, 0.36, 0.64, 0.93])
    heights = bar[:, places.astype(int)].sum(axis=0)
    np.testing.assert_allclose(heights / heights.max(), [0.25, 1, 0.75, 0.5], atol=0.06)


# ---- rows of all kinds


def test_an_archive_without_a_single_mask_has_a_report(tmp_path):
    rows = [rejected(f"{n}.jpg", "empty file", finished=at(1.7e9 + n)) for n in range(9)]
    page = page_of(tmp_path, write_results(tmp_path, rows), overlays=24)
    assert "9 photographs: 0 masks, 9 rejected" in page
    assert list(figures(page)) == [THROUGHPUT]
    assert figures(page)[THROUGHPUT][0].startswith("9 photographs in 9 s")


def test_rows_that_lack_columns_have_a_report(tmp_path):
    """As those of an older version."""
    names = ("path", "status", "error", "height", "width")
    schema = pa.schema([ROW.field(name) for name in names])
    summary = write_results(tmp_path, [ok("a"), ok("b"), rejected("c", "empty file")], schema)
    page = page_of(tmp_path, summary)
    assert list(figures(page)) == [SIZES]
    assert figures(page)[SIZES][0].startswith("2 photographs")


# For ever: one of Arrow's threads may give its last buffer back when the rows are long read, and
# writes into a pool that is gone.
POOL = pa.proxy_memory_pool(pa.system_memory_pool())


def test_rows_are_read_a_row_group_at_a_time(tmp_path):
    """40 MB of keys; what Arrow held at most is Arrow's own count."""
    rows = [ok(f"{n:05d}".ljust(1000, "x")) for n in range(40_000)]
    summary = write_results(tmp_path, rows, group_rows=1000)
    before = pa.default_memory_pool()
    pa.set_memory_pool(POOL)
    try:
        stats = stats_of(tmp_path, summary)
    finally:
        pa.set_memory_pool(before)
    assert filled(stats.sizes) == [40_000]
    assert 1e6 < POOL.max_memory() < 10e6


# ---- photographs


FIELD = np.hypot(*np.mgrid[-250:250, -300:300]) < 240  # 500x600 px, a disc of 480


@pytest.fixture
def photographs(tmp_path) -> list[dict]:
    """Rows of 50 photographs of a red disc, every second in `in/`; their upper half is vessel."""
    vessel = FIELD & (np.arange(500) < 250)[:, None]
    mask = codecs.encode_mask(np.where(vessel, 1, np.where(FIELD, 2, 0)).astype(np.uint8))
    (tmp_path / "in").mkdir()
    image = Image.fromarray(FIELD[..., None] * np.array([200, 60, 20], np.uint8))
    for n in range(0, 50, 2):
        image.save(tmp_path / f"in/{n:02d}.png")
    entries = {entry.key: entry for entry in open_store(str(tmp_path / "in")).list()}
    rows = []
    for n in range(50):
        key = f"{n:02d}.png"
        version = entries[key].version if key in entries else "gone"
        rows.append(ok(key, version=version, mask_png=mask, vessel_density=0.5))
    return rows


def is_green(pixels: np.ndarray) -> bool:
    red, green, _ = pixels.reshape(-1, 3).mean(axis=0)
    return bool(green > 150 > red)


def test_photographs_are_spread_over_the_archive_beside_their_vessels(photographs, tmp_path):
    summary = write_results(tmp_path, photographs[::2])
    page = page_of(tmp_path, summary, overlays=5)
    keys = re.findall(r"<figcaption><bdi>(.*?)</bdi>, 600×500 px, vessels 50.0 %", page)
    assert keys == ["00.png", "12.png", "24.png", "36.png", "48.png"]
    image, drawn = pictures(page)[:2]
    assert image.shape == drawn.shape == (*image.shape[:2], 3)
    assert 290 <= image.shape[0] <= 320
    above, below = np.s_[40:140, 100:200], np.s_[160:260, 100:200]
    assert is_green(drawn[above])
    assert not is_green(drawn[below])
    assert not is_green(image[above])


def test_masks_in_files_and_in_rows_look_alike(photographs, tmp_path):
    in_rows, in_files = tmp_path / "rows", tmp_path / "files"
    rows = photographs[::2]
    one = page_of(in_rows, write_results(in_rows, rows), 24, tmp_path / "in")
    for row in rows:
        open_store(str(in_files)).put(f"masks/{row['path']}.png", row["mask_png"])
    files = [row | {"mask_png": None, "mask_path": f"masks/{row['path']}.png"} for row in rows]
    assert page_of(in_files, write_results(in_files, files), 24, tmp_path / "in") == one
    assert len(pictures(one)) == 2 * 24


def test_photographs_that_are_gone_or_changed_are_left_out(photographs, tmp_path):
    photographs[4]["version"] = "another"
    page = page_of(tmp_path, write_results(tmp_path, photographs[:8]), overlays=8)
    assert re.findall(r'alt="Photograph (.*?)"', page) == ["00.png", "02.png", "06.png"]


def test_a_store_that_is_down_costs_the_pictures_and_no_more(photographs, tmp_path):
    class Down:
        asked = 0

        def get(self, key: str, version: str | None = None) -> bytes:
            self.asked += 1
            raise StoreDown("no good answer for 600 s")

    source, summary = Down(), write_results(tmp_path, photographs)
    page = report.archive_report(source, open_store(str(tmp_path)), summary, 8)
    assert b"50 photographs: 50 masks" in page
    assert source.asked == 1


def test_photographs_are_shown_upright(photographs, tmp_path):
    """Orientation 6: what is stored at the top is shown on the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    key = tmp_path / "in/00.png"
    Image.open(key).save(key, exif=exif)
    [entry, *_] = open_store(str(tmp_path / "in")).list()
    row = photographs[0] | {"version": entry.version}
    page = page_of(tmp_path, write_results(tmp_path, [row]), overlays=1)
    _, drawn = pictures(page)
    assert is_green(drawn[100:200, 160:260])
    assert not is_green(drawn[100:200, 40:140])


def test_without_images_the_page_holds_no_key_and_no_picture(photographs, tmp_path):
    rows = [row | {"path": f"Meier_1950/{row['path']}"} for row in photographs]
    rows += [rejected("Schulze_1961/left.jpg", "empty file")]
    shutil.move(tmp_path / "in", tmp_path / "kept")
    shutil.move(tmp_path / "kept", tmp_path / "in/Meier_1950")
    summary = write_results(tmp_path, rows)
    shown, page = page_of(tmp_path, summary, 24), page_of(tmp_path, summary, 0)
    for secret in (
        "Meier",
        "Schulze",
        "1950",
        "left.jpg",
        ".png",
        "data:image/jpeg",
        "<figcaption><bdi>",
    ):
        assert secret in shown
        assert secret not in page
    assert "empty file" in page
    assert figures(page)[DENSITIES][0].startswith("50 photographs")


# ---- in a browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = [path for path in map(shutil.which, BROWSERS) if path]
    if not found:
        lacking(f"none of {', '.join(BROWSERS)} is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=found[0], args=["--no-sandbox"], timeout=DEADLINE_MS
        )


HOSTILE = ("<img src=x onerror=alert(1)>.png", "<b>bold</b>.png", '"onload="alert(2).png')


@pytest.fixture(scope="session")
def segmented(labelled, tmp_path_factory, ray_cluster) -> Path:
    """A run over photographs with hostile names, one of them broken."""
    folder, output = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out")
    images = sorted(labelled.glob("*/images/*"))
    for name, path in zip((*HOSTILE[::2], "a.png", "c.png"), images, strict=False):
        Image.open(path).save(folder / name)
    broken = folder.joinpath(*HOSTILE[1].split("/"))
    broken.parent.mkdir()
    broken.write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    words = ["--input", folder, "--output", output, "--max-rejected", 1]
    assert run("segment", *words) == 0
    summary = json.loads((output / "summary.json").read_text())
    summary |= {"stages": {"fetch": 1.0, "decode": 3.0}, "bottleneck": "decode"}
    page = report.archive_report(open_store(str(folder)), open_store(str(output)), summary, 24)
    (output / "report.html").write_bytes(page)
    return output


@pytest.fixture
def opened(segmented, browser) -> Iterator[tuple[Page, list[str]]]:
    """The page in a fresh profile, and what it should not do."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, events = context.new_page(), []
    page.set_default_timeout(DEADLINE_MS)
    page.on("console", lambda message: events.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (events.append("dialog"), dialog.dismiss()))
    own = (segmented / "report.html").as_uri()
    page.on(
        "request",
        lambda request: (
            request.url.startswith((own, "data:image/")) or events.append(f"request: {request.url}")
        ),
    )
    page.goto(own)
    yield page, events
    context.close()


@pytest.mark.cluster
def test_a_browser_shows_all_pictures_and_asks_for_nothing(opened):
    page, events = opened
    widths = page.evaluate("[...document.images].map(i => i.complete ? i.naturalWidth : 0)")
    assert len(widths) == 3 + 2 * 4
    assert min(widths) >= 280
    assert page.evaluate("document.scripts.length") == 0
    assert events == []


@pytest.mark.cluster
def test_a_browser_shows_keys_as_they_are(opened):
    page, events = opened
    captions = page.locator(".sheet figcaption bdi").all_inner_texts()
    assert sorted(captions) == sorted([*HOSTILE[::2], "a.png", "c.png"])
    alts = page.evaluate("[...document.images].map(i => i.alt)")
    assert {f"Photograph {name}" for name in captions} < set(alts)
    cells = page.locator("td bdi").all_inner_texts()
    assert cells == [HOSTILE[1]]
    assert page.locator("td b, figcaption b, figcaption img").count() == 0
    assert events == []


@pytest.mark.cluster
def test_a_browser_shows_the_numbers(opened, segmented):
    page, _ = opened
    assert page.locator("h1").inner_text() == "5 photographs: 4 masks, 1 rejected"
    assert page.title() == "segpipe: 4 masks"
    widths = [bar.bounding_box()["width"] for bar in page.locator(".bar div").all()]
    assert widths[1] / widths[0] == pytest.approx(3, rel=0.02)


@pytest.mark.cluster
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_any_screen_and_follows_its_colours(opened, width):
    page, _ = opened
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    levels = {}
    for name, media in {
        "light": {"color_scheme": "light"},
        "dark": {"color_scheme": "dark"},
        "printed": {"color_scheme": "dark", "media": "print"},
    }.items():
        page.emulate_media(**media)
        shot = Image.open(io.BytesIO(page.locator("h1").screenshot())).convert("L")
        grey = np.asarray(shot)
        levels[name] = int(np.median(grey))
        assert int(grey.max()) - int(grey.min()) > 150, name  # the text is seen
    assert levels["dark"] < 60
    assert min(levels["light"], levels["printed"]) > 240
