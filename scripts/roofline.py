#!/usr/bin/env python3
"""The roofline of a training step: what it must compute and move, by kind of operation, and how long that takes at least.

usage: scripts/roofline.py CONFIG.toml [--batch N] [--sampling] [--gpu h200|h100|--roofs FILE] [--reach MATRIX,MEMORY] [--markdown] [--check]

Walks the UNet of a configuration as crates/model/src/unet builds it and counts, for each operation, floating-point operations
(two for a multiply-add) and the fewest bytes through device memory under the plan for CUDA: bf16 activations and weights,
each operand read once, each result written once, and one kernel each for

  - a convolution with its bias and, where there is one, the residual; its two gradients
  - group norm with the time's offset or scale and shift, SiLU and dropout, forward as backward; backward it also sums the bias'
    gradient of the convolution before it, and writes the gradient of a joined input in two parts
  - attention, scores never written; backward computes them again (5 products for forward's 2)
  - u8 to x_t, with noise made in registers; the loss with its gradient, with the same noise made again
  - AdamW, the averages and the bf16 copy of the weights: one pass, after one that sums the gradient's squares
  - with --sampling, a step of a sampler instead: the network forward, and x_t to the next x_t, with noise made in registers

An operation takes the longer of its two times; the step takes the sum. That is a floor, not a forecast: no library's
convolutions reach the matrix rate, and small ones do not fill the chip. --reach 0.6,0.85 says what it would be if all kernels
reached those shares of the two rates; the shares are guesses until something is measured. --check (needs scripts/rival-python) compares
parameters and FLOP with those of diffusers' network under torch.utils.flop_counter. --roofs takes the two rates from what
benches/torch_roofs.py printed on a card, or from the gpu-check.json of scripts/gpu-check, which measures them first.
"""

import argparse
import json
import pathlib
import sys
import tomllib
from typing import NamedTuple

HALF, SINGLE = 2, 4
# FLOP/s of bf16 matrix products with f32 sums, bytes/s of device memory, and where the numbers come from.
GPUS = {
    "h200": (790e12, 4.3e12, "measured on an H200: a product of 8192 x 8192 matrices of random numbers, a device-to-device copy"),
    "h100": (989e12, 3.35e12, "NVIDIA's data sheet for the H100 SXM, not measured"),
}
KINDS = ["convolution", "linear", "attention", "group norm + SiLU", "resampling", "input and loss", "optimizer"]


class Operation(NamedTuple):
    """One kernel."""

    kind: str
    phase: str
    flop: float
    bytes: float


class Convolution(NamedTuple):
    """A convolution of the network as a library sees it; `size` is the input's."""

    batch: int
    cin: int
    cout: int
    size: int
    kernel: int
    stride: int
    pads: tuple
    residual: bool
    first: bool


class Attention(NamedTuple):
    """An attention layer of the network as a library sees it."""

    batch: int
    tokens: int
    heads: int
    head_dim: int


class Network:
    """Walks a UNet2DModel, layer by layer in the order of the data, and collects operations and parameters."""

    def __init__(self, config, batch):
        model, data = config["model"], config["data"]
        self.batch, self.size, self.parameters = batch, data["image_size"], 0
        # Outputs of all projections of the time, and parameters whose gradients have 16 bits.
        self.time_outputs, self.narrow = 0, 0
        self.operations, self.convolutions, self.attentions = [], [], []
        self.head_dim = model.get("attention_head_dim")
        # Where diffusers pads nothing when it makes an image smaller, it adds a row below and a column on the right.
        self.down_pads = (0, 1) if model.get("downsample_padding", 1) == 0 else (1, 1)
        self.scale_shift = model.get("resnet_time_scale_shift", "default") == "scale_shift"
        self.averages = len(config.get("train", {}).get("ema_decays", [0.9999]))
        learned = config.get("diffusion", {}).get("variance_type", "fixed_small").startswith("learned")
        self.walk(model, data["channels"], data["channels"] * (1 + learned))

    def add(self, kind, phase, flop, count):
        self.operations.append(Operation(kind, phase, flop, count))

    def pixels(self, channels, size=None):
        """Elements of an activation."""
        return self.batch * channels * (size or self.size) ** 2

    def conv(self, cin, cout, kernel=3, stride=1, residual=False, first=False):
        """Convolution; the gradient of a weight has 16 bits, but for a product's. The network's input needs none."""
        pads = self.down_pads if stride == 2 else (kernel // 2,) * 2
        self.convolutions.append(Convolution(self.batch, cin, cout, self.size, kernel, stride, pads, residual, first))
        small = self.size // stride
        x, y, weights = self.pixels(cin), self.pixels(cout, small), cin * cout * kernel**2
        flop = 2 * y * cin * kernel**2
        self.add("convolution", "forward", flop, HALF * (x + weights + y + (y if residual else 0)))
        if not first:
            self.add("convolution", "backward", flop, HALF * (x + weights + y))
        self.add("convolution", "backward", flop, HALF * (x + y) + (SINGLE if kernel == 1 else HALF) * weights)
        self.narrow += weights if kernel > 1 else 0
        self.parameters += weights + cout
        self.size = small

    def linear(self, cin, cout, rows):
        """A linear layer and its gradients."""
        flop, weights = 2 * rows * cin * cout, cin * cout
        self.add("linear", "forward", flop, HALF * (rows * (cin + cout) + weights))
        self.add("linear", "backward", flop, HALF * (rows * (cin + cout) + weights))
        self.add("linear", "backward", flop, HALF * rows * (cin + cout) + SINGLE * weights)
        self.parameters += weights + cout

    def norm(self, channels, joined=False):
        """Group norm and what is fused with it. About ten operations a pixel, of which no matrix unit does any."""
        x = self.pixels(channels)
        # Two tensors are also written side by side.
        self.add("group norm + SiLU", "forward", 0, HALF * (3 if joined else 2) * x)
        # Reads x and the gradient, adds to what the skip connection brought, writes; in two parts where there were two.
        self.add("group norm + SiLU", "backward", 0, HALF * 4 * x)
        self.parameters += 2 * channels

    def resnet(self, cin, cout, joined=False):
        self.norm(cin, joined)
        self.conv(cin, cout)
        self.time_outputs += cout * (1 + self.scale_shift)
        self.norm(cout)
        self.conv(cout, cout, residual=True)
        if cin != cout:
            self.conv(cin, cout, kernel=1)

    def attention(self, channels):
        tokens = self.size**2
        self.norm(channels)
        for _ in range(4):  # query, key, value, output
            self.linear(channels, channels, self.batch * tokens)
        head_dim = self.head_dim or channels
        self.attentions.append(Attention(self.batch, tokens, channels // head_dim, head_dim))
        product, x = 2 * self.batch * tokens**2 * channels, self.pixels(channels)
        self.add("attention", "forward", 2 * product, HALF * 4 * x)
        self.add("attention", "backward", 5 * product, HALF * 8 * x)

    def upsample(self, channels):
        for phase in ["forward", "backward"]:
            self.add("resampling", phase, 0, HALF * 5 * self.pixels(channels))
        self.size *= 2
        self.conv(channels, channels)

    def walk(self, model, cin, cout):
        widths, layers = model["block_out_channels"], model.get("layers_per_block", 2)
        self.embedding = 4 * widths[0]
        image = self.pixels(cin)
        self.add("input and loss", "noising", 0, image * (1 + HALF))
        # x_t and the predicted x_0 read and written, the output read, the next input written.
        self.add("input and loss", "sampler", 0, image * (4 * SINGLE + 2 * HALF))
        self.linear(widths[0], self.embedding, self.batch)
        self.linear(self.embedding, self.embedding, self.batch)
        if classes := model.get("num_class_embeds"):
            self.parameters += classes * self.embedding
        self.conv(cin, widths[0], first=True)
        skips, channels = [widths[0]], widths[0]
        for level, (width, kind) in enumerate(zip(widths, model["down_block_types"])):
            for _ in range(layers):
                self.resnet(channels, width)
                channels = width
                if kind.startswith("Attn"):
                    self.attention(channels)
                skips.append(channels)
            if level < len(widths) - 1:
                self.conv(channels, channels, stride=2)
                skips.append(channels)
        self.resnet(channels, channels)
        if model.get("add_attention", True):
            self.attention(channels)
        self.resnet(channels, channels)
        for level, (width, kind) in enumerate(zip(reversed(widths), model["up_block_types"])):
            for _ in range(layers + 1):
                self.resnet(channels + skips.pop(), width, joined=True)
                channels = width
                if kind.startswith("Attn"):
                    self.attention(channels)
            if level < len(widths) - 1:
                self.upsample(channels)
        self.norm(channels)
        self.conv(channels, cout)
        self.linear(self.embedding, self.time_outputs, self.batch)  # of all residual blocks together
        # The output is read and its gradient written; the target is made again from image and noise.
        self.add("input and loss", "backward", 0, HALF * 2 * self.pixels(cout) + image)
        # Gradient read twice (norm, update); weights, two moments and averages read and written; weights again as bf16.
        gradient = 2 * (SINGLE * (self.parameters - self.narrow) + HALF * self.narrow)
        self.add("optimizer", "optimizer", 0, gradient + self.parameters * (2 * SINGLE * (3 + self.averages) + HALF))


def measured_roofs(text):
    """The rates in a file of ours, as an entry of GPUS; an option's type."""
    try:
        document = json.loads(pathlib.Path(text).read_text())
        roofs = document.get("roofs") or document
        return roofs["flop_per_s"], roofs["bytes_per_s"], f"measured on {roofs.get('device', 'the card')}: {text}"
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"{text} has no measured roofs: {type(error).__name__}: {error}") from None


def floor_ms(operation, gpu, reach=(1, 1)):
    """Milliseconds that matrix units and memory need, and the longer."""
    matrix, memory = operation.flop / gpu[0] / reach[0] * 1e3, operation.bytes / gpu[1] / reach[1] * 1e3
    return matrix, memory, max(matrix, memory)


def rows(network, gpu):
    """A row for each kind, and one for all."""
    table = []
    for kind in [*KINDS, "all"]:
        chosen = [operation for operation in network.operations if kind in (operation.kind, "all")]
        times = [floor_ms(operation, gpu) for operation in chosen]
        flop, moved = sum(o.flop for o in chosen), sum(o.bytes for o in chosen)
        table.append([kind, str(len(chosen)), f"{flop / 1e9:,.1f}", f"{moved / 1e9:.3f}", *(f"{sum(t[i] for t in times):.3f}" for i in range(3))])
    whole = float(table[-1][-1])
    for row in table:
        row.append(f"{float(row[-1]) / whole:.0%}")
    return table


def show(network, gpu, markdown):
    heading = ["", "kernels", "GFLOP", "GB", "matrix ms", "memory ms", "floor ms", "share"]
    table = rows(network, gpu)
    if markdown:
        print("| " + " | ".join(heading) + " |\n|" + " --- |" + " ---: |" * (len(heading) - 1))
        for row in table:
            print("| " + " | ".join(row) + " |")
        return
    for row in [heading, *table]:
        print(row[0].ljust(20) + "".join(cell.rjust(12) for cell in row[1:]))


def check(config, network, path):
    """Parameters and FLOP of diffusers' own network, on the device `meta`: nothing is computed."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "benches"))
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import torch_common
    with torch.device("meta"):
        model = torch_common.build(torch_common.read(path))
        image = torch.empty(1, config["data"]["channels"], *[config["data"]["image_size"]] * 2)
        classes = torch.zeros(1, dtype=torch.long) if config["model"].get("num_class_embeds") else None
        with FlopCounterMode(display=False) as counter:
            model(image, torch.zeros(1, dtype=torch.long), class_labels=classes).sample.sum().backward()
    theirs = counter.get_total_flops()
    ours = sum(operation.flop for operation in network.operations)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"parameters: {network.parameters:,} here, {parameters:,} in diffusers")
    print(f"GFLOP of an image, forward and backward: {ours / 1e9:.3f} here, {theirs / 1e9:.3f} by torch.utils.flop_counter "
          f"({ours / theirs - 1:+.2%})")
    for operation, flop in counter.get_flop_counts()["Global"].items():
        print(f"  {str(operation):40} {flop / 1e9:10.3f}")
    for kind in ["convolution", "linear", "attention"]:
        print(f"  here, {kind:34} {sum(o.flop for o in network.operations if o.kind == kind) / 1e9:10.3f}")
    return 0 if parameters == network.parameters and abs(ours / theirs - 1) < 0.02 else 1


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=pathlib.Path, metavar="CONFIG.toml")
    parser.add_argument("--batch", type=int, metavar="N", help="(default: train.batch_size)")
    parser.add_argument("--sampling", action="store_true", help="a step of a sampler instead of one of training")
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument("--gpu", choices=list(GPUS), default="h200", help="(default: h200)")
    rates.add_argument("--roofs", type=measured_roofs, metavar="FILE", help="rates that were measured on a card")
    parser.add_argument("--reach", type=lambda text: tuple(map(float, text.split(","))), metavar="MATRIX,MEMORY",
                        help="shares of the two rates to reckon with as well")
    parser.add_argument("--markdown", action="store_true", help="the table for docs/performance.md")
    parser.add_argument("--check", action="store_true", help="compare with diffusers and torch.utils.flop_counter")
    return parser.parse_args()


def main():
    args = arguments()
    config = tomllib.loads(args.config.read_text())
    if args.check:
        return check(config, Network(config, 1), args.config)
    batch = args.batch or config["train"]["batch_size"]
    network, gpu = Network(config, batch), args.roofs or GPUS[args.gpu]
    phases = ["forward", "sampler"] if args.sampling else ["noising", "forward", "backward", "optimizer"]
    network.operations = [operation for operation in network.operations if operation.phase in phases]
    print(f"{args.config.name}: {network.parameters:,} parameters, batch {batch}, {gpu[0] / 1e12:.0f} TFLOP/s and "
          f"{gpu[1] / 1e12:.2f} TB/s ({gpu[2]})\n")
    show(network, gpu, args.markdown)
    whole = sum(floor_ms(operation, gpu)[2] for operation in network.operations)
    print(f"\nat least {whole:.2f} ms a step: at most {batch / whole * 1e3:,.0f} images/s")
    if args.reach:
        whole = sum(floor_ms(operation, gpu, args.reach)[2] for operation in network.operations)
        print(f"{whole:.2f} ms, {batch / whole * 1e3:,.0f} images/s if every kernel reached {args.reach[0]:.0%} of the matrix rate "
              f"and {args.reach[1]:.0%} of the memory's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
