#!/usr/bin/env python3
"""(c) What each aspect is good for: rewards whose score leaves one out, and what the recipe that ships gains and loses with them.

    cargo build --release && scripts/experiments/aspects.py
"""

import lab


def main():
    rewards = {"all four": lab.reward("vp-score")}
    for aspect in lab.ASPECTS:
        rewards[f"without {aspect.replace('_', ' ')}"] = lab.reward(f"without-{aspect}", **{f"rankings.weights.{aspect}": 0.0})
    loras = [lab.tuned(f"whole-{path.parent.name}", **lab.with_reward(path))[0] for path in rewards.values()]
    found = lab.evaluated("aspects", loras)
    lab.table("aspects", ["ReFL with a score of", *lab.COLUMNS], lab.rows(rewards, found))


if __name__ == "__main__":
    main()
