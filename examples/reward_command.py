"""A reward of one's own, started once by [reward.command]: a line in per batch, a line out. It likes images that take few bytes as a PNG."""
import base64, json, sys

def score(png: bytes, prompt: str) -> float:
    return -len(png) / 1000  # with Pillow, Image.open(io.BytesIO(png)) is the picture

for line in sys.stdin:
    batch = json.loads(line)
    scores = [score(base64.b64decode(image), prompt) for image, prompt in zip(batch["images"], batch["prompts"])]
    print(json.dumps({"scores": scores}), flush=True)
