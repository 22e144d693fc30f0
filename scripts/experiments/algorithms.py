#!/usr/bin/env python3
"""(d) ReFL, DDPO, DPO and best-of-n with the VP-Score that ships, 1,600 to 1,792 images or pairs each, and the time that took.

    cargo build --release && scripts/experiments/algorithms.py
"""

import json
import shutil

import lab

REWARD = "embedded:shapes/vp-score"
PROMPTS = 200


def best_of(n):
    """The base model's images of the evaluation's prompts, of n each the one that the reward likes best, against the first of each."""
    def make(out):
        prompts = [json.loads(line)["text"] for line in lab.prompts("test", PROMPTS, 34).read_text().splitlines()]
        shutil.rmtree(out, ignore_errors=True)
        kept = {"first": [], "best": []}
        for folder in kept:
            (out / folder).mkdir(parents=True)
        for index, prompt in enumerate(prompts):
            drawn = out / "drawn" / f"{index:04}"
            lab.visionprefer("sample", "-p", prompt, "--num-images", n, "--batch-size", n, "--steps", 20, "-s", 1000 * index, "-o", drawn)
            images = sorted(drawn.glob("*.png"))
            lines = lab.visionprefer("score", "-r", REWARD, "-p", prompt, "--json", *images).splitlines()
            scores = [json.loads(line)["score"] for line in lines]
            for folder, image in [("first", images[0]), ("best", images[scores.index(max(scores))])]:
                shutil.copy(image, out / folder / f"{index:04}.png")
                kept[folder].append(json.dumps({"file_name": f"{index:04}.png", "text": prompt}))
        for folder, lines in kept.items():
            (out / folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        images = ["--base-images", out / "first", "--tuned-images", out / "best"]
        lab.visionprefer("evaluate", *images, "-r", "judge", "-o", out / "evaluation")

    return lab.contrasts(lab.once(f"best-of-{n}", "evaluation/report.json", make) / "evaluation")[0]


def main():
    pairs = lab.once("pairs", "pairs.jsonl", lambda out: lab.visionprefer(
        "dataset", "convert", lab.drawn("feedback", 500, 32), "--to", "pairs", "--margin", 0.3, "-o", out)) / "pairs.jsonl"
    dpo = {"model.path": "embedded:shapes", "preferences.file": str(pairs), "preferences.horizontal_flip": False, "run.num_train_steps": 100,
           "algo.dpo.batch_size": 16, "algo.dpo.beta": 500.0, "lora.rank": 8, "lora.alpha": 8.0, "optimizer.learning_rate": 5e-4,
           "preferences.validation_every": 0}
    runs = {
        "ReFL": lab.tuned("algorithms-refl", **lab.REFL),
        "ReFL, the reward alone": lab.tuned("algorithms-reward", **lab.REFL, **lab.REWARD_ALONE),
        "ReFL, the captioned images alone": lab.tuned("algorithms-images", **lab.REFL, **{"algo.refl.grad_scale": 0.0, "regularizer": lab.CAPTIONED}),
        "DDPO": lab.tuned("algorithms-ddpo", "ddpo", **{"run.num_train_steps": 28}),
        "DPO, on 4,000 rated images": lab.tuned("algorithms-dpo", config="configs/dpo/tiny.toml", **dpo),
    }
    found = lab.evaluated("algorithms", [lora for lora, _ in runs.values()], count=PROMPTS)
    rows = [["base model", "", *lab.base_row(found[0])]]
    rows += [[title, f"{seconds} s", *lab.row_of(paired)] for (title, (_, seconds)), paired in zip(runs.items(), found)]
    rows += [[f"best of {n}", "none", *lab.row_of(best_of(n))] for n in [4]]
    lab.table("algorithms", ["algorithm", "training", *lab.COLUMNS], rows)


if __name__ == "__main__":
    main()
