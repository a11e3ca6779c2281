"""The quickest engine that keeps the masks is chosen, kept for an output, and told.

Run: pytest tests/test_engine.py
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from needs import why_skip
from PIL import Image
from processes import finish
from segmenting import job_of
from verbs import ONE, rows_of, run

from segpipe import kernels, metrics
from segpipe.data import codecs
from segpipe.data.canvas import canvas_side, fit_fov, fit_image, native_mask, plan_fit
from segpipe.data.classes import CLASSES, VESSEL
from segpipe.data.datasets import load_example
from segpipe.data.layouts import open_labelled
from segpipe.errors import UserError
from segpipe.kernels import native
from segpipe.models import bf16, checkpoint, engine, forms, networks
from segpipe.models.checkpoint import Card
from segpipe.models.engine import REFERENCE, Engine, Trial
from segpipe.models.tta import averaged
from segpipe.segment import stages
from segpipe.segment.job import SegmentJob
from segpipe.segment.manifest import list_inputs
from segpipe.segment.parts import read_parts
from segpipe.storage import open_store
from segpipe.storage.files import read_parquet

EAGER = Trial("torch", "fp32", 50.0, 1.0, "")
HALF = Trial("torch", "bf16", 20.0, 0.996, "")
COMPILED = Trial("native", "fp32", 7.0, 0.9999, "")
NO_LIBRARY = Trial("native", "fp32", None, None, "no native library")
FAST = Engine("native", "fp32")
ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = checkpoint.read("segnet-lite")
QUICK = [*ONE, "--checkpoint", "segnet-lite", "--tta", "none", "--report-images", "off"]


def untrue(trial: Trial, dice: float | None = 0.9949) -> Trial:
    return Trial(trial.backend, trial.precision, trial.ms, dice, "")


@pytest.mark.parametrize(
    ("trials", "flags", "wanted"),
    [
        ([EAGER, HALF, COMPILED], ("auto", "auto"), "native fp32"),
        ([EAGER, HALF, NO_LIBRARY], ("auto", "auto"), "torch bf16"),
        ([EAGER, untrue(HALF), NO_LIBRARY], ("auto", "auto"), "torch fp32"),
        ([EAGER, untrue(HALF, None), NO_LIBRARY], ("auto", "auto"), "torch fp32"),
        ([EAGER, untrue(HALF), untrue(COMPILED)], ("auto", "auto"), "torch fp32"),
        ([EAGER, HALF, COMPILED], ("torch", "auto"), "torch bf16"),
        ([EAGER, HALF, COMPILED], ("torch", "fp32"), "torch fp32"),
        ([EAGER, untrue(HALF), COMPILED], ("auto", "bf16"), "torch bf16"),  # asked for by name
        ([EAGER, HALF, untrue(COMPILED)], ("native", "auto"), "native fp32"),
    ],
)
def test_the_quickest_true_engine_that_the_flags_allow(trials, flags, wanted):
    assert engine.select(trials, *flags).engine.name == wanted


def test_what_does_not_run_here_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"--backend native.*no native library"):
        engine.select([EAGER, HALF, NO_LIBRARY], "native", "auto")


BEGUN_EAGER, BEGUN_HALF, BEGUN_TILES = REFERENCE, Engine("torch", "bf16"), Engine("native", "bf16")


@pytest.mark.parametrize(
    ("trials", "begun", "matched", "flags", "wanted"),
    [
        ([EAGER, HALF, COMPILED], FAST, True, ("auto", "auto"), "native fp32"),
        ([EAGER, HALF, COMPILED], FAST, True, ("native", "fp32"), "native fp32"),
        ([EAGER, HALF, COMPILED], BEGUN_EAGER, True, ("auto", "auto"), "torch fp32"),
        ([EAGER, HALF, COMPILED], BEGUN_EAGER, True, ("native", "auto"), "native fp32"),
        ([EAGER, HALF, COMPILED], FAST, True, ("torch", "auto"), "torch fp32"),
        ([EAGER, HALF, NO_LIBRARY], FAST, True, ("auto", "auto"), "torch fp32"),
        ([EAGER, HALF, NO_LIBRARY], FAST, True, ("native", "auto"), "torch fp32"),
        ([EAGER, HALF, NO_LIBRARY], FAST, True, ("torch", "bf16"), "torch bf16"),
        ([EAGER, untrue(HALF)], FAST, True, ("auto", "auto"), "torch fp32"),  # not even tried here
        ([EAGER, untrue(HALF), COMPILED], BEGUN_HALF, False, ("auto", "auto"), "torch bf16"),
        ([EAGER, HALF, COMPILED], BEGUN_TILES, True, ("auto", "auto"), "native fp32"),
        ([EAGER, HALF, untrue(COMPILED)], BEGUN_TILES, True, ("auto", "auto"), "torch fp32"),
        ([EAGER, HALF, NO_LIBRARY], BEGUN_TILES, True, ("auto", "auto"), "torch fp32"),
    ],
)
def test_an_output_resumes_with_its_engine_or_one_that_matches(
    trials, begun, matched, flags, wanted
):
    assert engine.resume(trials, begun, matched, *flags).engine.name == wanted


@pytest.mark.parametrize(
    ("trials", "begun", "matched", "flags", "told"),
    [
        ([EAGER, untrue(HALF), COMPILED], FAST, True, ("torch", "bf16"), "of torch bf16 are not"),
        ([EAGER, untrue(HALF)], BEGUN_HALF, True, ("torch", "fp32"), "are not those"),  # by 0.1
        ([EAGER, untrue(HALF), COMPILED], BEGUN_HALF, False, ("auto", "fp32"), "are not those of"),
        (
            [EAGER, NO_LIBRARY],
            BEGUN_EAGER,
            True,
            ("native", "auto"),
            r"--backend native.*no native library",
        ),
        ([EAGER, NO_LIBRARY], FAST, False, ("auto", "auto"), r"no native library.*are not those"),
    ],
)
def test_an_output_does_not_resume_with_other_masks(trials, begun, matched, flags, told):
    with pytest.raises(UserError, match=told):
        engine.resume(trials, begun, matched, *flags)


def test_dice_of_two_lists_of_masks_is_pooled():
    """2 * 3 / (4 + 4): three pixels of four in common, spread over two masks."""
    found = [np.array([True, True, False]), np.array([True, True, False])]
    wanted = [np.array([True, True, False]), np.array([True, False, True])]
    assert engine.vessel_dice(found, wanted) == 0.75
    assert engine.vessel_dice([np.zeros(3, bool)], [np.zeros(3, bool)]) is None


X86 = "processor\t: 0\nflags\t\t: fpu avx2 avx512f {}\n\nprocessor\t: 1\nflags\t\t: amx_bf16\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd i8mm {}\nCPU part\t: 0xd40\n"
NO_BF16 = "this CPU has no bf16 arithmetic"


def fake_cpu(monkeypatch, *sets: str) -> None:
    """With these instruction sets, as far as bf16 goes: the native library stays what it is."""
    monkeypatch.setattr(bf16, "instruction_sets", lambda: frozenset(sets))


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        (X86.format("avx512_bf16 avx512_vnni"), ""),
        (X86.format("avx512_vnni amx_tile amx_bf16"), ""),
        (X86.format("avx512_vnni avx512_fp16"), NO_BF16),  # another CPU's flags do not count
        (ARM.format("bf16"), ""),
        (ARM.format("svei8mm"), NO_BF16),
        ("model name\t: bf16\n", ""),  # nothing is told: only a trial can say
    ],
)
def test_a_cpu_has_bf16_where_the_kernel_tells_so(told, problem, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(native, "CPUINFO", tmp_path / "cpuinfo")
    assert bf16.bf16_problem("bf16", "cpu") == problem
    assert bf16.bf16_problem("fp32", "cpu") == bf16.bf16_problem("bf16", "cuda") == ""


def test_no_trial_is_spent_on_bf16_where_the_cpu_has_none(cache, tmp_path, monkeypatch):
    fake_cpu(monkeypatch, "avx2")
    made, usual = [], engine._torch
    monkeypatch.setattr(
        engine, "_torch", lambda *of, **how: made.append(of[1]) or usual(*of, **how)
    )
    trials = engine.find_trials(WEIGHTS, "cpu")
    assert made == ["fp32", "fp32"]  # the plain network, and what is folded
    assert engine.trial_of(trials, Engine("torch", "bf16")).problem == NO_BF16
    assert engine.select(trials, "auto", "auto").engine.precision == "fp32"
    with pytest.raises(UserError, match=f"--precision bf16: {NO_BF16}; use auto"):
        engine.select(trials, "auto", "bf16")
    _, taken = engine.open_or_stand_in(WEIGHTS, Engine("torch", "bf16"), 1, "none")
    assert taken == REFERENCE  # of a worker whose CPU is not the driver's


@pytest.mark.skipif(bool(why_skip()), reason=why_skip())
def test_a_worker_without_amx_takes_the_native_backend_in_fp32(cache, monkeypatch):
    form = forms.NATIVE_FORMS["resunet"]
    without = form._replace(bf16_problem=lambda: "this CPU has no AMX")
    monkeypatch.setitem(forms.NATIVE_FORMS, "resunet", without)
    _, taken = engine.open_or_stand_in(drawn_weights("resunet", 8), BEGUN_TILES, 1, "none")
    assert taken == FAST


@pytest.mark.parametrize("verb", ["segment", "train", "evaluate"])
def test_bf16_is_refused_in_one_line_before_anything_is_written(
    verb, tmp_path, monkeypatch, capsys, no_ray
):
    fake_cpu(monkeypatch, "avx2")
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    flags = [verb, "--input" if verb == "segment" else "--data", source, "--output", output]
    assert run(*flags, "--precision", "bf16") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"--precision bf16: {NO_BF16}" in line
    assert "use --precision fp32" in line
    assert not output.exists()
    assert run(*flags, "--precision", "bf16", "--device", "cpu") == 2
    assert "use --precision fp32" in capsys.readouterr().err


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own."""
    monkeypatch.setenv("SEGPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_trials_are_kept_and_a_damaged_record_is_made_anew(cache):
    first = engine.find_trials(WEIGHTS, "cpu")
    [record] = cache.glob("engines-*")
    assert {trial.engine.name for trial in first if trial.matches} >= {"torch fp32"}
    assert first[0].vessel_dice == 1.0
    told = json.loads(record.read_text())
    told[0]["ms"] = 123456.0
    record.write_text(json.dumps(told))
    assert engine.find_trials(WEIGHTS, "cpu")[0].ms == 123456.0
    record.write_text('[{"backend": "torch"')
    again = engine.find_trials(WEIGHTS, "cpu")
    assert [trial.vessel_dice for trial in again] == [trial.vessel_dice for trial in first]


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        # the native form's best is 3 ms: one more than twice as slow is not run again
        (([5, 3, 4], [5.9, 5.8, 5.7], [6.1]), (3, 5.7, 6.1)),
        # rounding ruins bf16's masks: the quickest of all, it is no measure for others
        (([9, 8, 8], [1, 1, 1], [15, 7, 8]), (8, 1, 7)),
        # no more runs after 0.3 s
        (([310], [290, 20], [305]), (310, 20, 305)),
    ],
)
def test_a_trial_runs_what_is_quick_thrice_and_what_is_slow_once(
    seconds, wanted, tmp_path, monkeypatch
):
    """Of native fp32, torch bf16 and torch fp32, in ms, by a clock that only runs move on."""
    fake_cpu(monkeypatch, "avx512_bf16")
    now, left = [0.0], [[*ms] for ms in seconds]

    def running(at: int, score: float = 0.9) -> Any:
        def run_once(*_):
            now[0] += left[at].pop(0) / 1000
            return np.full((8, 8), score)

        return run_once

    def by_torch(_, precision, *others, plain=False):
        if plain:
            return lambda *_: np.full((8, 8), 0.9)
        ruined = seconds[1][0] == 1
        return running(2) if precision == "fp32" else running(1, 0.1 if ruined else 0.9)

    canvas = np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 255, np.uint8)
    monkeypatch.setattr(engine, "time", SimpleNamespace(thread_time=lambda: now[0]))
    monkeypatch.setattr(engine, "_drawn_canvas", lambda *_: canvas)
    monkeypatch.setattr(engine, "open_native", lambda *_: running(0))
    monkeypatch.setattr(engine, "_torch", by_torch)
    monkeypatch.setattr(kernels, "missing", lambda: "")
    trials = engine._try_all(checkpoint.load(WEIGHTS, "x"), "cpu")
    assert [trial.engine for trial in trials] == list(engine.ENGINES)
    found = [engine.trial_of(trials, one).ms for one in (FAST, HALF.engine, REFERENCE)]
    assert found == pytest.approx(list(wanted))
    assert left == [[], [], []]


def test_an_engine_that_fails_in_its_trial_is_one_that_does_not_run_here(
    cache, tmp_path, monkeypatch
):
    fake_cpu(monkeypatch, "avx512_bf16")
    usual = engine._torch

    def without_bf16(loaded, precision, *others, **named):
        return fails if precision == "bf16" else usual(loaded, precision, *others, **named)

    def fails(*_):
        raise RuntimeError("no bf16 here\nand where")

    monkeypatch.setattr(engine, "_torch", without_bf16)
    trials = engine.find_trials(WEIGHTS, "cpu")
    assert Trial("torch", "bf16", None, None, "no bf16 here") in trials
    assert not engine.select(trials, "auto", "auto").problem


def test_what_was_found_without_a_library_does_not_hold_with_one(cache, monkeypatch):
    tried = []
    monkeypatch.setattr(engine, "_try_all", lambda *_: tried.append(1) or [EAGER])
    for missing, times in (("no native library", 1), ("", 2), ("no native library", 2)):
        monkeypatch.setattr(kernels, "missing", lambda missing=missing: missing)
        assert engine.find_trials(WEIGHTS, "cpu") == [EAGER]
        assert len(tried) == times


def test_weights_of_another_network_are_refused(cache):
    loaded = checkpoint.load(WEIGHTS, "there/model")
    engine.check_fits(loaded)
    loaded.state["encoder.weight"] = loaded.state["encoder.weight"][:8]
    with pytest.raises(UserError, match=r"there/model.*does not fit together"):
        engine.check_fits(loaded)


SOME = {"fineunet": 5, "resunet": 7}  # every so many photographs of DRIVE; by night all of them


@pytest.mark.skipif(bool(why_skip()), reason=why_skip())
@pytest.mark.parametrize(
    ("model", "every"),
    [(model, SOME.get(model, 1)) for model in checkpoint.shipped()]
    + [pytest.param(model, 1, marks=pytest.mark.nightly) for model in SOME],
)
def test_the_native_form_keeps_the_masks_of_drive_and_their_truth(model, every, drive):
    """Vessel Dice at least 0.995 against torch fp32, Dice against the observer as it is told.

    Of some photographs it is near what is told of all twenty.
    """
    weights = checkpoint.read(model)
    card = checkpoint.load(weights, model).card
    scores = {name: engine.open_score(weights, name, 2, card.tta) for name in (REFERENCE, FAST)}
    masks: dict[Engine, list[np.ndarray]] = {name: [] for name in scores}
    truth, store = [], open_store(str(drive))
    for example in open_labelled(store).test[::every]:
        labelled = load_example(store, example)
        geometry = plan_fit(labelled.fov, card.diameter)
        side = canvas_side(card.diameter)
        canvas = fit_image(labelled.image, geometry, side)
        fov = fit_fov(labelled.fov, geometry, side)
        truth.append((labelled.label == VESSEL)[labelled.fov])
        found = {name: score(canvas, fov) for name, score in scores.items()}
        assert (found[FAST] != found[REFERENCE]).any()  # else it would be one engine twice
        for name, score in found.items():
            mask = native_mask(score, fov, geometry, card.threshold)
            masks[name].append((mask == VESSEL)[labelled.fov])
    against_eager = engine.vessel_dice(masks[FAST], masks[REFERENCE])
    against_truth = [
        metrics.confusion_of(np.concatenate(masks[name]), np.concatenate(truth)).dice
        for name in scores
    ]
    assert against_eager is not None
    assert against_eager > 0.9999
    assert abs(against_truth[0] - against_truth[1]) < 1e-4
    told = checkpoint.about(model)["accuracy"]["DRIVE test"]["dice"]
    assert against_truth[0] == pytest.approx(told, abs=2e-4 if every == 1 else 0.015)


def test_flips_average_the_scores_of_four_mirror_images():
    """Each turned back: of a score that is the pixel times its place, one pixel after another."""
    rng = np.random.default_rng(0)
    canvas, fov = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), np.ones((6, 6), np.uint8)
    places = np.arange(36, dtype=np.float32).reshape(6, 6)
    found = averaged(lambda seen, _: seen[..., 1] * places, "flip4")(canvas, fov)
    for y, x in np.ndindex(6, 6):
        around = [places[a, b] for a in (y, 5 - y) for b in (x, 5 - x)]
        assert found[y, x] == pytest.approx(canvas[y, x, 1] * np.mean(around))


@pytest.mark.parametrize("tta", ["none", "flip4"])
def test_stages_apart_write_what_one_process_writes(photograph, tmp_path, tta):
    """The way over a GPU: load, score and store as three functions, against Segmenter."""
    for name in ("a", "b"):
        photograph.save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    rows = {}
    for name in ("apart", "together"):
        source, output = open_store(str(tmp_path)), open_store(str(tmp_path / name))
        manifest = list_inputs([e for e in source.list() if "/" not in e.key])
        manifest.write(output)
        batch = {"page": np.asarray([manifest.key(0)]), "rows": np.asarray([[0, 1, 2]])}
        job = job_of(source, output, format="both", measure="full", tta=tta)
        if name == "apart":
            loaded = stages.load(batch, job)
            assert (loaded["seconds"][:2, :3].sum(axis=1) > 0).all()
            done = stages.store(
                stages.Scoring(job, WEIGHTS, None, "fp32", None, "cpu", 1)(loaded), job
            )
        else:
            done = stages.Segmenter(job, WEIGHTS, None, REFERENCE, "cpu", 1)(batch)
        assert (done["ok"], done["rejected"], done["open"]) == (2, 1, 0)
        assert done["seconds"].shape == (1, len(stages.STAGES))
        [key] = read_parts(output).keys
        rows[name] = read_parquet(output, key).drop(["finished"]).to_pylist()
        assert [row["status"] for row in rows[name]] == ["ok", "ok", "rejected"]
    np.testing.assert_equal(rows["apart"], rows["together"])  # NaN is NaN


def engine_of(output: Path) -> str:
    return json.loads((output / "summary.json").read_text())["engine"]["name"]


@pytest.mark.cluster
def test_an_output_keeps_its_engine_and_a_flag_may_name_one_that_matches(
    photograph, tmp_path, ray_cluster, cache, monkeypatch, capsys
):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    photograph.save(folder / "a.png")
    words = ["segment", *QUICK, "--input", folder, "--output", output]
    monkeypatch.setattr(engine, "_try_all", lambda *_: [EAGER, untrue(HALF), COMPILED])
    assert run(*words, "--backend", "torch", "--precision", "fp32") == 0
    before = (output / "masks" / "a.png.png").read_bytes()
    photograph.transpose(Image.Transpose.ROTATE_180).save(folder / "b.png")
    assert run(*words) == 0  # what is left open stays as it was
    assert engine_of(output) == "torch fp32"
    photograph.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(folder / "c.png")
    kept = [(output / name).read_bytes() for name in ("summary.json", "_segpipe/settings.json")]
    assert run(*words, "--precision", "bf16") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "masks of torch bf16 are not those of torch fp32" in told
    assert "--backend torch --precision fp32" in told
    assert kept == [
        (output / name).read_bytes() for name in ("summary.json", "_segpipe/settings.json")
    ]
    if not why_skip():
        assert run(*words, "--backend", "native") == 0
        made = {row["path"]: row["engine"] for row in rows_of(output)}
        assert made == {"a.png": "torch fp32", "b.png": "torch fp32", "c.png": "native fp32"}
        assert "2 masks by the reference engine" in capsys.readouterr().out.splitlines()[-1]
    assert (output / "masks" / "a.png.png").read_bytes() == before
    assert len({row["settings"] for row in rows_of(output)}) == 1


def test_an_engine_that_is_gone_is_replaced_by_the_reference_in_one_line(
    photograph, tmp_path, ray_cluster, cache, monkeypatch, capsys
):
    if problem := why_skip():
        pytest.skip(problem)
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    photograph.save(folder / "a.png")
    words = ["segment", *QUICK, "--input", folder, "--output", output]
    monkeypatch.setattr(engine, "_try_all", lambda *_: [EAGER, HALF, COMPILED])
    assert run(*words) == 0
    assert engine_of(output) == "native fp32"
    settings = json.loads((output / "_segpipe/settings.json").read_text())
    photograph.transpose(Image.Transpose.ROTATE_180).save(folder / "b.png")
    monkeypatch.setattr(kernels, "missing", lambda: "no native library")
    monkeypatch.setattr(engine, "_try_all", lambda *_: [EAGER, HALF, NO_LIBRARY])
    capsys.readouterr()
    assert run(*words) == 0
    told = capsys.readouterr()
    [line] = [line for line in told.err.splitlines() if "does not run here" in line]
    assert "no native library" in line
    assert "torch fp32" in line
    assert "1 masks by the reference engine" in told.out.splitlines()[-1]
    made = {row["path"]: row["engine"] for row in rows_of(output)}
    assert made == {"a.png": "native fp32", "b.png": "torch fp32"}
    assert json.loads((output / "_segpipe/settings.json").read_text()) == settings
    assert len({row["settings"] for row in rows_of(output)}) == 1
    summary = json.loads((output / "summary.json").read_text())
    assert summary["masks_by_engine"] == {"native fp32": 1, "torch fp32": 1}


def one_photograph(root: Path, **flags: Any) -> tuple[SegmentJob, dict[str, Any]]:
    """The job of a folder that holds a.png, and its one group."""
    source, output = open_store(str(root)), open_store(str(root / "out"))
    manifest = list_inputs([e for e in source.list() if "/" not in e.key])
    manifest.write(output)
    group = {"page": np.asarray([manifest.key(0)]), "rows": np.asarray([[0]])}
    return job_of(source, output, **flags), group


@pytest.mark.parametrize("chosen", [FAST, Engine("torch", "bf16")])
def test_a_worker_that_cannot_run_the_engine_uses_the_reference_and_says_so(
    photograph, tmp_path, monkeypatch, chosen
):
    usual = engine._torch

    def without_bf16(loaded, precision, *others, **named):
        return fails if precision == "bf16" else usual(loaded, precision, *others, **named)

    def fails(*_):
        raise RuntimeError("no bf16 here")

    monkeypatch.setattr(engine, "_torch", without_bf16)
    monkeypatch.setattr(kernels, "missing", lambda: "no native library")
    masks = []
    for name, asked in (("told", chosen), ("reference", REFERENCE)):
        (tmp_path / name).mkdir()
        photograph.save(tmp_path / name / "a.png")
        job, group = one_photograph(tmp_path / name)
        stages.Segmenter(job, WEIGHTS, None, asked, "cpu", 1)(group)
        [key] = read_parts(job.output).keys
        [row] = read_parquet(job.output, key).to_pylist()
        assert (row["status"], row["engine"]) == ("ok", "torch fp32")
        masks.append(job.output.get(row["mask_path"]))
    assert masks[0] == masks[1]


def test_an_engine_that_does_not_match_has_no_substitute(photograph, tmp_path, monkeypatch):
    photograph.save(tmp_path / "a.png")
    monkeypatch.setattr(kernels, "missing", lambda: "no native library")
    job, _ = one_photograph(tmp_path, stand_in_allowed=False)
    with pytest.raises(UserError, match=r"--backend native --precision fp32.*no native library"):
        stages.Segmenter(job, WEIGHTS, None, FAST, "cpu", 1)


@pytest.mark.cluster
def test_without_a_library_the_plain_way_does_the_same_and_says_so(photograph, tmp_path):
    """As in a job's checkout whose C++ is not that of the node's package."""
    folder, checkout = tmp_path / "in", tmp_path / "checkout"
    folder.mkdir()
    for name in ("segpipe", "jobs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("lib"))
    (checkout / "segpipe" / "kernels" / "changed.h").write_text("// another source")
    photograph.save(folder / "a.png")
    masks, engines = [], []
    for library, flags, root in (
        ("with", ["--backend", "native"], ROOT),
        ("without", [], checkout),
    ):
        output = tmp_path / library
        env = {"SEGPIPE_CACHE": str(tmp_path / f"cache-{library}"), "PYTHONPATH": str(root)}
        words = ["--input", folder, "--output", output, "--precision", "fp32", *flags]
        ended = finish("-P", "-m", "jobs.segment", *words, env=env)
        assert ended.returncode == 0, ended.stderr
        summary = json.loads((output / "summary.json").read_text())
        engines.append(summary["engine"])
        masks.append(codecs.decode_image((output / "masks" / "a.png.png").read_bytes()) == 255)
    assert [found["name"] for found in engines] == ["native fp32", "torch fp32"]
    told = {one["name"]: one["problem"] for one in engines[1]["considered"]}
    assert "no native library of these sources" in told["native fp32"]
    dice = engine.vessel_dice([masks[0]], [masks[1]])
    assert dice is not None
    assert dice > 0.999


def drawn_weights(model: str, width: int | None, threshold: float = 0.3) -> bytes:
    torch.manual_seed(0)
    network = networks.build_model(model, classes=3, width=width)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return checkpoint.dump(state, Card(model, 60.0, threshold, "drawn", CLASSES, "0", width))


@pytest.mark.parametrize(
    ("model", "width", "problem"),
    [
        ("segnet-lite", 24, "no native form of segnet-lite with 24 channels"),
        ("segnet-lite", 528, "no native form of segnet-lite with 528 channels"),
        ("resunet", 12, "no native form of resunet with 12 channels"),
        ("wnet", None, "no native form of wnet in fp32"),
    ],
)
def test_a_network_without_a_native_form_runs_by_torch(
    model, width, problem, cache, tmp_path, monkeypatch
):
    fake_cpu(monkeypatch, "avx512_bf16")
    trials = engine.find_trials(drawn_weights(model, width), "cpu")
    assert problem in {trial.problem for trial in trials if trial.backend == "native"}
    assert all(not trial.problem for trial in trials if trial.backend == "torch")


@pytest.mark.skipif(bool(why_skip()), reason=why_skip())
@pytest.mark.parametrize(
    ("model", "width"), [("segnet-lite", 80), ("resunet", None), ("resunet", 16)]
)
def test_other_networks_and_widths_have_a_native_form_too(model, width, cache):
    canvas = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    fov = np.full((96, 96), 255, np.uint8)
    scores = engine.open_score(drawn_weights(model, width), REFERENCE, 1, "none")(canvas, fov)
    weights = drawn_weights(model, width, float(np.median(scores)))  # both classes are found
    trials = engine.find_trials(weights, "cpu")
    assert engine.select(trials, "native", "fp32").matches
    np.testing.assert_allclose(
        engine.open_score(weights, FAST, 1, "none")(canvas, fov), scores, rtol=0, atol=1e-5
    )


def test_a_resunet_that_does_not_fit_its_card_is_refused(cache):
    loaded = checkpoint.load(drawn_weights("resunet", 8), "there/model")
    loaded.state["last.weight"] = loaded.state["last.weight"][:, :4]
    data = checkpoint.dump(loaded.state, loaded.card)
    for chosen in (REFERENCE, FAST):
        if chosen == REFERENCE or not kernels.missing():
            with pytest.raises(UserError, match="does not fit together"):
                engine.open_score(data, chosen, 1, 1)
