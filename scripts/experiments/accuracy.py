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


def model(name, values):
    """One of the rewards of this table, which others fine-tune with."""
    if name == "clip":
        values = values | {"model.path": str(lab.clip())}
    return lab.reward(name, **values)


def main():
    rows = []
    for title, (name, values) in REWARDS.items():
        *share, pairs = lab.accuracy(model(name, values), lab.held_out())
        rows.append([title, lab.percent(*share)])
    *share, _ = lab.accuracy("embedded:shapes/vp-score", lab.held_out())
    rows.append(["the VP-Score that ships, which saw more", lab.percent(*share)])
    lab.table("accuracy", ["reward", f"ordered as the judge does, of {pairs} pairs (95 %)"], rows)


if __name__ == "__main__":
    main()
