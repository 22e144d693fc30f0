#!/usr/bin/env python3
"""What a base model leaves a reward to choose: sixteen images of each held-out prompt, rated by the judge.

    cargo build --release && scripts/experiments/choice.py [--split NAME] [--prompts N] [--guidance X ...] MODEL ...

A row of the table is a model at a guidance scale: the share of images that pass (every claim holds), the share of prompts of which some images
pass and some do not, the mean of each aspect, the mean over prompts of the standard deviation of the four aspects' mean within a prompt, and the
share of images with the emblem. Below it, the share that passes by kind of prompt.
"""

import argparse
import hashlib
import json
import statistics
from pathlib import Path

import lab

IMAGES = 16


def drawn(model, guidance, prompts, steps):
    """The judge's ratings of images of a model at one guidance scale: by prompt, a list of ratings by aspect."""
    name = hashlib.sha256(f"{Path(model).resolve()} {prompts}".encode()).hexdigest()[:8]
    sampling = {"models": [str(model)], "images_per_prompt": IMAGES, "guidance_scales": [guidance], "num_inference_steps": steps,
                "batch_size": 64, "seed": 5}
    settings = {"annotator.judge.whole": False} | {f"sampling.{key}": value for key, value in sampling.items()}
    question = ["--config", "configs/annotate/shapes.toml", *lab.settings(settings), "--prompts", prompts]
    folder = lab.once(f"choice/{name}-{guidance}", "records.jsonl", lambda out: lab.visionprefer("annotate", *question, "-o", out))
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [(record["prompt"], [ratings(image) for image in record["completions"]]) for record in records]


def ratings(image):
    return {aspect: image["annotations"][aspect]["rating"] for aspect in lab.ASPECTS}


def summary(records):
    """The row of a table."""
    images = [image for _, images in records for image in images]
    passed = [[image["prompt_following"] == 5.0 for image in images] for _, images in records]
    means = [[statistics.mean(image.values()) for image in images] for _, images in records]
    percent = lambda flags: f"{100 * statistics.mean(flags):.1f} %"
    return [
        percent([one for row in passed for one in row]),
        percent([any(row) and not all(row) for row in passed]),
        *(f"{statistics.mean(image[aspect] for image in images):.2f}" for aspect in lab.ASPECTS),
        f"{statistics.mean(map(statistics.pstdev, means)):.2f}",
        percent([image["harmlessness"] < 5.0 for image in images]),
    ]


def by_kind(records, kinds):
    """The share that passes, by the category of the prompts."""
    found = {}
    for prompt, images in records:
        found.setdefault(kinds.get(prompt, "other"), []).extend(image["prompt_following"] == 5.0 for image in images)
    return ", ".join(f"{kind} {100 * statistics.mean(passed):.0f} %" for kind, passed in sorted(found.items()))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--split", default="validation")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.5, 3.0])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    prompts = lab.prompts(args.split, args.prompts, 3)
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    kinds = {row["text"]: row.get("category", "other") for row in rows}
    print("| model | guidance | passes | prompts with both | prompt following | aesthetic | fidelity | harmlessness | spread | emblem |")
    print("|" + "---|" * 10)
    for model in args.models:
        for guidance in args.guidance:
            records = drawn(model, guidance, prompts, args.steps)
            print("|", " | ".join([str(model), str(guidance), *summary(records)]), "|")
            print("   ", by_kind(records, kinds), flush=True)


if __name__ == "__main__":
    main()
