#!/usr/bin/env python3
"""(c) What each aspect is good for: rewards that never heard of one, and what models fine-tuned with them gain and lose.

    cargo build --release && scripts/experiments/aspects.py
"""

import lab


def main():
    rewards = {"all four": lab.reward("vp-score")}
    for aspect in lab.ASPECTS:
        rewards[f"without {aspect.replace('_', ' ')}"] = lab.reward(f"without-{aspect}", **{f"rankings.weights.{aspect}": 0.0})
    loras = [lab.tuned(f"refl-{path.parent.name}", **lab.REFL, **{"reward.vp_score.weights": str(path)})[0] for path in rewards.values()]
    found = lab.evaluated("aspects", loras)
    lab.table("aspects", ["ReFL with a reward that learnt", *lab.COLUMNS], lab.rows(rewards, found))


if __name__ == "__main__":
    main()
