#!/usr/bin/env python3
"""The rival: one training step of a configuration of ours in PyTorch and diffusers.

usage: "$(scripts/rival-python)" benches/torch_step.py CONFIG [--mode MODE] [--device cuda] [--precision bf16] ...

The same work as a step of `ddpm bench step CONFIG`, written as well as PyTorch allows: noise and timesteps drawn, forward,
loss, backward, gradient clipping, fused AdamW, moving averages by multi-tensor operations; bf16 and f16 by autocast over
f32 weights. With torch.compile, network and loss are compiled as one. What ours does besides, reading, decoding and
uploading images, the rival is spared: it trains on the same batch again and again.

Prints one JSON object on one line. `peak_bytes` is what tensors took at most on a GPU (`peak_reserved_bytes` what the
allocator held), and the process's largest resident set on a CPU, as ours is.
"""

import argparse
import contextlib
import os
import statistics
import time

STARTED = time.perf_counter()
# Of a GPU the first steps choose algorithms, and capture graphs where the network is compiled so.
WARM_UP = {"cpu": 2, "cuda": 6}
PHASES = ["forward", "backward", "optimizer"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_arguments(parser, "train.batch_size")
    return parser.parse_args()


def threads():
    """--threads, before anything is imported that reads OMP_NUM_THREADS."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--threads", default=os.cpu_count())
    return str(parser.parse_known_args()[0].threads)


os.environ["OMP_NUM_THREADS"] = threads()

import torch  # noqa: E402

import torch_common as common  # noqa: E402
from torch_loss import Process  # noqa: E402


class Step:
    """A training step on a batch that stays the same."""

    def __init__(self, config, batch, args):
        train, data = config["train"], config["data"]
        layout, compiled = common.MODES[args.mode]
        self.clock = common.Clock(args.device)
        self.process = Process(config, args.device)
        self.model = common.build(config).train().to(args.device, memory_format=layout)
        self.compute_loss = self.forward if compiled is None else torch.compile(self.forward, **compiled)
        self.captures = args.device == "cuda" and bool(compiled)
        shape = (batch, data["channels"], data["image_size"], data["image_size"])
        self.x_start = torch.rand(shape, device=args.device).mul(2).sub(1).contiguous(memory_format=layout)
        classes = config["model"].get("num_class_embeds")
        self.labels = torch.randint(0, classes, (batch,), device=args.device) if classes else None
        self.autocast = contextlib.nullcontext
        if args.precision != "f32":
            self.autocast = lambda: torch.autocast(args.device, common.DTYPES[args.precision])
        self.parameters = list(self.model.parameters())
        self.decays = train.get("ema_decays", [0.9999])
        self.averages = [[p.detach().clone() for p in self.parameters] for _ in self.decays]
        self.clip = train.get("clip_grad_norm", 1.0)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        self.scaler = torch.amp.GradScaler(args.device, enabled=args.precision == "f16")

    def forward(self, x_t, t, noise):
        with self.autocast():
            output = self.model(x_t, t, class_labels=self.labels, return_dict=False)[0]
        return self.process.loss(output, self.x_start, x_t, t, noise)

    def update(self):
        if self.clip > 0:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            for decay, average in zip(self.decays, self.averages):
                torch._foreach_lerp_(average, self.parameters, 1 - decay)

    def __call__(self):
        """The loss, still on the device, and the marks between the phases."""
        marks = [self.clock.mark()]
        if self.captures:
            torch.compiler.cudagraph_mark_step_begin()
        noise = torch.randn_like(self.x_start)
        t = torch.randint(0, self.process.steps, (len(noise),), device=noise.device)
        loss = self.compute_loss(self.process.q_sample(self.x_start, t, noise), t, noise)
        marks.append(self.clock.mark())
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        marks.append(self.clock.mark())
        self.update()
        marks.append(self.clock.mark())
        return loss.detach(), marks

    def measure(self, repeat):
        """`repeat` steps one after the other: on a GPU nothing is waited for before the last."""
        if self.clock.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        marks = []
        for _ in range(repeat):
            loss, of_step = self()  # a captured step overwrites the loss of the one before
            marks.append(of_step)
        self.clock.finish()
        phases = zip(*([self.clock.ms(a, b) for a, b in zip(m, m[1:])] for m in marks))
        times = [self.clock.ms(m[0], m[-1]) for m in marks]
        return {
            **common.summary(times, len(self.x_start)),
            "phases_ms": {name: statistics.median(values) for name, values in zip(PHASES, phases)},
            **common.memory("cuda" if self.clock.is_cuda else "cpu"),
            "loss": loss.item(),
        }


def main():
    args = arguments()
    common.prepare(args)
    config = common.read(args.config)
    batch = args.batch or config["train"]["batch_size"]
    step = Step(config, batch, args)
    for _ in range(WARM_UP[args.device]):
        step()
    step.clock.finish()
    about = common.facts(args, batch, sum(p.numel() for p in step.parameters))
    common.answer(args, step.measure, {**about, "loss_kind": step.process.described}, STARTED)


if __name__ == "__main__":
    main()
