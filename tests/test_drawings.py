"""A drawing is read by what its values mean, and refused where that is not known.

Run: SEGPIPE_DATA=folder-that-holds-HRF-and-DRIVE_AV pytest tests/test_drawings.py
"""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from needs import real_set
from PIL import Image
from verbs import run

from segpipe.data import synthetic
from segpipe.data.colours import SCHEMES, Scheme
from segpipe.data.datasets import load_example
from segpipe.data.drawings import NotTwoValued, read_drawing
from segpipe.data.layouts import open_labelled
from segpipe.errors import Fault, RejectedImage, UserError
from segpipe.storage import open_store

HEIGHT, WIDTH = 96, 104  # px
IMAGE, VESSEL, FOV = synthetic.draw_fundus(5, HEIGHT, WIDTH)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(picture: Image.Image, form: str = "PNG", **how: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **how)
    return file.getvalue()


def in_levels(*levels: int, dtype: type = np.uint8) -> np.ndarray:
    """Background of the first level, vessels of the others in stripes [H, W]."""
    stripe = np.indices(VESSEL.shape)[1] // 10 % (len(levels) - 1)
    return np.where(VESSEL, np.array(levels[1:], dtype)[stripe], dtype(levels[0]))


def painted(*colours: tuple[int, int, int]) -> Image.Image:
    """Vessels in stripes of these colours."""
    stripe = np.indices(VESSEL.shape)[1] // 10 % len(colours)
    return Image.fromarray(np.array(colours, np.uint8)[stripe] * VESSEL[..., None])


def indexed(palette: list[int]) -> bytes:
    picture = Image.fromarray(VESSEL.astype(np.uint8), "P")
    picture.putpalette(palette)
    return encoded(picture)


def as_tiff(levels: np.ndarray) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, levels)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(in_levels(0, 255))),
        encoded(Image.fromarray(in_levels(0, 1))),  # as nnU-Net has it
        encoded(Image.fromarray(in_levels(0, 1)).convert("RGB")),
        encoded(Image.fromarray(in_levels(0, 1)), "BMP"),
        encoded(Image.fromarray(in_levels(4, 251))),
        encoded(Image.fromarray(in_levels(0, 1, dtype=np.uint16))),
        encoded(Image.fromarray(in_levels(0, 255, dtype=np.uint16))),
        encoded(Image.fromarray(in_levels(0, 65535, dtype=np.uint16))),
        as_tiff(in_levels(0, 1, dtype=np.float32)),
        as_tiff(in_levels(0, 1, dtype=np.int32)),
        as_tiff(in_levels(0, 255, dtype=np.float32)),
        encoded(Image.fromarray(VESSEL)),
        encoded(Image.fromarray(VESSEL), "TIFF", compression="group4"),
        indexed([0, 0, 0, 255, 255, 255]),
        indexed([4, 2, 4, 252, 254, 252]),  # DRIVE's 2nd_manual
        indexed([0, 0, 0, 1, 1, 1]),
        encoded(Image.fromarray(in_levels(0, 255)).convert("RGB")),
        encoded(Image.fromarray(in_levels(0, 255)).convert("CMYK"), "TIFF"),
    ],
)
def test_two_values_are_a_drawing_in_whatever_kind_of_pixels(data):
    drawing = read_drawing(data)
    np.testing.assert_array_equal(drawing.foreground, VESSEL)
    assert (drawing.problem, drawing.coloured, drawing.grey) == ("", False, 0)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (encoded(Image.fromarray(in_levels(0, 1, 2))), "holds 0, 1, 2, wanted 0 and 255"),
        (encoded(Image.fromarray(in_levels(1, 2))), "holds 1, 2, wanted 0 and 255, or 0 and 1"),
        (encoded(Image.fromarray(in_levels(0, 76))), "holds 0, 76, wanted 0 and 255"),
        (as_tiff(in_levels(0, 0.5, 1, dtype=np.float32) * np.float32(2)), "holds 0, 1, 2, wanted"),
        (as_tiff(in_levels(0, -1, dtype=np.int16).astype(np.int32)), "holds -1 to 0, wanted"),
        (as_tiff(in_levels(0, 1, dtype=np.float32) * np.float32("nan")), "holds nan to nan"),
        (encoded(painted(RED, BLUE)), "holds colours FF0000, 0000FF"),
        (encoded(painted(BLUE, RED, BLUE)), "holds colours 0000FF, FF0000"),
        (encoded(painted(RED, BLUE, GREEN, WHITE)), "holds colours "),
        (indexed([0, 0, 0, 128, 0, 0]), "holds colour 800000"),  # one colour is no white
        (encoded(painted((40, 0, 0), (0, 0, 40))), "holds colours "),
        (encoded(painted((1, 0, 0), (2, 0, 0))), "holds colours "),  # class numbers in red
        (encoded(painted(RED, BLUE), "JPEG", quality=95), "holds colours "),
    ],
)
def test_other_values_are_refused_and_named(data, told):
    with pytest.raises(NotTwoValued, match=told) as refused:
        read_drawing(data)
    assert refused.value.coloured == ("colour" in told)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (encoded(Image.fromarray(in_levels(0, 127, 255))), "holds 0, 127, 255, wanted two"),
        (encoded(Image.fromarray(in_levels(0, 1, 255))), "holds 0, 1, 255, wanted two"),
        (as_tiff(in_levels(0, 32768, 65535, dtype=np.uint16)), "holds 0, 128, 255, wanted two"),
        (as_tiff(in_levels(0, 0.6, 1, dtype=np.float32)), "holds 0, 153, 255, wanted two"),
        (encoded(Image.fromarray(in_levels(0, 128, 255)), "JPEG", quality=90), "wanted two"),
    ],
)
def test_a_third_level_is_told(data, told):
    drawing = read_drawing(data)
    assert drawing.problem == "values"
    assert told in drawing.text


# ---- schemes


ALL = {
    "RITE": (RED, BLUE, GREEN, WHITE),
    "LES-AV": (RED, BLUE, GREEN, WHITE),
    "DRIVE_AV": (RED, BLUE, GREEN),
    "HRF": (RED, BLUE, GREEN),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_every_colour_of_a_scheme_is_a_vessel(name):
    drawing = read_drawing(encoded(painted(*ALL[name])), SCHEMES[name])
    np.testing.assert_array_equal(drawing.foreground, VESSEL)
    assert drawing.coloured


def test_the_same_colours_mean_different_things():
    assert SCHEMES["RITE"].colours("crossing") == SCHEMES["LES-AV"].colours("uncertain") == (GREEN,)
    assert SCHEMES["RITE"].colours("uncertain") == SCHEMES["LES-AV"].colours("crossing") == (WHITE,)
    assert SCHEMES["DRIVE_AV"].colours("uncertain") == (GREEN,)
    assert SCHEMES["DRIVE_AV"].colours("crossing") == ()
    assert SCHEMES["HRF"].colours("crossing") == SCHEMES["HRF"].colours("uncertain") == (GREEN,)
    for scheme in SCHEMES.values():
        assert (scheme.colours("artery"), scheme.colours("vein")) == ((RED,), (BLUE,))


def test_a_colour_outside_the_scheme_is_refused():
    with pytest.raises(NotTwoValued, match="holds colour FFFFFF, of no meaning in artery=FF0000"):
        read_drawing(encoded(painted(*ALL["RITE"])), SCHEMES["DRIVE_AV"])


def test_white_on_black_needs_no_scheme_and_loses_nothing_by_one():
    for scheme in SCHEMES.values():
        drawing = read_drawing(encoded(Image.fromarray(VESSEL)), scheme)
        np.testing.assert_array_equal(drawing.foreground, VESSEL)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_comes_back_from_its_text(name):
    assert Scheme.parse(str(SCHEMES[name])) == Scheme.parse(name) == SCHEMES[name]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "nothing is no artery"),
        ("rot=FF0000", "rot=FF0000 is no artery"),
        ("artery=FF00", "artery=FF00 is no artery"),
        ("artery=red", "RITE, LES-AV, DRIVE_AV, HRF"),
        ("artery=FF0000,vein=FF0000", "FF0000 stands for artery and vein"),
        ("artery=FF0000,vein=000000", "000000 stands for background and vein"),
    ],
)
def test_what_is_no_scheme_is_refused(text, told):
    with pytest.raises(UserError, match=f"--av-colours {text}: .*{told}"):
        Scheme.parse(text)


def test_a_scheme_may_give_a_meaning_several_colours_and_one_colour_two_kinds_of_doubt():
    scheme = Scheme.parse("artery=#ff0000, artery=800000,crossing=00ff00,uncertain=00FF00")
    assert scheme.colours() == (RED, (128, 0, 0), GREEN)


# ---- sets


PLACES = {  # layout -> files of a photograph, with the label in the scheme of the layout
    "HRF": ("images/a.jpg", "manual_av/a.png", "mask/a_mask.png"),
    "RITE": ("training/images/21_training.png", "training/av/21_training.png", None),
    "LES-AV": ("images/27.png", "arteries-and-veins/27.png", "masks/27.png"),
    "DRIVE": (
        "training/images/21_training.png",
        "training/21_av.png",
        "training/mask/21_training_mask.png",
    ),
    "DRIVE_AV": (
        "DRIVE/training/images/21_training.png",
        "DRIVE_AV/training/21_av.png",
        "DRIVE/training/mask/21_training_mask.png",
    ),
}


def write_set(root: Path, layout: str, picture: Image.Image) -> Path:
    image, label, mask = PLACES[layout]
    pictures = {image: Image.fromarray(IMAGE), label: picture, mask: Image.fromarray(FOV)}
    for key, one in pictures.items():
        if key:
            (root / key).parent.mkdir(parents=True, exist_ok=True)
            one.save(root / key)
    return root


@pytest.mark.parametrize("layout", PLACES)
def test_coloured_labels_of_a_known_layout_are_vessels(tmp_path, layout):
    colours = ALL["DRIVE_AV" if layout == "DRIVE" else layout]
    store = open_store(str(write_set(tmp_path, layout, painted(*colours))))
    found = open_labelled(store)
    assert (found.layout, len(found.training)) == (layout, 1)
    loaded = load_example(store, found.training[0])
    np.testing.assert_array_equal(loaded.label == 1, VESSEL & loaded.fov)


def test_a_sets_own_drawings_go_before_its_colours(tmp_path):
    root = write_set(tmp_path, "DRIVE", painted(*ALL["DRIVE_AV"]))
    (root / "training/1st_manual").mkdir()
    Image.fromarray(VESSEL).save(root / "training/1st_manual/21_manual1.gif")
    found = open_labelled(open_store(str(root)))
    assert found.training[0].label == "training/1st_manual/21_manual1.gif"
    assert found.notes == ()


def test_colours_in_an_unknown_layout_are_refused_by_check_in_one_line(tmp_path, capfd):
    for n in (1, 2):
        for folder, picture in (("images", Image.fromarray(IMAGE)), ("labels", painted(RED, BLUE))):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / f"set/{folder}/{n}.png")
    assert run("check", "--data", tmp_path / "set") == 1
    [line] = [x for x in capfd.readouterr().out.splitlines() if x.startswith("problem")]
    assert f"{tmp_path}/set/labels/1.png: holds colours FF0000, 0000FF" in line
    assert "--av-colours artery=FF0000,vein=0000FF,crossing=00FF00,uncertain=FFFFFF" in line
    assert line.endswith("(and 1 more such)")
    given = ["--av-colours", "artery=FF0000,vein=0000FF"]
    assert run("check", "--data", tmp_path / "set", *given) == 0
    out = capfd.readouterr().out
    assert "note      labels in artery and vein colours" in out
    assert out.splitlines()[-1] == "check: nothing is wrong with this set"


def test_colours_in_a_mask_are_refused_whatever_the_scheme(tmp_path):
    root = write_set(tmp_path, "LES-AV", painted(RED, BLUE))
    painted(RED).save(root / "masks/27.png")
    store = open_store(str(root))
    with pytest.raises(UserError, match=r"masks/27\.png: holds colour FF0000; save it as white on"):
        load_example(store, open_labelled(store).training[0])


def test_hrfs_colours_are_the_vessels_of_its_two_valued_labels(tmp_path):
    """Which were made of them, as the union of all that is coloured."""
    root = real_set("HRF")
    for folder, name in (
        ("images", "05_g.jpg"),
        ("manual_av", "05_g.png"),
        ("mask", "05_g_mask.tif"),
    ):
        (tmp_path / folder).mkdir()
        source = next((root / folder).glob(f"{Path(name).stem}.*"))
        shutil.copy(source, tmp_path / folder / source.name)
    store = open_store(str(tmp_path))
    loaded = load_example(store, open_labelled(store).training[0])
    drawn = np.asarray(Image.open(root / "manual1/05_g.tif"))
    np.testing.assert_array_equal(loaded.label == 1, drawn & loaded.fov)


def test_drives_colours_agree_with_its_first_observer(drive, tmp_path):
    """To the Dice of 0.987 over all, but for training/34, whose colours are few."""
    av = real_set("DRIVE_AV")
    for name, folder in (("DRIVE", drive), ("DRIVE_AV", av)):
        (tmp_path / name).symlink_to(folder, target_is_directory=True)
    hits = sizes = 0
    for file in sorted(av.glob("*/*_av.png")):
        vessel = read_drawing(file.read_bytes(), SCHEMES["DRIVE_AV"]).foreground
        number, split = file.name[:2], file.parent.name
        first = np.asarray(
            Image.open(drive / split / f"1st_manual/{number}_manual1.gif").convert("L")
        )
        if number == "34":
            continue
        hits += 2 * int((vessel & (first > 127)).sum())
        sizes += int(vessel.sum() + (first > 127).sum())
    assert hits / sizes > 0.98


def test_a_drawing_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    """Its file says 225 megapixels, which is all that may be looked at."""
    file = io.BytesIO()
    Image.new("1", (15_000, 15_000)).save(file, "PNG")
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(RejectedImage) as told:
        read_drawing(file.getvalue())
    assert told.value.fault is Fault.TOO_MANY_PIXELS
