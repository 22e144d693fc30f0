"""Torch's side of `scripts/bench_vs_torch`, which starts it: the cases of `benches/vs_torch`, written as their Python users would.

Answers requests on its standard input, one line each: `setup CASE`, `run SECONDS` (milliseconds), `peak` (KiB), `quit`; `--list` names the
cases. Torch runs as it does by default on a processor: float32, its own memory format, `inference_mode` for what has no gradient, SDPA for
attention, and AdamW in its fused form, which is its fastest. In bfloat16 networks are `.to(torch.bfloat16)`, and a LoRA's factors stay float32
under `autocast`, as diffusers' training scripts have it.
"""
import functools
import math
import os
import pathlib
import statistics
import sys
import time
import tomllib

import torch
import torch.nn.functional as F
from torch import nn

ROOT = pathlib.Path(__file__).resolve().parent.parent
PIPELINE = ROOT / "tests/golden/sd15_tiny/pipeline"
REWARD = ROOT / "tests/golden/blip_reward_tiny/model"
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]
CASES = {}


def case(name):
    """Registers a function that sets a case up and returns its work."""
    def register(setup):
        CASES[name] = setup
        return setup
    return register


def case_in_formats(name):
    """The same for a function of a number format."""
    def register(setup):
        CASES[name] = lambda: setup(torch.float32)
        CASES[f"{name}_bf16"] = lambda: setup(torch.bfloat16)
        return setup
    return register


def forward(work):
    """`work` without any record for gradients."""
    @torch.inference_mode()
    def run():
        work()
    return run


# Published networks with random weights.


def sd15_unet():
    from diffusers import UNet2DConditionModel
    # The class's defaults are SD 1.5 but for the width of the text embeddings.
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval().requires_grad_(False)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    return unet


@case_in_formats("unet_sd15_64_forward")
def unet_forward(dtype):
    unet, sample, text = sd15_unet().to(dtype), torch.randn(1, 4, 64, 64, dtype=dtype), torch.randn(1, 77, 768, dtype=dtype)
    return forward(lambda: unet(sample, 500, encoder_hidden_states=text).sample)


@case_in_formats("unet_sd15_32_lora_backward")
def unet_lora(dtype):
    unet = sd15_unet().to(dtype)
    add_lora(unet)
    factors = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    assert all(parameter.dtype == torch.float32 for parameter in factors)
    sample, target, text = torch.randn(1, 4, 32, 32), torch.randn(1, 4, 32, 32), torch.randn(1, 77, 768)

    def work():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
            output = unet(sample, 500, encoder_hidden_states=text).sample
        return torch.autograd.grad(F.mse_loss(output.float(), target), factors)
    return work


def add_lora(unet):
    from peft import LoraConfig
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=PROJECTIONS))
    for parameter in filter(lambda parameter: parameter.requires_grad, unet.parameters()):
        parameter.data = parameter.data.float()


@case_in_formats("vae_decode_512")
def vae_decode(dtype):
    from diffusers import AutoencoderKL
    down, up = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    vae = AutoencoderKL(down_block_types=down, up_block_types=up, block_out_channels=[128, 256, 512, 512], layers_per_block=2,
                        sample_size=512).eval().to(dtype)
    latents = torch.randn(1, 4, 64, 64, dtype=dtype)
    return forward(lambda: vae.decode(latents).sample)


class VisionTransformer(nn.Module):
    """BLIP's image encoder under ImageReward's keys."""

    def __init__(self, image_size, patch_size, width, depth, heads):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, (image_size // patch_size) ** 2 + 1, width) * 0.02)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch_size, patch_size)})
        self.blocks = nn.ModuleList(VisionBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixel_values):
        patches = self.patch_embed["proj"](pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class VisionBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x):
        q, k, v = self.attn["qkv"](self.norm1(x)).chunk(3, -1)
        x = x + self.attn["proj"](attend(q, k, v, self.heads))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


def attend(q, k, v, heads, mask=None):
    """Attention over `[b, tokens, heads * d]`."""
    split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=mask).transpose(1, 2).flatten(2)


def vit_l():
    vit = VisionTransformer(224, 16, 1024, 24, 16).eval().requires_grad_(False)
    assert 303e6 < sum(parameter.numel() for parameter in vit.parameters()) < 304e6
    return vit


@case_in_formats("blip_vit_l_forward")
def vit_forward(dtype):
    vit, pixel_values = vit_l().to(dtype), torch.randn(1, 3, 224, 224, dtype=dtype)
    return forward(lambda: vit(pixel_values))


@case("blip_vit_l_input_gradient")
def vit_input_gradient():
    vit, pixel_values = vit_l(), torch.randn(1, 3, 224, 224, requires_grad=True)
    return lambda: torch.autograd.grad(vit(pixel_values).sum(), pixel_values)


# Training.

CHANNELS = 64


class ResnetBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, CHANNELS), nn.GroupNorm(32, CHANNELS)
        self.conv1, self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class AttentionBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in range(3))
        self.to_out = nn.Linear(CHANNELS, CHANNELS)
        self.fc1, self.fc2 = nn.Linear(CHANNELS, 4 * CHANNELS), nn.Linear(4 * CHANNELS, CHANNELS)

    def forward(self, x):
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        normed = self.norm1(x)
        x = self.to_out(attend(self.to_q(normed), self.to_k(normed), self.to_v(normed), 4)) + x
        x = self.fc2(F.gelu(self.fc1(self.norm2(x)))) + x
        return x.transpose(1, 2).unflatten(2, (height, width))


@case("small_training_step")
def small_step():
    blocks = [part for _ in range(2) for part in (ResnetBlock(), AttentionBlock(), ResnetBlock())]
    network = nn.Sequential(nn.Conv2d(4, CHANNELS, 3, padding=1), *blocks, nn.GroupNorm(32, CHANNELS), nn.SiLU(),
                            nn.Conv2d(CHANNELS, 4, 3, padding=1))
    assert sum(parameter.numel() for parameter in network.parameters()) == 400_836
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    x, target = torch.randn(8, 4, 16, 16), torch.randn(8, 4, 16, 16)

    def step():
        optimizer.zero_grad()
        F.mse_loss(network(x), target).backward()
        optimizer.step()
    return step


class BertLayer(nn.Module):
    """A layer of BLIP's text encoder, which looks at the image too."""

    def __init__(self, hidden, intermediate, vision_width, heads, eps):
        super().__init__()
        self.heads = heads
        self.attention, self.crossattention = self.attention_parts(hidden, hidden, eps), self.attention_parts(hidden, vision_width, eps)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(hidden, intermediate)})
        self.output = nn.ModuleDict({"dense": nn.Linear(intermediate, hidden), "LayerNorm": nn.LayerNorm(hidden, eps)})

    @staticmethod
    def attention_parts(hidden, context, eps):
        projections = {"query": nn.Linear(hidden, hidden), "key": nn.Linear(context, hidden), "value": nn.Linear(context, hidden)}
        output = {"dense": nn.Linear(hidden, hidden), "LayerNorm": nn.LayerNorm(hidden, eps)}
        return nn.ModuleDict({"self": nn.ModuleDict(projections), "output": nn.ModuleDict(output)})

    def attend(self, parts, x, context, mask):
        projections = parts["self"]
        attended = attend(projections["query"](x), projections["key"](context), projections["value"](context), self.heads, mask)
        return parts["output"]["LayerNorm"](parts["output"]["dense"](attended) + x)

    def forward(self, x, image, mask):
        x = self.attend(self.attention, x, x, mask)
        x = self.attend(self.crossattention, x, image, None)
        return self.output["LayerNorm"](self.output["dense"](F.gelu(self.intermediate["dense"](x))) + x)


class BlipReward(nn.Module):
    """ImageReward's network, under its keys and with the sizes of a `config.json`; a constant to the tape."""

    def __init__(self, folder):
        super().__init__()
        import json
        from safetensors.torch import load_file
        from tokenizers import BertWordPieceTokenizer
        sizes = json.loads((folder / "config.json").read_text())
        hidden, eps, vision_width = sizes["hidden_size"], sizes["layer_norm_eps"], sizes["vision_width"]
        self.mean, self.std, self.image_size = sizes["mean"], sizes["std"], sizes["image_size"]
        vit = VisionTransformer(self.image_size, sizes["patch_size"], vision_width, sizes["vision_depth"], sizes["vision_heads"])
        tables = {"word_embeddings": nn.Embedding(sizes["vocab_size"], hidden),
                  "position_embeddings": nn.Embedding(sizes["max_position_embeddings"], hidden), "LayerNorm": nn.LayerNorm(hidden, eps)}
        layer = lambda: BertLayer(hidden, sizes["intermediate_size"], vision_width, sizes["num_attention_heads"], eps)
        layers = nn.ModuleList(layer() for _ in range(sizes["num_hidden_layers"]))
        encoder = {"embeddings": nn.ModuleDict(tables), "encoder": nn.ModuleDict({"layer": layers})}
        self.blip = nn.ModuleDict({"visual_encoder": vit, "text_encoder": nn.ModuleDict(encoder)})
        widths = [hidden, *sizes["mlp"]]
        linear = dict(zip("02467", (nn.Linear(*pair) for pair in zip(widths, widths[1:]))))
        self.mlp = nn.ModuleDict({"layers": nn.ModuleDict(linear)})
        self.load_state_dict(load_file(folder / "model.safetensors"))
        self.eval().requires_grad_(False)
        self.tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
        self.tokenizer.enable_truncation(sizes["max_length"])
        self.tokenizer.enable_padding(length=sizes["max_length"])
        self.pixel_mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
        self.pixel_std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)

    def forward(self, images, prompts):
        """Images `[b, 3, h, w]` in [0, 1] and their prompts to rewards `[b]`."""
        rows = self.tokenizer.encode_batch(prompts)
        ids, seen = (torch.tensor([getattr(row, field) for row in rows]) for field in ("ids", "attention_mask"))
        pixels = F.interpolate(images, size=(self.image_size, self.image_size), mode="bicubic", antialias=True)
        image = self.blip["visual_encoder"]((pixels - self.pixel_mean) / self.pixel_std)
        text, mask = self.blip["text_encoder"], (1.0 - seen[:, None, None].float()) * -10000.0
        tables = text["embeddings"]
        x = tables["LayerNorm"](tables["word_embeddings"](ids) + tables["position_embeddings"].weight[: ids.shape[1]])
        for layer in text["encoder"]["layer"]:
            x = layer(x, image, mask)
        x = x[:, 0]
        for linear in self.mlp["layers"].values():
            x = linear(x)
        return (x[:, 0] - self.mean) / self.std


class Tiny:
    """The golden pipeline with a LoRA on its UNet, and the config that our side runs."""

    def __init__(self, config, scheduler):
        import diffusers
        from transformers import CLIPTextModel, CLIPTokenizer
        self.config = tomllib.loads((ROOT / config).read_text())
        self.tokenizer = CLIPTokenizer.from_pretrained(PIPELINE / "tokenizer")
        self.text = CLIPTextModel.from_pretrained(PIPELINE / "text_encoder").eval().requires_grad_(False)
        self.unet = diffusers.UNet2DConditionModel.from_pretrained(PIPELINE / "unet").eval()
        self.vae = diffusers.AutoencoderKL.from_pretrained(PIPELINE / "vae").eval().requires_grad_(False)
        self.scheduler = getattr(diffusers, scheduler).from_pretrained(PIPELINE / "scheduler")
        self.scheduler.set_timesteps(self.config["scheduler"]["num_inference_steps"])
        add_lora(self.unet)
        self.factors = [parameter for parameter in self.unet.parameters() if parameter.requires_grad]
        settings = self.config["optimizer"]
        self.max_grad_norm = settings["max_grad_norm"]
        adamw = dict(settings["adamw"])
        if (moments := adamw.pop("moments", "f32")) != "f32":
            sys.exit(f"{config}: optimizer.adamw.moments is {moments}, and torch's optimizer has f32 alone")
        self.optimizer = torch.optim.AdamW(self.factors, lr=settings["learning_rate"], fused=True, **adamw)

    @torch.no_grad()
    def encode(self, prompts):
        ids = self.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        return self.text(ids)[0]

    def decode(self, latents):
        return (self.vae.decode(latents / self.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)

    def update(self):
        nn.utils.clip_grad_norm_(self.factors, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


# The tracked step of both sides, which otherwise is drawn.
MID_STEP = 17


@case("refl_step")
def refl_step():
    tiny, reward = Tiny("configs/refl/tiny.toml", "DDPMScheduler"), BlipReward(REWARD)
    settings, prompts = tiny.config["algo"]["refl"], tiny.config["prompts"]["list"]
    batch_size, scheduler = settings["batch_size"], tiny.scheduler

    def step():
        batch = [prompts[index] for index in torch.randperm(len(prompts))[:batch_size]]
        text = tiny.encode(batch)
        latents = torch.randn(batch_size, 4, 8, 8) * scheduler.init_noise_sigma
        with torch.no_grad():
            for timestep in scheduler.timesteps[:MID_STEP]:
                latents = scheduler.step(tiny.unet(latents, timestep, encoder_hidden_states=text).sample, timestep, latents).prev_sample
        timestep = scheduler.timesteps[MID_STEP]
        noise_pred = tiny.unet(latents, timestep, encoder_hidden_states=text).sample
        images = tiny.decode(scheduler.step(noise_pred, timestep, latents).pred_original_sample)
        rewards = reward(images, batch)
        loss = F.relu(settings["margin"] - rewards).mean() * settings["grad_scale"]
        # What a log line shows.
        assert torch.isfinite(loss).item() and rewards.tolist()
        loss.backward()
        tiny.update()
    return step


IMAGES, MINIBATCH, GUIDANCE = 8, 4, 5.0


def brightness(images):
    return (images.mean((2, 3)) * torch.tensor([0.299, 0.587, 0.114])).sum(1)


@case("ddpo_epoch")
def ddpo_epoch():
    """ddpo-pytorch's loop, of which TRL's trainer is a copy, without either's dependencies."""
    tiny = Tiny("configs/ddpo/tiny.toml", "DDIMScheduler")
    section, prompts, timesteps = tiny.config["algo"]["ddpo"], tiny.config["prompts"]["list"], tiny.scheduler.timesteps

    def predict(latents, timestep, text):
        both = tiny.unet(torch.cat([latents] * 2), torch.cat([timestep] * 2), encoder_hidden_states=text).sample
        unconditional, conditional = both.chunk(2)
        return unconditional + GUIDANCE * (conditional - unconditional)

    transition = functools.partial(ddim_with_log_prob, tiny.scheduler, eta=tiny.config["scheduler"]["eta"])

    @torch.no_grad()
    def rollout():
        batch = [prompts[index] for index in torch.randint(len(prompts), (IMAGES,))]
        text, negative = tiny.encode(batch), tiny.encode([""])
        visited, log_probs = [torch.randn(IMAGES, 4, 8, 8)], []
        both = torch.cat([negative.expand(IMAGES, -1, -1), text])
        for timestep in timesteps:
            sample, log_prob = transition(predict(visited[-1], timestep.expand(IMAGES), both), timestep.expand(IMAGES), visited[-1])
            visited.append(sample)
            log_probs.append(log_prob)
        rewards = brightness(tiny.decode(visited[-1]))
        advantages, most = (rewards - rewards.mean()) / (rewards.std(unbiased=False) + 1e-8), section["adv_clip_max"]
        return text, negative, torch.stack(visited, 1), torch.stack(log_probs, 1), advantages.clamp(-most, most)

    def epoch():
        text, negative, visited, old_log_probs, advantages = rollout()
        for rows in torch.randperm(IMAGES).split(MINIBATCH):
            both = torch.cat([negative.expand(MINIBATCH, -1, -1), text[rows]])
            orders = torch.stack([torch.randperm(len(timesteps)) for _ in rows])
            for steps in orders.T:
                sample, timestep = visited[rows, steps], timesteps[steps]
                _, log_prob = transition(predict(sample, timestep, both), timestep, sample, prev_sample=visited[rows, steps + 1])
                difference = log_prob - old_log_probs[rows, steps]
                ratio, clip = difference.exp(), section["clip_range"]
                losses = torch.maximum(-advantages[rows] * ratio, -advantages[rows] * ratio.clamp(1 - clip, 1 + clip))
                loss = losses.mean()
                # What a log line shows.
                assert math.isfinite(loss.item()) and math.isfinite((difference.detach() ** 2 / 2).mean().item())
                (loss / len(timesteps)).backward()
            tiny.update()
    return epoch


def ddim_with_log_prob(scheduler, noise_pred, timestep, sample, eta, prev_sample=None):
    """DDIM's reverse step as a distribution, each row at its own timestep; source: ddpo-pytorch `ddim_with_logprob.py`."""
    per_row = lambda values: values.view(-1, 1, 1, 1)
    previous = timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    alpha = per_row(scheduler.alphas_cumprod[timestep])
    earlier = scheduler.alphas_cumprod[previous.clamp(min=0)]
    alpha_previous = per_row(torch.where(previous >= 0, earlier, scheduler.final_alpha_cumprod))
    variance = (1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous)
    std = eta * variance.sqrt()
    clean = (sample - (1 - alpha).sqrt() * noise_pred) / alpha.sqrt()
    mean = alpha_previous.sqrt() * clean + (1 - alpha_previous - std**2).sqrt() * noise_pred
    if prev_sample is None:
        prev_sample = mean + std * torch.randn_like(mean)
    log_prob = -((prev_sample.detach() - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
    return prev_sample, log_prob.mean((1, 2, 3))


@case("ddpo_epoch_trl")
def ddpo_epoch_trl():
    """The same epoch by TRL's own trainer; needs trl==0.23.1 and what it needs."""
    os.environ.update({"ACCELERATE_USE_CPU": "true", "WANDB_MODE": "disabled"})
    from accelerate import PartialState
    from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline
    # The pipeline logs before its trainer exists, which accelerate refuses without a state.
    PartialState(cpu=True)
    config = tomllib.loads((ROOT / "configs/ddpo/tiny.toml").read_text())
    section, optimizer, prompts = config["algo"]["ddpo"], config["optimizer"], config["prompts"]["list"]
    steps = config["scheduler"]["num_inference_steps"]
    pipeline = DefaultDDPOStableDiffusionPipeline(str(PIPELINE), use_lora=True)
    settings = DDPOConfig(
        mixed_precision="no", allow_tf32=False, sample_num_steps=steps, sample_eta=config["scheduler"]["eta"],
        sample_guidance_scale=GUIDANCE, sample_batch_size=IMAGES, sample_num_batches_per_epoch=1, train_batch_size=MINIBATCH,
        train_gradient_accumulation_steps=1, train_num_inner_epochs=1, train_timestep_fraction=1.0, train_cfg=True,
        train_learning_rate=optimizer["learning_rate"], train_adam_weight_decay=optimizer["adamw"]["weight_decay"],
        train_max_grad_norm=optimizer["max_grad_norm"], train_clip_range=section["clip_range"], train_adv_clip_max=section["adv_clip_max"],
        per_prompt_stat_tracking=False, save_freq=10**9, num_epochs=10**9, tracker_project_name="bench",
    )
    draw = lambda: (prompts[torch.randint(len(prompts), ()).item()], {})
    trainer = DDPOTrainer(settings, lambda images, texts, metadata: (brightness(images.float()), {}), draw, pipeline)
    pipeline.set_progress_bar_config(disable=True)
    counter = iter(range(1, 10**9))
    return lambda: trainer.step(next(counter), 0)


# Single operations, as the networks call them.


def both(name, shapes, apply, parameters=()):
    """`NAME_forward`, and `NAME_backward`: forward, sum, and the gradients of all inputs and parameters."""
    def draw(shape, requires_grad):
        return torch.randn(shape).requires_grad_(requires_grad)

    def set_up(requires_grad):
        inputs = [draw(shape, requires_grad) for shape in shapes]
        weights = [draw(shape, requires_grad) for shape in parameters]
        return inputs + weights

    @case(f"{name}_forward")
    def forward_case():
        tensors = set_up(False)
        return forward(lambda: apply(*tensors))

    @case(f"{name}_backward")
    def backward_case():
        tensors = set_up(True)
        return lambda: torch.autograd.grad(apply(*tensors).sum(), tensors)


both("attention_8x4096x40", [(1, 4096, 320)] * 3, lambda q, k, v: attend(q, k, v, 8))
CONVOLUTIONS = [(1, 320, 64, 64), (1, 640, 32, 32), (1, 1280, 16, 16), (1, 1280, 8, 8), (1, 128, 256, 256), (8, 64, 16, 16), (8, 128, 8, 8)]
for b, c, h, w in CONVOLUTIONS:
    both(f"conv3x3_{b}x{c}x{h}x{w}", [(b, c, h, w)], lambda x, w, b: F.conv2d(x, w, b, padding=1), [(c, c, 3, 3), (c,)])
both("conv1x1_1x320x64x64", [(1, 320, 64, 64)], F.conv2d, [(320, 320, 1, 1), (320,)])
both("linear_4096x320_2560", [(4096, 320)], F.linear, [(2560, 320), (2560,)])
both("linear_577x1024_4096", [(577, 1024)], F.linear, [(4096, 1024), (4096,)])
both("group_norm_silu_1x320x64x64", [(1, 320, 64, 64)], lambda x, w, b: F.silu(F.group_norm(x, 32, w, b)), [(320,), (320,)])
both("layer_norm_4096x320", [(1, 4096, 320)], lambda x, w, b: F.layer_norm(x, (320,), w, b), [(320,), (320,)])
both("softmax_8x1024x1024", [(8, 1024, 1024)], lambda x: F.softmax(x, -1))
both("gelu_4096x1280", [(4096, 1280)], F.gelu)
both("silu_1x320x64x64", [(1, 320, 64, 64)], F.silu)


def run_round(work, seconds):
    """The median milliseconds of as many repetitions as begin within `seconds`, one at least."""
    times, began = [], time.perf_counter()
    while not times or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def peak_kib():
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def serve(answer):
    work = None
    for line in sys.stdin:
        request, _, argument = line.strip().partition(" ")
        if request == "setup":
            work = CASES[argument]()
            answer("ready")
        elif request == "run":
            answer(run_round(work, float(argument)))
        elif request == "peak":
            answer(peak_kib())
        elif request == "quit":
            return


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    # Libraries talk on standard output; the answers have it to themselves.
    answers, sys.stdout = sys.stdout, sys.stderr
    if sys.argv[1:] == ["--list"]:
        print("\n".join(CASES), file=answers)
    else:
        serve(lambda value: print(value, file=answers, flush=True))
