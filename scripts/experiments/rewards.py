#!/usr/bin/env python3
"""(e) Fine-tuning with VP-Score against fine-tuning with the other rewards of accuracy.py, judged by the judge.

    cargo build --release && scripts/experiments/rewards.py
"""

import accuracy
import lab


def main():
    titles, loras = [], []
    for title, (name, values) in accuracy.REWARDS.items():
        path = accuracy.model(name, values)
        titles.append(title)
        rewarded = lab.with_clip if name == "clip" else lab.with_reward
        lora, _ = lab.tuned(f"refl-{name}", **lab.REFL, **rewarded(path))
        loras.append(lora)
    found = lab.evaluated("rewards", loras)
    lab.table("rewards", ["ReFL with", *lab.COLUMNS], lab.rows(titles, found))


if __name__ == "__main__":
    main()
