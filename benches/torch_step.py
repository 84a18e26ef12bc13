#!/usr/bin/env python3
"""The rival: one training step of a configuration of ours in PyTorch and diffusers, on the CPU.

usage: "$(scripts/rival-python)" benches/torch_step.py CONFIG.toml [--mode plain|channels_last|compile] [--repeat N]

The same work as a step of `ddpm bench step CONFIG.toml`, written as well as PyTorch allows: noise and timesteps drawn,
forward, loss, backward, gradient clipping, fused AdamW, moving averages by multi-tensor operations. What ours does
besides, reading and decoding images, the rival is spared: it trains on the same batch again and again.

Prints one JSON object on one line. `peak_bytes` is the process's largest resident set, as ours is.
"""

import argparse
import json
import os
import pathlib
import statistics
import time
import tomllib

WARM_UP = 2


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=pathlib.Path)
    parser.add_argument("--mode", choices=["plain", "channels_last", "compile"], default="plain")
    parser.add_argument("--repeat", type=int, default=10, metavar="N", help="measured steps (default: 10)")
    parser.add_argument("--batch", type=int, metavar="N", help="images per step (default: train.batch_size)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="(default: all cores)")
    return parser.parse_args()


args = arguments()
os.environ["OMP_NUM_THREADS"] = str(args.threads)  # read when PyTorch is loaded, hence before the import

import torch  # noqa: E402
from diffusers import UNet2DModel  # noqa: E402


def build(config):
    """The network of a configuration of ours: [model] has diffusers' names, the rest of it comes from [data]."""
    size, channels = config["data"]["image_size"], config["data"]["channels"]
    shape = dict(sample_size=size, in_channels=channels, out_channels=channels)
    # Left out, ours is one head; diffusers' own default is 8 channels a head.
    return UNet2DModel(**{**shape, "attention_head_dim": None, **config["model"]}).train()


class Step:
    """A training step on a batch that stays the same."""

    def __init__(self, config, batch, mode):
        train, data = config["train"], config["data"]
        self.model = build(config)
        layout = torch.contiguous_format
        if mode == "channels_last":
            layout = torch.channels_last
            self.model = self.model.to(memory_format=layout)
        self.network = torch.compile(self.model) if mode == "compile" else self.model
        shape = (batch, data["channels"], data["image_size"], data["image_size"])
        self.x_start = torch.rand(shape).mul(2).sub(1).contiguous(memory_format=layout)
        classes = config["model"].get("num_class_embeds")
        self.labels = torch.randint(0, classes, (batch,)) if classes else None
        self.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float()
        self.parameters = list(self.model.parameters())
        self.decays = train.get("ema_decays", [0.9999])
        self.averages = [[p.detach().clone() for p in self.parameters] for _ in self.decays]
        self.clip = train.get("clip_grad_norm", 1.0)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)

    def __call__(self):
        noise = torch.randn_like(self.x_start)
        t = torch.randint(0, len(self.alphas_cumprod), (len(noise),))
        signal = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        x_t = signal.sqrt() * self.x_start + (1 - signal).sqrt() * noise
        loss = torch.nn.functional.mse_loss(self.network(x_t, t, class_labels=self.labels).sample, noise)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip > 0:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            for decay, average in zip(self.decays, self.averages):
                torch._foreach_lerp_(average, self.parameters, 1 - decay)
        return loss.item()


def peak_bytes():
    """The largest resident set of this process; None where the system does not tell."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def main():
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = tomllib.loads(args.config.read_text())
    batch = args.batch or config["train"]["batch_size"]
    step = Step(config, batch, args.mode)
    times = []
    for repetition in range(WARM_UP + args.repeat):
        start = time.perf_counter()
        loss = step()
        if repetition >= WARM_UP:
            times.append((time.perf_counter() - start) * 1e3)
    median = statistics.median(times)
    result = {
        "framework": f"torch {torch.__version__}",
        "mode": args.mode,
        "parameters": sum(p.numel() for p in step.parameters),
        "batch_size": batch,
        "threads": torch.get_num_threads(),
        "median_ms": median,
        "min_ms": min(times),
        "max_ms": max(times),
        "images_per_s": batch / median * 1e3,
        "peak_bytes": peak_bytes(),
        "loss": loss,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
