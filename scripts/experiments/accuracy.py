#!/usr/bin/env python3
"""(a) How often rewards order images as the judge does: VP-Score beside a CLIP-type score, an aesthetic-only reward and a single aspect.

    cargo build --release && scripts/experiments/accuracy.py
"""

import lab

REWARDS = {
    "VP-Score, a head per aspect": ("vp-score", {}),
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
    rewards = {title: {seed: model(name, values, seed) for seed in lab.SEEDS} for title, (name, values) in REWARDS.items()}
    rewards["the VP-Score that ships, which saw more"] = {0: "embedded:shapes/vp-score"}
    columns = [(images, seed) for images in sets for seed in lab.SEEDS]
    cell = lambda models, images, seed: lab.accuracy(models[seed], sets[images]) if seed in models else ""
    rows = [[title, *(cell(models, *column) for column in columns)] for title, models in rewards.items()]
    lab.table("accuracy", ["reward", *(f"{images}, seed {seed}" for images, seed in columns)], rows)


if __name__ == "__main__":
    main()
