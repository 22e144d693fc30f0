#!/usr/bin/env python3
"""Every algorithm that learns from a reward, in the world of shapes, each for the same time or on as many images: what it gained on held-out prompts,
and what that took.

    cargo build --release && scripts/experiments/side_by_side.py [--minutes 10 | --images 1024] [--seeds 0 1 2]
        [--only nft ddpo] [--rewards judge] [--on-one-core]

Trains the `shapes` recipe of each algorithm on VP-Score and, where no gradient is needed, on the judge. A run is stopped when its time is over, or it has drawn
its images, and exports what it has. Then 400 prompts of `test` are drawn once with each LoRA and with the base model. The sentinel's findings are those of the
previews. The seconds per image are those of one core, training included. Writes the table of docs/concepts/side-by-side.md. With `--on-one-core`, as many runs as there are cores train at once, each held to a core
of its own, which takes half the time on two cores; a run draws then about half as many images per minute.
"""

import argparse
import hashlib
import json
import os
import queue
import re
import signal
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import lab

PAGE = lab.ROOT / "docs/concepts/side-by-side.md"
WITH_GRADIENT = ["refl", "srpo", "leap_align"]
WITHOUT = ["ddpo", "awm", "nft", "dgpo"]
JUDGE = {"reward": {"judge": {"prompt_following": 6.0, "aesthetic": 1.0, "fidelity": 1.0, "harmlessness": 0.5}}}
WATCHED = ["--set", 'watch=[{ vp_score = { weights = "embedded:shapes/vp-score" } }]']
# More updates than any run makes in its time.
ENDLESS = 100_000


def command(algo, reward, seed, steps, *more):
    values = {"run.seed": seed, "run.num_train_steps": steps, "checkpoint.every": 0}
    rewards = [*lab.settings(JUDGE), *WATCHED] if reward == "judge" else []
    return ["train", "--config", f"configs/{algo}/shapes.toml", *lab.settings(values), *rewards, *more]


def updates_for(count, *what):
    """How many updates train on `count` images, by the arithmetic that the program prints."""
    said = lab.visionprefer(*command(*what, ENDLESS), "--dry-run")
    epoch = re.search(r"epochs of (\d+) images and (\d+) updates", said)
    images, updates = map(int, epoch.groups()) if epoch else (int(re.search(r"updates of (\d+) images", said)[1]), 1)
    return -(-count // images) * updates


def run(algo, reward, seed, seconds, count, core=None):
    """Trains on `count` images, or else for so many seconds, and exports; the run's folder. Held to `core`, if one is given."""
    what = (algo, reward, seed)

    def make(out):
        shutil.rmtree(out, ignore_errors=True)
        held = [] if core is None else ["--set", "run.workers=1"]
        asked = [str(lab.BINARY), *command(*what, updates_for(count, *what) if count else ENDLESS, *held, "-o", str(out))]
        print("$ visionprefer", *asked[1:], flush=True)
        log = lab.HOME / f"logs/side-{algo}-{reward}-{seed}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            bound = [] if core is None else ["taskset", "--cpu-list", str(core)]
            process = subprocess.Popen([*bound, *asked], cwd=lab.ROOT, stdout=file, stderr=subprocess.STDOUT)
            if not count:
                stop_after(process, out, seconds)
            _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status) != 0 and count:
            raise SystemExit(f"{log}: the run failed")
        (out / "usage.json").write_text(json.dumps({"peak_mib": usage.ru_maxrss / 2**10, "seconds": usage.ru_utime + usage.ru_stime}))
        if not count:
            # A run that ends where it was stopped exports its LoRA and draws the last preview.
            config = out / "config.toml"
            config.write_text(re.sub(r"num_train_steps = \d+", f"num_train_steps = {updates(out)}", config.read_text(), count=1))
            lab.visionprefer("train", "--resume", out, log=log.with_suffix(".end.log"))

    return lab.once(f"side-by-side/{algo}-{reward}-{seed}", "lora.safetensors", make)


def stop_after(process, folder, seconds):
    """Stops a run. The clock starts with the first update: loading and the first preview are not training."""
    began = time.time()
    while not updates(folder) or time.time() - began < seconds:
        if not updates(folder):
            began = time.time()
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)


def trained(runs, seconds, count, on_one_core):
    """The folders of `runs`, one after the other, or as many at once as there are cores."""
    if not on_one_core:
        return [run(*one, seconds, count) for one in runs]
    free = queue.SimpleQueue()
    for core in os.sched_getaffinity(0):
        free.put(core)

    def held(one):
        core = free.get()
        try:
            return run(*one, seconds, count, core)
        finally:
            free.put(core)

    with ThreadPoolExecutor(free.qsize()) as pool:
        return list(pool.map(held, runs))


def lines(folder):
    path = folder / "metrics.jsonl"
    text = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in text if line.endswith("}")]


def updates(folder):
    return max((line["step"] for line in lines(folder)), default=0)


def images(folder):
    """Images drawn in training: the journal's images per second, times the seconds of each update."""
    return round(sum(line["images_per_second"] * line["seconds"] for line in lines(folder) if "seconds" in line))


def diversity(name, loras):
    """How the distance between four images of a prompt changed with each LoRA, in VP-Score's features, in per cent of the base model's; over 60
    prompts."""
    files = [part for path in loras for part in ("--lora", path)]
    question = ["--prompts", lab.prompts("test", 60, 35), "--seeds", 4, "--batch-size", 20, "-r", "embedded:shapes/vp-score"]
    folder = lab.once(f"evaluations/{name}-diversity", "report.json", lambda out: lab.visionprefer("evaluate", *files, *question, "-o", out))
    contrasts = json.loads((folder / "report.json").read_text())["comparison"]["contrasts"]
    return [lab.difference(one["diversity"]["paired"], 0, 100.0 / one["diversity"]["paired"]["baseline"]) for one in contrasts]


def over_seeds(found, places, scale=1.0):
    """The mean of what the seeds of a training gained, and the least and the most; of one seed, its interval over prompts."""
    if len(found) == 1:
        return lab.difference(found[0], places, scale)
    gained = [scale * paired["difference"] for paired in found]
    return f"{sum(gained) / len(gained):+.{places}f} ({min(gained):+.{places}f} to {max(gained):+.{places}f})"


def row(algo, reward, trainings, kept):
    """A line of the table: `trainings` are those of all seeds, each its folder and the judge's differences; `kept` is the first one's diversity."""
    folders, judged = zip(*trainings)
    drawn = [images(folder) for folder in folders]
    usage = [json.loads((folder / "usage.json").read_text()) for folder in folders]
    cost = [f"{sum(one['seconds'] for one in usage) / sum(drawn):.2f}", f"{max(one['peak_mib'] for one in usage):.0f}"]
    gained = [over_seeds([paired["judge/pass"] for paired in judged], 1, 100.0)]
    gained += [over_seeds([paired[f"judge/{aspect}"] for paired in judged], 3) for aspect in lab.ASPECTS]
    sentinels = [json.loads((folder / "report.json").read_text())["sentinel"] or {"findings": []} for folder in folders]
    rules = sorted({finding["rule"] for sentinel in sentinels for finding in sentinel["findings"]})
    return [f"`{algo}`", reward, max(map(updates, folders)), max(drawn), *cost, *gained, kept, ", ".join(rules) or "nothing"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--images", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=WITH_GRADIENT + WITHOUT, default=WITH_GRADIENT + WITHOUT)
    parser.add_argument("--rewards", nargs="+", choices=["vp_score", "judge"], default=["vp_score", "judge"])
    parser.add_argument("--on-one-core", action="store_true")
    arguments = parser.parse_args()
    runs = [(algo, reward, seed) for algo in arguments.only for reward in arguments.rewards if reward == "vp_score" or algo in WITHOUT
            for seed in arguments.seeds]
    cores = "one core" if arguments.on_one_core else f"{os.cpu_count()} cores"
    said = f"{arguments.images:,} images each" if arguments.images else f"{arguments.minutes:g} minutes of {cores} each, from the first update on"
    folders = trained(runs, 60 * arguments.minutes, arguments.images, arguments.on_one_core)
    trainings = {}
    for (algo, reward, _), folder in zip(runs, folders):
        trainings.setdefault((algo, reward), []).append(folder)
    # In one evaluation, which draws the base model's images once. Named by what is in it.
    loras = [folder / "lora.safetensors" for folder in folders]
    name = f"side-by-side-{hashlib.sha256(b''.join(path.read_bytes() for path in loras)).hexdigest()[:12]}"
    judged = lab.evaluated(name, loras, count=400)
    base = ["base model", "", "", "", "", "", *lab.base_row(judged[0]), "", ""]
    kept = diversity(name, [of_seeds[0] / "lora.safetensors" for of_seeds in trainings.values()])
    judged = dict(zip(folders, judged))
    rows = [base]
    for ((algo, reward), of_seeds), of_first in zip(trainings.items(), kept):
        rows.append(row(algo, reward, [(folder, judged[folder]) for folder in of_seeds], of_first))
    header = ["algorithm", "reward", "updates", "images", "seconds per image", "peak MiB", *lab.COLUMNS, "diversity, %", "the sentinel found"]
    seeds = f"Seeds {', '.join(map(str, arguments.seeds))}: the mean, and in brackets the least and the most. Diversity is the first one's, with an interval "
    seeds += "over prompts; updates, images and memory are the most of any, seconds per image those of all, and the findings those of any"
    lab.table("side by side", header, rows, f"{said}. {seeds if arguments.seeds[1:] else 'One seed'}.", page=PAGE)


if __name__ == "__main__":
    main()
