#!/usr/bin/env python3
"""The rival at sampling: DDIM with diffusers' network and scheduler, weights that were never trained.

usage: "$(scripts/rival-python)" benches/torch_sample.py CONFIG [--mode MODE] [--device cuda] [--precision bf16] [--steps S] ...

What `ddpm bench sample CONFIG` does: a batch of images from noise. The weights have the precision that is asked for, which
is faster than autocast. Prints one JSON object on one line; one repetition is the whole batch.
"""

import argparse
import time

STARTED = time.perf_counter()

import diffusers  # noqa: E402
import torch  # noqa: E402

import torch_common as common  # noqa: E402

WARM_UP = 1


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_arguments(parser, "64")
    parser.add_argument("--steps", type=int, default=50, metavar="S", help="of the sampler (default: 50)")
    return parser.parse_args()


class Sampler:
    """Draws the same batch again and again."""

    def __init__(self, config, batch, args):
        data, diffusion = config["data"], config["diffusion"]
        layout, compiled = common.MODES[args.mode]
        dtype = common.DTYPES[args.precision]
        self.clock = common.Clock(args.device)
        self.model = common.build(config).eval().requires_grad_(False).to(args.device, dtype, memory_format=layout)
        self.network = self.model if compiled is None else torch.compile(self.model, **compiled)
        shape = (batch, data["channels"], data["image_size"], data["image_size"])
        self.noise = torch.randn(shape, device=args.device, dtype=dtype).contiguous(memory_format=layout)
        classes = config["model"].get("num_class_embeds")
        self.labels = torch.randint(0, classes, (batch,), device=args.device) if classes else None
        self.scheduler = diffusers.DDIMScheduler(
            num_train_timesteps=diffusion["num_train_timesteps"], trained_betas=common.betas(diffusion).float().numpy())
        self.scheduler.set_timesteps(args.steps)
        # On the device for the network, as numbers for the scheduler: neither then waits for the other.
        self.timesteps = self.scheduler.timesteps.tolist()
        self.on_device = self.scheduler.timesteps.to(args.device)

    @torch.inference_mode()
    def __call__(self):
        x_t = self.noise
        for number, t in enumerate(self.timesteps):
            if self.clock.is_cuda:
                torch.compiler.cudagraph_mark_step_begin()
            output = self.network(x_t, self.on_device[number], class_labels=self.labels, return_dict=False)[0]
            # A learned variance is of no use to DDIM.
            x_t = self.scheduler.step(output[:, : x_t.shape[1]], t, x_t, return_dict=False)[0]
        return x_t

    def measure(self, repeat):
        if self.clock.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(repeat):
            start = self.clock.mark()
            x_start = self()
            end = self.clock.mark()
            self.clock.finish()
            times.append(self.clock.ms(start, end))
        return {**common.summary(times, len(self.noise)), "steps": len(self.timesteps),
                "finite": bool(x_start.isfinite().all()), **common.memory("cuda" if self.clock.is_cuda else "cpu")}


def main():
    args = arguments()
    common.prepare(args)
    config = common.read(args.config)
    batch = args.batch or 64
    sampler = Sampler(config, batch, args)
    for _ in range(WARM_UP + 2 * (common.MODES[args.mode][1] is not None)):
        sampler()
    sampler.clock.finish()
    about = common.facts(args, batch, sum(p.numel() for p in sampler.model.parameters()))
    common.answer(args, sampler.measure, about, STARTED)


if __name__ == "__main__":
    main()
