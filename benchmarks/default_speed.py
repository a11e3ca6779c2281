"""The default of today's build beside that of an older commit, over the same photographs.

    python benchmarks/default_speed.py [--before 16917e5] [--checkpoint FILE]
        [--tiffs 1000] [--jpegs 200] [--rounds 2]

Each build segments with its own default network, today's with --checkpoint where that is given, by
turns: before, after, before, after. The older one is unpacked into a temporary folder and runs with
this environment's packages. What is built or tried once (native library, engines) is done in a run
of WARM photographs that does not count, in a cache of its own for each build. Photographs are links
to DRIVE's test images and to HRF's JPEGs of 3,504x2,336 px below SEGPIPE_DATA; without these to
drawn ones of the same size. Seconds are of whole processes, rates are steady ones. A quarter of an
hour on 2 cores. Writes results/default_speed.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from common import ROOT, data_folder, facts, last_json, repeated, run, tree_at, write
from PIL import Image
from segmentation import Speed, by_segpipe

from segpipe.data.synthetic import draw_fundus
from segpipe.models.tta import tta_of

WARM, DRAWN = 8, 8  # photographs


class Kind(NamedTuple):
    name: str
    pattern: str
    """Of the photographs below SEGPIPE_DATA."""
    height: int
    width: int
    suffix: str
    """Of a drawn one's name."""


class Build(NamedTuple):
    name: str
    tree: Path
    flags: tuple[object, ...]
    env: dict[str, str]
    network: str
    """Its default network, for people."""

    def segment(self, images: Path, output: Path) -> tuple[Speed, str]:
        """Its speed, and its engine's name; leaves nothing behind."""
        try:
            speed, summary = by_segpipe(images, output, self.flags, self.env, self.tree)
        finally:
            shutil.rmtree(output, ignore_errors=True)
        return speed, str(summary["engine"]["name"])


TIFF = Kind("565x584 px TIFF", "DRIVE/test/images/*.tif", 584, 565, ".tif")
JPEG = Kind("3,504x2,336 px JPEG", "HRF/images/*", 2336, 3504, ".jpg")
CARD = """
import dataclasses, json, sys, segpipe
from segpipe.models import checkpoint
data = checkpoint.read(*sys.argv[1:] or [None])
card = dataclasses.asdict(checkpoint.load(data, "").card)
print(json.dumps({"package": segpipe.__file__, **card}))
"""


def build_at(name: str, tree: Path, weights: Path | None, cache: Path) -> Build:
    """Raises SystemExit where another package than the tree's is imported."""
    named = () if weights is None else (weights.resolve(),)
    env = {"PYTHONPATH": str(tree), "SEGPIPE_CACHE": str(cache)}
    if tree != ROOT and (tree / "setup.py").exists():  # earlier ones compile at first use
        run([tree / "segpipe" / "kernels" / "build.py"], env, tree)
    card = last_json(run(["-c", CARD, *named], env, tree)[1])
    if not Path(card["package"]).is_relative_to(tree):
        raise SystemExit(f"{tree}: another segpipe is imported, {card['package']}")
    network = f"{card['model']}, {card['diameter']:,.0f} px, {tta_of(card['flips'])}"
    flags = ("--checkpoint", *named) if named else ()
    return Build(name, tree, flags, env, network)


def originals(kind: Kind, folder: Path) -> tuple[list[Path], str]:
    """The set's photographs or drawn ones, and which they are."""
    if found := sorted(data_folder().glob(kind.pattern)):
        return found, kind.pattern.partition("/")[0]
    folder.mkdir()
    drawn = [folder / f"{number}{kind.suffix}" for number in range(DRAWN)]
    for number, path in enumerate(drawn):
        image, _, _ = draw_fundus(number, kind.height, kind.width)
        Image.fromarray(image).save(path)
    return drawn, "drawn"


def compared(images: Path, builds: list[Build], rounds: int, output: Path) -> list[str]:
    """A row for each build, by turns; beside the first one's how fast it is."""
    speeds: list[list[Speed]] = [[] for _ in builds]
    engines = [""] * len(builds)
    for _ in range(rounds):
        for at, one in enumerate(builds):
            speed, engines[at] = one.segment(images, output)
            speeds[at].append(speed)
            print(f"{images.name}, {one.name}: {speed}", file=sys.stderr, flush=True)
    first = middle(speeds[0])
    lines = []
    for one, engine, found in zip(builds, engines, speeds, strict=True):
        rate, process_s = middle(found)
        times = f"{rate / first.rate:.2f} times | {first.process_s / process_s:.2f} times"
        rates = ", ".join(f"{speed.rate:.2f}" for speed in found)
        seconds = ", ".join(f"{speed.process_s:.0f}" for speed in found)
        lines.append(
            f"| {one.name} | {one.network} | {engine} | {rates} | {seconds} | "
            f"{'| |' if one is builds[0] else f'{times} |'}"
        )
    return lines


def middle(speeds: list[Speed]) -> Speed:
    return Speed(*(statistics.median(values) for values in zip(*speeds, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--before", default="16917e5", help="commit to compare with")
    parser.add_argument("--checkpoint", type=Path, help="of today's build; its default without")
    parser.add_argument("--tiffs", type=int, default=1000)
    parser.add_argument("--jpegs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    flags = parser.parse_args()
    command = "python benchmarks/default_speed.py " + " ".join(sys.argv[1:])
    lines = [*facts(command.strip())[:-1], f"- load before: {os.getloadavg()[0]:.1f}", ""]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        before = tree_at(flags.before, work / "tree")
        builds = [
            build_at(f"before, {flags.before}", before, None, work / "cache-before"),
            build_at("after", ROOT, flags.checkpoint, work / "cache-after"),
        ]
        for kind, count in ((TIFF, flags.tiffs), (JPEG, flags.jpegs)):
            found, source = originals(kind, work / f"drawn{kind.suffix}")
            warm = repeated(work / f"warm{kind.suffix}", WARM, found)
            for one in builds:
                one.segment(warm, work / "output")
            images = repeated(work / f"images{kind.suffix}", count, found)
            lines += [
                f"{count} of {kind.name} ({source}, {len(found)} of them repeated), "
                f"{flags.rounds} runs of each build by turns:",
                "",
                "| build | default network, working diameter, `--tta` | engine "
                "| images/s, steady | whole process, s | its steady rate is "
                "| its whole process is as short |",
                "|---|---|---|---|---|---|---|",
                *compared(images, builds, flags.rounds, work / "output"),
                "",
            ]
    lines += ["Ratios are of medians. Command: `python -m jobs.segment --input ... --output ...`."]
    write("default_speed.md", lines)


if __name__ == "__main__":
    main()
