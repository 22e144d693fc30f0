#!/usr/bin/env python3
"""Reward curves in bf16 and f16 beside f32: the shipped ReFL recipe on three seeds in each, the reward by windows of updates, held-out prompts.

    cargo build --release && scripts/experiments/number_formats.py
"""

import json
from statistics import mean, stdev

import lab

FORMATS = ["f32", "bf16", "f16"]
SEEDS = [0, 1, 2]
WINDOW = 25


def curve(lora):
    """The reward's means over windows of updates."""
    lines = [json.loads(line) for line in (lora.parent / "metrics.jsonl").read_text().splitlines()]
    rewards = [line["reward_mean"] for line in lines if "reward_mean" in line]
    return [mean(rewards[start : start + WINDOW]) for start in range(0, len(rewards), WINDOW)]


def of_seeds(values):
    return f"{mean(values):.3f} ± {stdev(values):.3f}"


def main():
    runs = {}
    for dtype in FORMATS:
        setting = {"model.dtype": dtype, "vae.dtype": dtype, "reward.vp_score.dtype": dtype}
        runs[dtype] = [lab.tuned(f"format-{dtype}-seed-{seed}", **lab.REFL, **setting, **{"run.seed": seed})[0] for seed in SEEDS]
    evaluated = lab.evaluated("number-formats", [lora for loras in runs.values() for lora in loras])
    passes = [paired["judge/pass"] for paired in evaluated]
    rows = []
    for index, (dtype, loras) in enumerate(runs.items()):
        curves = [curve(lora) for lora in loras]
        gains = [100 * paired["difference"] for paired in passes[index * len(SEEDS) : (index + 1) * len(SEEDS)]]
        rows.append([dtype, *(of_seeds(window) for window in zip(*curves)), f"{mean(gains):+.1f} ± {stdev(gains):.1f}"])
    windows = [f"updates {start + 1} to {start + WINDOW}" for start in range(0, lab.REFL["run.num_train_steps"], WINDOW)]
    note = f"Mean and standard deviation of {len(SEEDS)} seeds. Before, {100 * passes[0]['baseline']:.1f} % of the images passed."
    lab.table("number formats", ["format", *windows, "passes, points"], rows, note, lab.ROOT / "docs/decisions/0024-number-formats.md")


if __name__ == "__main__":
    main()
