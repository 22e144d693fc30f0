#!/usr/bin/env python3
"""(b) How accuracy grows with the preference set: the same number of updates on a sixteenth, a quarter and all of the prompts.

    cargo build --release && scripts/experiments/preference_set_size.py
"""

import lab


def part(path, share):
    """The first so many of a file's prompts, in a file beside it."""
    lines = path.read_text().splitlines()
    target = path.with_name(f"part-{share}.jsonl")
    target.write_text("\n".join(lines[: len(lines) // share]) + "\n")
    return target


def main():
    rows = []
    for share in [16, 4, 1]:
        records = [part(path, share) for path in lab.training()] if share > 1 else lab.training()
        prompts = sum(len(path.read_text().splitlines()) for path in records)
        models = [lab.reward(f"share-{share}" if share > 1 else "vp-score", records=records, seed=seed) for seed in lab.SEEDS]
        rows.append([prompts, *(lab.accuracy(model, lab.held_out()) for model in models)])
    lab.table("preference-set-size", ["prompts with their images", *(f"training seed {seed}" for seed in lab.SEEDS)], rows)


if __name__ == "__main__":
    main()
