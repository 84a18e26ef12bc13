#!/usr/bin/env python3
"""Makes tests/fixtures/diffusers, a published model as diffusers writes it, and what diffusers computes with it.

usage: "$(scripts/rival-python)" scripts/make-exchange-fixture.py

    model/            a small UNet2DModel and a DDPMScheduler, save_pretrained, random weights
    image.png         one image; the data of the test is BATCH copies of it, so that their order does not matter
    forward.safetensors  sample, timesteps, and the output that diffusers computes in f64
    expected.json     the loss diffusers computes on the first batch of a fine-tuning: x_0 from the image, t and noise
                      those of ddpm's first step (scripts/philox.py), x_t by DDPMScheduler.add_noise
"""

import json
import pathlib

import diffusers
import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import save_file

import philox

TO = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "diffusers"
SIZE, BATCH, SEED = 16, 4, 0


def build():
    torch.manual_seed(1)
    unet = UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return unet.eval(), DDPMScheduler(variance_type="fixed_large")


def picture():
    y, x, c = np.meshgrid(np.arange(SIZE), np.arange(SIZE), np.arange(3), indexing="ij")
    return ((x * (7 + 5 * c) + y * y * (c + 1)) % 256).astype(np.uint8)


def first_loss(unet, scheduler, image):
    """The mean squared error of epsilon on the first batch of a run with this seed, in f64."""
    steps = scheduler.config.num_train_timesteps
    t = torch.tensor([philox.below(SEED, philox.TIMESTEP, 0, k, steps) for k in range(BATCH)])
    noise = torch.from_numpy(philox.normals(SEED, philox.NOISE, 0, 0, (BATCH, SIZE, SIZE, 3))).permute(0, 3, 1, 2).double()
    x_start = (torch.from_numpy(image).double() / 127.5 - 1).permute(2, 0, 1).expand(BATCH, -1, -1, -1)
    with torch.no_grad():
        output = unet(scheduler.add_noise(x_start, noise, t), t).sample
    return torch.nn.functional.mse_loss(output, noise).item()


def main():
    unet, scheduler = build()
    TO.mkdir(parents=True, exist_ok=True)
    DDPMPipeline(unet, scheduler).save_pretrained(TO / "model")
    image = picture()
    Image.fromarray(image).save(TO / "image.png")
    unet.double()
    sample, timesteps = torch.randn(2, 3, SIZE, SIZE), torch.tensor([7, 900])
    with torch.no_grad():
        output = unet(sample.double(), timesteps).sample.float()
    save_file(dict(sample=sample, timesteps=timesteps, output=output), TO / "forward.safetensors")
    expected = dict(loss=first_loss(unet, scheduler, image), batch_size=BATCH, seed=SEED)
    expected.update(torch=torch.__version__, diffusers=diffusers.__version__)
    (TO / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")
    print(f"{TO}: {sum(path.stat().st_size for path in TO.rglob('*') if path.is_file())} bytes, loss {expected['loss']}")


if __name__ == "__main__":
    main()
