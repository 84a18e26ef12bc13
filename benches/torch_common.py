"""What the rival's benchmarks share: the network of a configuration of ours in diffusers, a clock, and the answers.

Import it after OMP_NUM_THREADS is set: PyTorch reads that when it is loaded.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import sys
import time
import tomllib

import diffusers
import torch

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# mode: (memory format, arguments of torch.compile or None)
MODES = {
    "plain": (torch.contiguous_format, None),
    "channels_last": (torch.channels_last, None),
    "compile": (torch.contiguous_format, {}),
    "reduce-overhead": (torch.channels_last, {"mode": "reduce-overhead"}),
    "max-autotune": (torch.channels_last, {"mode": "max-autotune"}),
}


def positive(text):
    """The value of an option that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


def add_arguments(parser, batch):
    """The options that both benchmarks take; `batch` says what the default batch is."""
    parser.add_argument("config", type=pathlib.Path, metavar="CONFIG", help="a configuration of ours, TOML or the same as JSON")
    parser.add_argument("--mode", choices=list(MODES), default="plain",
                        help="reduce-overhead and max-autotune are channels_last and torch.compile with CUDA graphs (default: plain)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: cpu)")
    parser.add_argument("--precision", choices=list(DTYPES), default="f32", help="(default: f32)")
    parser.add_argument("--tf32", action="store_true", help="let f32 products run as TF32")
    parser.add_argument("--repeat", type=int, default=10, metavar="N", help="measured repetitions (default: 10)")
    parser.add_argument("--batch", type=positive, metavar="N", help=f"images (default: {batch})")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="(default: all cores)")
    parser.add_argument("--serve", action="store_true",
                        help="warm up, say so in a line of JSON, then answer each line `measure N` on stdin with another")


def prepare(args):
    """Settings of the process. cuDNN may choose its algorithms by trying them: that is what makes PyTorch fast."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = args.tf32
    if args.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"error": "PyTorch finds no CUDA device"}), flush=True)
        sys.exit(4)


def read(path):
    """A configuration, with what our defaults would add to its [diffusion] and [loss]."""
    config = json.loads(path.read_text()) if path.suffix == ".json" else tomllib.loads(path.read_text())
    defaults = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
                "variance_type": "fixed_small"}
    config["diffusion"] = defaults | config.get("diffusion", {})
    config["loss"] = {"kind": "simple", "vlb_lambda": 0.001} | config.get("loss", {})
    return config


def learns_variance(config):
    return config["diffusion"]["variance_type"].startswith("learned")


def build(config):
    """The network of a configuration: [model] has diffusers' names, the rest of it comes from [data]."""
    size, channels = config["data"]["image_size"], config["data"]["channels"]
    shape = dict(sample_size=size, in_channels=channels, out_channels=channels * (1 + learns_variance(config)))
    # Left out, ours is one head; diffusers' own default is 8 channels a head.
    return diffusers.UNet2DModel(**{**shape, "attention_head_dim": None, **config["model"]})


def betas(diffusion):
    """The two schedules of our presets, f64."""
    steps = diffusion["num_train_timesteps"]
    if diffusion["beta_schedule"] == "linear":
        return torch.linspace(diffusion["beta_start"], diffusion["beta_end"], steps, dtype=torch.float64)
    if diffusion["beta_schedule"] == "squaredcos_cap_v2":
        at = lambda i: math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
        return torch.tensor([min(1 - at(i + 1) / at(i), 0.999) for i in range(steps)], dtype=torch.float64)
    sys.exit(f"error: diffusion.beta_schedule = {diffusion['beta_schedule']} is not known here")


class Clock:
    """Marks in the work of a device, without waiting for it: CUDA events, or the time of day on a CPU."""

    def __init__(self, device):
        self.is_cuda = device == "cuda"

    def mark(self):
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def finish(self):
        if self.is_cuda:
            torch.cuda.synchronize()

    def ms(self, start, end):
        """Milliseconds between two marks; call finish before."""
        return start.elapsed_time(end) if self.is_cuda else (end - start) * 1e3


def memory(device):
    """Peak bytes: on CUDA what tensors took and what the allocator held for them, on a CPU the largest resident set."""
    if device == "cuda":
        return {"peak_bytes": torch.cuda.max_memory_allocated(), "peak_reserved_bytes": torch.cuda.max_memory_reserved()}
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return {"peak_bytes": None}
    return {"peak_bytes": next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))}


def facts(args, batch, parameters):
    """What was measured: who compares must see that both did the same."""
    result = {"framework": f"torch {torch.__version__}", "diffusers": diffusers.__version__, "mode": args.mode,
              "parameters": parameters, "batch_size": batch, "precision": args.precision,
              "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu", "threads": torch.get_num_threads()}
    if args.device == "cuda":
        result["cudnn"] = torch.backends.cudnn.version()
    return result


def summary(times, batch):
    """The times of all repetitions in one."""
    median = statistics.median(times)
    return {"median_ms": median, "min_ms": min(times), "max_ms": max(times), "images_per_s": batch / median * 1e3}


def answer(args, measure, about, started):
    """Measures once, or as often as stdin asks: so two programs can be measured in turn, each warmed up once."""
    if not args.serve:
        print(json.dumps({**about, **measure(args.repeat)}), flush=True)
        return
    print(json.dumps({"ready": True, "start_s": time.perf_counter() - started, **about}), flush=True)
    for line in sys.stdin:
        match line.split():
            case ["measure", number] if number.isdecimal() and int(number) > 0:
                print(json.dumps({**about, **measure(int(number))}), flush=True)
            case ["quit"]:
                return
            case _:
                print(json.dumps({"error": f"`measure N` or `quit` expected, not {line.strip()!r}"}), flush=True)
