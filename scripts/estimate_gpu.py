#!/usr/bin/env python3
"""Floating-point operations and memory of SD 1.5 and SDXL from their published sizes, and what they come to on one H200. Nothing is measured.

    scripts/estimate_gpu.py

Counts multiplications and additions of convolutions, linear maps and attention; norms and activations are left out (under 2 %). Writes the tables
of docs/reference/gpu.md.
"""

UNETS = {
    "SD 1.5": dict(channels=(320, 640, 1280, 1280), depth=(1, 1, 1, 0), heads_dim=(40, 80, 160, 160), context=768, layers=2, temb=1280, mid=1),
    "SDXL": dict(channels=(320, 640, 1280), depth=(0, 2, 10), heads_dim=(64, 64, 64), context=2048, layers=2, temb=1280, mid=10),
}
TOKENS = 77


class Count:
    def __init__(self):
        self.flops = self.weights = self.block_inputs = self.everything = 0

    def conv(self, cin, cout, pixels, k=3):
        self.flops += 2 * cin * cout * k * k * pixels
        self.weights += cin * cout * k * k + cout
        self.everything += cout * pixels

    def linear(self, cin, cout, rows, bias=True):
        self.flops += 2 * cin * cout * rows
        self.weights += cin * cout + (cout if bias else 0)
        self.everything += cout * rows

    def attention(self, queries, keys, c):
        self.flops += 4 * queries * keys * c

    def resnet(self, cin, cout, pixels, temb):
        self.block_inputs += cin * pixels
        self.everything += 2 * (cin + cout) * pixels
        self.conv(cin, cout, pixels)
        self.conv(cout, cout, pixels)
        if temb:
            self.linear(temb, cout, 1)
        if cin != cout:
            self.conv(cin, cout, pixels, 1)

    def transformer(self, c, pixels, depth, context):
        self.linear(c, c, pixels)
        for _ in range(depth):
            self.block_inputs += c * pixels
            self.everything += 6 * c * pixels
            for _ in range(4):
                self.linear(c, c, pixels, False)
            self.attention(pixels, pixels, c)
            self.linear(c, c, pixels, False), self.linear(c, c, pixels, False)
            self.linear(context, c, TOKENS, False), self.linear(context, c, TOKENS, False)
            self.attention(pixels, TOKENS, c)
            self.linear(c, 8 * c, pixels), self.linear(4 * c, c, pixels)
            self.everything += 8 * c * pixels
        self.linear(c, c, pixels)


def unet(name, latent):
    p, count = UNETS[name], Count()
    channels, side = p["channels"], latent
    count.conv(4, channels[0], side * side)
    skips, c = [channels[0]], channels[0]
    for level, out in enumerate(channels):
        for _ in range(p["layers"]):
            count.resnet(c, out, side * side, p["temb"])
            c = out
            if p["depth"][level]:
                count.transformer(c, side * side, p["depth"][level], p["context"])
            skips.append(c)
        if level + 1 < len(channels):
            side //= 2
            count.conv(c, c, side * side)
            skips.append(c)
    count.resnet(c, c, side * side, p["temb"])
    count.transformer(c, side * side, p["mid"], p["context"])
    count.resnet(c, c, side * side, p["temb"])
    for level, out in reversed(list(enumerate(channels))):
        for _ in range(p["layers"] + 1):
            count.resnet(c + skips.pop(), out, side * side, p["temb"])
            c = out
            if p["depth"][level]:
                count.transformer(c, side * side, p["depth"][level], p["context"])
        if level:
            side *= 2
            count.conv(c, c, side * side)
    count.conv(c, 4, side * side)
    return count


def decoder(latent, channels=(128, 256, 512, 512)):
    count, side, c = Count(), latent, channels[-1]
    count.conv(4, c, side * side)
    for _ in range(2):
        count.resnet(c, c, side * side, 0)
    for _ in range(4):
        count.linear(c, c, side * side)
    count.attention(side * side, side * side, c)
    for level, out in reversed(list(enumerate(channels))):
        for _ in range(3):
            count.resnet(c, out, side * side, 0)
            c = out
        if level:
            side *= 2
            count.conv(c, c, side * side)
    count.conv(c, 3, side * side)
    return count


def blip():
    """ViT-L/16 at 224 pixels, and BERT-base with cross-attention over 35 tokens."""
    count, patches = Count(), 197
    count.linear(768, 1024, patches)
    for _ in range(24):
        count.block_inputs += 1024 * patches
        for a, b in [(1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)]:
            count.linear(a, b, patches)
        count.attention(patches, patches, 1024)
    for _ in range(12):
        for a, b, rows in [(768, 768, 35)] * 6 + [(1024, 768, patches)] * 2 + [(768, 3072, 35), (3072, 768, 35)]:
            count.linear(a, b, rows)
    return count


# One H200 (NVIDIA's data sheet): bf16 on the tensor cores without sparsity, f32 outside of them, and memory bandwidth.
PEAK = {"bf16": 989e12, "f32": 67e12}
# The share of the peak that PyTorch reaches in this kind of network, from published benchmarks, and half of it.
SHARES = (0.4, 0.2)


def main():
    rows = []
    gib, tera = 2.0**30, 1e12
    sd, xl, vae, vae_xl, reward = unet("SD 1.5", 64), unet("SDXL", 128), decoder(64), decoder(128), blip()
    print("| network | weights | operations per image, forward |\n| --- | --- | --- |")
    for name, count in [
        ("SD 1.5 UNet, 64x64 latents", sd),
        ("SDXL UNet, 128x128 latents", xl),
        ("autoencoder's decoder, 512 px", vae),
        ("autoencoder's decoder, 1024 px", vae_xl),
        ("BLIP reward, 224 px", reward),
    ]:
        print(f"| {name} | {count.weights / 1e6:.0f} M | {count.flops / tera:.2f} TFLOP |")

    def direct(unet, vae, batch, steps):
        # 40 steps without gradient at most, then one with; recomputation runs what is on the tape twice, and the way back costs as much as two
        # forward passes for what trains and one for what is frozen: a LoRA's base needs only the gradient of its input.
        taped = unet.flops + vae.flops + reward.flops
        return batch * (steps * unet.flops + taped * (1 + 1 + 1))

    work = [
        ("SD 1.5 UNet, batch 8, forward", 8 * sd.flops, sd.weights * 2, 0),
        ("SD 1.5 ReFL step: LoRA, 512 px, batch 4, recomputation, 35 steps before the tape", direct(sd, vae, 4, 35), 0, 0),
        ("SD 1.5 DDPO epoch step: batch 8, 50 DDIM steps with guidance, then 50 trained", 8 * 2 * 50 * sd.flops * (1 + 3), 0, 0),
        ("SDXL ReFL step: LoRA, 1024 px, batch 1, recomputation, 35 steps before the tape", direct(xl, vae_xl, 1, 35), 0, 0),
    ]
    print("\n| work | operations | seconds at 40 % of bf16's peak | at 20 % |\n| --- | --- | --- | --- |")
    for name, flops, *_ in work:
        print(f"| {name} | {flops / tera:.0f} TFLOP | " + " | ".join(f"{flops / (PEAK['bf16'] * share):.2f}" for share in SHARES) + " |")

    print("\n| memory, batch 1 | frozen weights | kept per block | largest decoder stage | sum |\n| --- | --- | --- | --- | --- |")
    text = {"SD 1.5": 123e6, "SDXL": 817e6}
    for name, unet_, vae_, pixels in [("SD 1.5, 512 px", sd, vae, 512), ("SDXL, 1024 px", xl, vae_xl, 1024)]:
        weights = 2 * (unet_.weights + text[name.split(",")[0]]) + 4 * (vae_.weights + 34e6 + 2 * reward.weights / 2)
        kept = 2 * unet_.block_inputs + 4 * (vae_.block_inputs + reward.block_inputs)
        # A residual block of the last level: input, norm, two convolutions, and their gradients, in f32.
        stage = 4 * 8 * 256 * pixels * pixels
        print(f"| {name}, bf16, LoRA, `blocks` | {weights / gib:.1f} GiB | {kept / gib:.1f} GiB | {stage / gib:.1f} GiB | {(weights + kept + stage) / gib:.1f} GiB |")


main()
