"""The shipped default beside a plain loop of the W-Net, in one run.

    python benchmarks/default_model.py [--images 400]

Needs DRIVE below SEGPIPE_DATA. Five minutes on 2 cores. Writes results/default-model.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from common import facts, last_json, many_images, run, write
from segmentation import truth
from usage import measure

from segpipe.models import checkpoint, engine
from segpipe.models.tta import num_scores

LOOP_IMAGES = 40


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=400)
    count = parser.parse_args().images
    loop = Path(__file__).with_name("wnet_loop.py")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        few = many_images(work / "few", LOOP_IMAGES)
        for tta, name in (("none", "no test-time augmentation"), ("flip4", "flip4")):
            loop_words = [loop, few, work / f"loop-{tta}", "--flips", num_scores(tta)]
            rows.append((f"plain W-Net, {name}", last_json(run(loop_words)[1])))
        images = many_images(work / "images", count)
        words = ["-m", "jobs.segment", "--input", str(images), "--output", str(work / "ours")]
        usage = measure(words, memory=True)
        summary = json.loads((work / "ours" / "summary.json").read_text())
    rate = summary["images_per_second"]
    model_ms = 1000 * summary["stages"]["model"] / count
    chosen = engine.select(engine.find_trials(checkpoint.read(None), "cpu"), "auto", "auto")
    agreement, dice = truth(checkpoint.DEFAULT, chosen.engine)
    lines = [
        *facts(f"python benchmarks/default_model.py --images {count}"),
        "| DRIVE-size images | images/s | segpipe is | model alone, ms an image |",
        "|---|---|---|---|",
        *(
            f"| {name}, torch fp32, 512x512 | {told['images_per_second']:.2f} | "
            f"{rate / told['images_per_second']:.1f} times as fast | {1000 * told['model_s']:.0f} |"
            for name, told in rows
        ),
        f"| **segpipe, {checkpoint.DEFAULT}, {summary['engine']['name']}**, {count} images | "
        f"{rate:.2f} | | {model_ms:.0f} on each core |",
        "",
        f"Highest memory of all processes together: {usage.peak_mib:.0f} MiB (PSS).",
        "",
        f"Pooled over DRIVE test: vessel Dice of {chosen.engine.name} against torch fp32 "
        f"{agreement:.5f}; Dice against the first observer {dice[1]:.4f}, of torch fp32 "
        f"{dice[0]:.4f}.",
    ]
    write("default-model.md", lines)


if __name__ == "__main__":
    main()
