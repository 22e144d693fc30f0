"""What the experiments of docs/concepts/what-the-paper-claims.md share: the data, a reward model, a fine-tuned model, an evaluation, a table.

Everything lies under runs/experiments ($EXPERIMENTS elsewhere), made once and used by every script; a command that was interrupted is given
again, and goes on where it can. Needs Python 3 and a release build, nothing else. Tables are written into the page.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("VISIONPREFER", ROOT / "target/release/visionprefer"))
HOME = Path(os.environ.get("EXPERIMENTS", ROOT / "runs/experiments"))
PAGE = ROOT / "docs/concepts/what-the-paper-claims.md"
# Of the trainings that are repeated, on the same data: (a) and (b). Fine-tuning has seed 0 throughout, and the rewards that it uses.
SEEDS = [0, 1]
# What every fine-tuning of the experiments but (c)'s has in common: the recipe that ships, shorter.
REFL = {"run.num_train_steps": 100}
# What these rewards' gradients count beside the captioned images; the VP-Score that ships is sharper.
FACTOR = 0.1
ASPECTS = ["prompt_following", "aesthetic", "fidelity", "harmlessness"]


def visionprefer(*args, log=None):
    """Runs a command; its output goes to a log file, or is returned."""
    command = [str(BINARY), *map(str, args)]
    print("$ visionprefer", *command[1:], flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(done.stdout)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-2000:]}")
    return done.stdout


def once(folder, finished, make):
    """`folder`, made unless its file `finished` is there already."""
    folder = HOME / folder
    if not (folder / finished).exists():
        make(folder)
    return folder


def prompts(split, count, seed):
    """Captions of a split of the world, a file."""
    make = lambda out: visionprefer("dataset", "shapes", "--split", split, "-n", count, "--seed", seed, "-o", out)
    return once(f"prompts/{split}-{count}-{seed}", "metadata.jsonl", make) / "metadata.jsonl"


def rated(name, source):
    """The judge's ratings, in fractions, of images that are there (`--records`) or are drawn for `--prompts`; a file of records."""
    config = ["--config", "configs/annotate/shapes.toml", "--set", "annotator.judge.whole=false"]
    sampling = ["sampling.images_per_prompt=8", "sampling.num_inference_steps=15", "sampling.batch_size=32"]
    config += [part for one in sampling for part in ("--set", one)]
    return once(f"annotations/{name}", "records.jsonl", lambda out: visionprefer("annotate", *config, *source, "-o", out)) / "records.jsonl"


def renders(count):
    """Six images of each of `count` prompts of `feedback`, drawn by the world itself: clean, of other scenes, spoilt."""
    make = lambda out: visionprefer("dataset", "shapes", "--split", "feedback", "-n", count, "--per-caption", 6, "--seed", 31, "-o", out)
    folder = once(f"renders-{count}", "records.jsonl", make)
    return rated(f"renders-{count}", ["--records", folder / "records.jsonl"])


def drawn(split, count, seed):
    """Eight images of each of `count` prompts, drawn by the base model at four guidance scales."""
    return rated(f"{split}-{count}", ["--prompts", prompts(split, count, seed)])


def training():
    """What the reward models of all experiments learn from: 18,000 renders and 4,000 images of the base model."""
    return [renders(3000), drawn("feedback", 500, 32)]


def held_out():
    """What they are measured on: 800 images of the base model for 100 prompts of `test`."""
    return drawn("test", 100, 33)


def stage(updates):
    """A model that got fewer updates than the base model: the first run of docs/guide/train-the-base-model.md, shorter; its folder."""
    data = once("shapes", "metadata.jsonl", lambda out: visionprefer("dataset", "shapes", "-n", 60000, "-o", out))

    def make(out):
        shutil.rmtree(out, ignore_errors=True)
        values = {"model.path": "checkpoints/shapes", "data.folder": str(data), "run.num_train_steps": updates, "data.validation_every": 0,
                  "checkpoint.every": 0}
        visionprefer("train", "--config", "configs/sft/shapes.toml", *settings(values), "-o", out, log=HOME / f"logs/stage-{updates}.log")

    return once(f"stages/{updates}", "model/model_index.json", make) / "model"


def held_out_of_stages():
    """The same prompts, two images each of the base model and of three earlier stages of its training."""
    models = ["embedded:shapes", *(str(stage(updates)) for updates in (250, 750, 2000))]
    return rated("test-100-stages", ["--set", f"sampling.models={toml(models)}", "--prompts", prompts("test", 100, 33)])


def toml(value):
    """A value as `--set` takes it; a table replaces the config's."""
    return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }" if isinstance(value, dict) else json.dumps(value)


def settings(values):
    return [part for name, value in values.items() for part in ("--set", f"{name}={toml(value)}")]


def blip():
    """The sizes of the experiments' VP-Score, 0.9 million parameters, with the vocabulary of the one that ships."""
    folder = HOME / "blip"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "checkpoints/shapes/vp-score/vocab.txt", folder / "vocab.txt")
    config = {"image_size": 32, "patch_size": 8, "vision_width": 128, "vision_depth": 3, "vision_heads": 4, "hidden_size": 96,
              "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192, "vocab_size": 38, "max_position_embeddings": 16,
              "layer_norm_eps": 1e-12, "vision_layer_norm_eps": 1e-6, "mlp": [48, 24, 12, 6, 1], "max_length": 16, "aspects": True}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def reward(name, records=None, seed=0, **values):
    """A reward model, trained from nothing on pairs, as the paper does; its folder."""
    values = {"model.path": str(blip()), "run.num_train_steps": 1000, "run.seed": seed, "algo.reward_model.objective": "pairs",
              "algo.reward_model.batch_size": 16, "algo.reward_model.workers": 1, "optimizer.learning_rate": 1e-3, "rankings.margin": 0.3,
              "rankings.validation_every": 500} | values
    name = f"{name}-seed-{seed}" if seed else name

    def make(out):
        shutil.rmtree(out, ignore_errors=True)
        log = HOME / f"logs/{name}.log"
        files = [part for path in records or training() for part in ("--records", path)]
        visionprefer("train-reward", *files, *settings(values), "-o", out, log=log)

    return once(f"rewards/{name}", "model/config.json", make) / "model"


def clip():
    """The sizes of a CLIP about as large as the VP-Score, with the base model's tokenizer."""
    folder = HOME / "clip"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ["vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"]:
        shutil.copy(ROOT / "checkpoints/shapes/tokenizer" / name, folder / name)
    text = json.loads((ROOT / "checkpoints/shapes/text_encoder/config.json").read_text())
    sizes = {"hidden_act": "quick_gelu", "hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 384,
             "layer_norm_eps": 1e-5, "projection_dim": 64}
    config = {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 64, "logit_scale_init_value": 2.6592,
        "text_config": sizes | {key: text[key] for key in ["vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings"]}
        | {"model_type": "clip_text_model"},
        "vision_config": sizes | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, "num_channels": 3},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def accuracy(model, records):
    """Share of the pairs that the judge orders strictly which a reward orders alike, with its 95 % interval over prompts."""
    said = visionprefer("score", "-r", model, "--records", records, "--batch-size", 64, "--json", "--quiet")
    out = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    found = {row["protocol"]: row for row in out["accuracies"]}["imagereward-pooled"]
    share, low, high = (100 * value for value in (found["value"], found["interval"]["low"], found["interval"]["high"]))
    return f"{share:.1f} % ({low:.1f} to {high:.1f})"


def tuned(name, algo="refl", config=None, **values):
    """A LoRA of the base model, and the seconds its training took."""

    def make(out):
        shutil.rmtree(out, ignore_errors=True)
        chosen = ["--config", config] if config else ["--algo", algo]
        began = time.time()
        visionprefer("train", *chosen, *settings({"preview.every": 0} | values), "-o", out, log=HOME / f"logs/{name}.log")
        (out / "took").write_text(f"{time.time() - began:.0f}")

    folder = once(f"tuned/{name}", "took", make)
    return folder / "lora.safetensors", int((folder / "took").read_text())


# In place of the captioned images: the reward alone decides.
REWARD_ALONE = {"regularizer": {"none": {}}}
CAPTIONED = {"images": {"folder": "embedded:shapes/feedback", "weight": 1.0}}


def with_reward(model):
    """The recipe that ships, with another VP-Score."""
    return {"reward": {"vp_score": {"weights": str(model)}}, "algo.refl.grad_scale": FACTOR}


def with_clip(model):
    """The recipe that ships, with a CLIP for a reward: its scores, unlike a VP-Score's, are not in standard deviations."""
    said = (HOME / f"logs/{model.parent.name}.log").read_text()
    mean, std = map(float, re.search(r"scores of training images: mean (\S+), standard deviation (\S+)", said).groups())
    return {"reward": {"clip_score": {"weights": str(model)}}, "algo.refl.margin": mean + 2 * std, "algo.refl.grad_scale": FACTOR / std}


def evaluated(name, loras, count=200):
    """LoRAs against the base model by the judge, one image for each of `count` prompts of `test`: what the report compares, by LoRA."""
    files = [part for path in loras for part in ("--lora", path)]
    question = ["--prompts", prompts("test", count, 34), "--seeds", 1, "--batch-size", 20, "-r", "judge"]
    folder = once(f"evaluations/{name}", "report.json", lambda out: visionprefer("evaluate", *files, *question, "-o", out))
    return contrasts(folder)


def contrasts(folder):
    report = json.loads((folder / "report.json").read_text())
    return [{row["reward"]: row["paired"] for row in contrast["rewards"]} for contrast in report["comparison"]["contrasts"]]


def difference(paired, places=3, scale=1.0):
    """A paired difference with its 95 % interval."""
    low, high = (scale * paired["interval"][end] for end in ("low", "high")) if paired["interval"] else (0.0, 0.0)
    return f"{scale * paired['difference']:+.{places}f} ({low:+.{places}f} to {high:+.{places}f})"


def row_of(paired):
    """What a fine-tuned model gained and lost: the columns of `COLUMNS`."""
    return [difference(paired["judge/pass"], 1, 100.0), *(difference(paired[f"judge/{aspect}"]) for aspect in ASPECTS)]


COLUMNS = ["passes, points", *(aspect.replace("_", " ") for aspect in ASPECTS)]


def base_row(paired):
    """Where the base model stands."""
    return [f"{100 * paired['judge/pass']['baseline']:.1f} %", *(f"{paired[f'judge/{aspect}']['baseline']:.3f}" for aspect in ASPECTS)]


def rows(titles, found):
    """The base model's row, then what each of its LoRAs gained and lost."""
    return [["base model", *base_row(found[0])], *([title, *row_of(paired)] for title, paired in zip(titles, found))]


def table(name, header, rows, note="", page=PAGE):
    """Writes a table into a page, between its marks; what is said of it there, below, is for a reader to hold against it."""
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(map(str, row))} |" for row in rows)]
    text = "\n".join(lines) + "\n" + (f"\n{note}\n" if note else "")
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    written = page.read_text()
    before, after = written[: written.index(begin) + len(begin)], written[written.index(end) :]
    page.write_text(f"{before}\n{text}\n{after}")
    print(text)
