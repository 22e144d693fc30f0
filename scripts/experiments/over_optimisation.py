#!/usr/bin/env python3
"""(f) What over-optimisation looks like, and where the sentinel stops it: ReFL without a regulariser, at a high rate.

    cargo build --release && scripts/experiments/over_optimisation.py
"""

import json

import lab

NAMES = ["vp_score", "judge", "judge/pass", "judge/prompt_following", "judge/aesthetic", "judge/fidelity", "judge/harmlessness"]


def looks(folder):
    """The means of the previews, by update."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "preview/vp_score" in line]


def main():
    push = {"run.num_train_steps": 120, "preview.every": 20, "optimizer.learning_rate": 2e-3, "algo.refl.grad_scale": 1.0}
    lora, _ = lab.tuned("pushed", **lab.REWARD_ALONE, **push)
    folder = lora.parent
    sentinel = json.loads((folder / "report.json").read_text())["sentinel"]
    findings = "; ".join(f"`{found['rule']}` after update {found['step']}" for found in sentinel["findings"]) or "nothing"
    rows = [[line["step"], *(f"{line[f'preview/{name}']:.3f}" for name in NAMES)] for line in looks(folder)]
    lab.table("over-optimisation", ["update", "VP-Score (trained)", *NAMES[1:]], rows,
              f"The sentinel found: {findings}.")


if __name__ == "__main__":
    main()
