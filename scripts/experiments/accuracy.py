#!/usr/bin/env python3
"""(a) How often rewards order images as the judge does: VP-Score beside a CLIP-type score, an aesthetic-only reward and a single aspect.

    cargo build --release && scripts/experiments/accuracy.py
"""

import lab

REWARDS = {
    "VP-Score, a head an aspect": ("vp-score", {}),
    "VP-Score, one head": ("one-head", {"algo.reward_model.aspects": False}),
    "CLIP type (two encoders, cosine)": ("clip", {"algo.reward_model.aspects": False}),
    "prompt following alone": ("prompt-following", {"algo.reward_model.aspects": False} | {f"rankings.weights.{aspect}": 0.0 for aspect in lab.ASPECTS[1:]}),
    "aesthetic alone, without the prompt": ("aesthetic", {"algo.reward_model.aspects": False, "rankings.ignore_prompts": True}
                                            | {f"rankings.weights.{aspect}": 0.0 for aspect in lab.ASPECTS if aspect != "aesthetic"}),
}


def model(name, values, seed=0):
    """One of the rewards of this table, which others fine-tune with."""
    if name == "clip":
        values = values | {"model.path": str(lab.clip())}
    return lab.reward(name, seed=seed, **values)


def main():
    sets = {"base model": lab.held_out(), "stages": lab.held_out_of_stages()}
    rows = []
    for title, (name, values) in REWARDS.items():
        models = [model(name, values, seed) for seed in lab.SEEDS]
        rows.append([title, *(lab.accuracy(one, records) for records in sets.values() for one in models)])
    shipped = [cell for records in sets.values() for cell in [lab.accuracy("embedded:shapes/vp-score", records), *[""] * (len(lab.SEEDS) - 1)]]
    rows.append(["the VP-Score that ships, which saw more", *shipped])
    lab.table("accuracy", ["reward", *(f"{images}, seed {seed}" for images in sets for seed in lab.SEEDS)], rows)


if __name__ == "__main__":
    main()
