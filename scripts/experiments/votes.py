#!/usr/bin/env python3
"""Does a reward learn from votes? Two hundred of them, cast through the page of `vote` as its script does, by a voter who judges with noise.

    cargo build --release && scripts/experiments/votes.py

The shipped model draws two images for each of 200 prompts. The voter knows the judge's ratings of both, in fractions, and adds noise to their sum.
A reward model learns from the votes alone, and is then asked about six images for each of 100 other prompts, as it was before. The table of
docs/guide/vote.md is written from that. It takes a few minutes.
"""

import hashlib
import json
import math
import random
import re
import shutil
import subprocess
import urllib.request

import lab

VOTES = 200
# The standard deviation of what is added to an image's sum of four ratings, and the distance below which the voter sees no difference.
NOISE = 0.5
TIE = 0.1
PAGE = lab.ROOT / "docs/guide/vote.md"


def drawn(split, count, seed, images):
    """Images of the shipped model, rated by the judge."""
    sampling = {"images_per_prompt": images, "num_inference_steps": 10, "batch_size": 32, "seed": seed}
    settings = {"annotator.judge.whole": False} | {f"sampling.{key}": value for key, value in sampling.items()}
    question = ["--config", "configs/annotate/shapes.toml", *lab.settings(settings), "--prompts", lab.prompts(split, count, seed)]
    folder = lab.once(f"votes/{split}-{count}", "records.jsonl", lambda out: lab.visionprefer("annotate", *question, "-o", out))
    return folder / "records.jsonl"


class Page:
    """The page of `vote`, asked as its script asks."""

    def __init__(self, address):
        self.origin = re.match(r"http://[^/]+", address)[0]
        # The cookie comes with the first visit, by the token in the address.
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        page = self.opener.open(address).read().decode()
        self.token = re.search(r'name="token" content="([^"]+)"', page)[1]

    def get(self, path):
        return self.opener.open(self.origin + path).read()

    def question(self):
        return json.loads(self.get("/api/question?voter=simulated"))

    def vote(self, question, answer):
        body = json.dumps({"voter": "simulated", "question": question["question"], "answer": answer}).encode()
        headers = {"x-token": self.token, "content-type": "application/json", "origin": self.origin}
        return json.loads(self.opener.open(urllib.request.Request(self.origin + "/api/vote", body, headers)).read())


def worth(records):
    """The judge's sum of ratings for each image, by the hash of its bytes: the page does not tell which image it shows."""
    found = {}
    for record in map(json.loads, records.read_text().splitlines()):
        for image in record["completions"]:
            name = hashlib.sha256((records.parent / image["image_path"]).read_bytes()).hexdigest()
            found[name] = sum(image["annotations"][aspect]["rating"] for aspect in lab.ASPECTS)
    return found


def cast(records, out):
    """Casts the votes; how many of those that are no tie the judge without noise would have cast too."""
    shutil.rmtree(out, ignore_errors=True)
    values, noise, right, decided = worth(records), random.Random(7), 0, 0
    command = [str(lab.BINARY), "vote", "--records", str(records), "-o", str(out), "--address", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=lab.ROOT, stdout=subprocess.PIPE, text=True) as program:
        try:
            page = Page(next(line for line in program.stdout if "http://" in line).split()[-1])
            question = page.question()
            for _ in range(VOTES):
                at = [page.get(f"/image?voter=simulated&question={question['question']}&at={place}") for place in (0, 1)]
                left, right_one = (values[hashlib.sha256(image).hexdigest()] for image in at)
                seen = left - right_one + math.sqrt(2) * NOISE * noise.gauss(0, 1)
                answer = "tie" if abs(seen) < TIE else "left" if seen > 0 else "right"
                if answer != "tie" and left != right_one:
                    decided += 1
                    right += (left > right_one) == (answer == "left")
                question = page.vote(question, answer)
        finally:
            program.terminate()
    return right / decided


def learned(name, votes, **values):
    """A reward model that learned from the votes; its folder."""
    values = {"algo.reward_model.objective": "pairs", "algo.reward_model.aspects": False, "algo.reward_model.workers": 1,
              "rankings.validation_fraction": 0.2} | values
    out = lab.HOME / f"votes/{name}"
    shutil.rmtree(out, ignore_errors=True)
    settings = ["--records", votes, *lab.settings(values), "-o", out]
    lab.visionprefer("train-reward", *settings, log=lab.HOME / f"logs/votes-{name}.log")
    return out / "model"


def main():
    asked, held_out = drawn("feedback", VOTES, 41, 2), drawn("validation", 100, 42, 6)
    votes = lab.HOME / "votes/cast"
    agreed = cast(asked, votes)
    records = votes / "records.jsonl"
    rows = []
    for title, before, after in [
        ("random weights", learned("untrained", records, **{"run.num_train_steps": 1, "optimizer.learning_rate": 1e-12}),
         learned("from-nothing", records, **{"run.num_train_steps": 200, "rankings.validation_every": 25})),
        ("the VP-Score that ships", "embedded:shapes/vp-score",
         learned("from-shipped", records, **{"model.initialize": False, "run.num_train_steps": 100, "optimizer.learning_rate": 2e-5,
                                             "rankings.validation_every": 20})),
    ]:
        rows.append([title, lab.accuracy(before, held_out), lab.accuracy(after, held_out)])
    note = f"Of the votes that are no tie, {100 * agreed:.0f} % are those that the judge without noise would have cast."
    lab.table("votes", ["begins with", "before", f"after {VOTES} votes"], rows, note, PAGE)


if __name__ == "__main__":
    main()
