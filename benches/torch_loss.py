"""The losses of our presets in PyTorch: simple, and the hybrid of Nichol & Dhariwal (arXiv 2102.09672), eq. 16.

Written after the paper, in the order of its section 3.1. Tables are f64 until they are used, then f32.
"""

import math

import torch

from torch_common import betas, learns_variance

NAT = math.log(2.0)  # nats to bits


class Process:
    """q(x_t | x_0), its posterior, and the loss of a network's output. x_start in [-1, 1], [N, C, H, W]."""

    def __init__(self, config, device):
        beta = betas(config["diffusion"])
        alphas_cumprod = torch.cumprod(1 - beta, 0)
        before = torch.cat([torch.ones(1, dtype=beta.dtype), alphas_cumprod[:-1]])
        variance = beta * (1 - before) / (1 - alphas_cumprod)
        variance[0] = variance[1]  # 0 has no logarithm; the posterior of t = 0 is never used otherwise
        table = lambda values: values.float().to(device)  # noqa: E731
        self.steps = len(beta)
        self.signal, self.noise = table(alphas_cumprod.sqrt()), table((1 - alphas_cumprod).sqrt())
        self.from_start = table(beta * before.sqrt() / (1 - alphas_cumprod))
        self.from_noised = table((1 - before) * (1 - beta).sqrt() / (1 - alphas_cumprod))
        self.log_least, self.log_most = table(variance.log()), table(beta.log())
        self.kind, self.vlb_lambda = config["loss"]["kind"], config["loss"]["vlb_lambda"]
        self.learns_variance = learns_variance(config)

    @property
    def described(self):
        """What the loss is, for the result."""
        return "simple + vlb_lambda * vlb" if self.learns_variance and self.kind == "hybrid" else "simple, on the noise alone"

    def q_sample(self, x_start, t, noise):
        return at(self.signal, t) * x_start + at(self.noise, t) * noise

    def loss(self, output, x_start, x_t, t, noise):
        """The batch's mean; in f32, whatever the network computed in."""
        output = output.float()
        if not self.learns_variance:
            return torch.nn.functional.mse_loss(output, noise)
        eps, v = output.chunk(2, dim=1)
        simple = torch.nn.functional.mse_loss(eps, noise)
        if self.kind != "hybrid":
            return simple
        # The bound teaches the variance alone: eps is held.
        return simple + self.vlb_lambda * self.steps * self.bound(eps.detach(), v, x_start, x_t, t).mean()

    def bound(self, eps, v, x_start, x_t, t):
        """The term of t in bits per dimension, [N]: a divergence, or at t = 0 the likelihood of the pixels."""
        predicted = (x_t - at(self.noise, t) * eps) / at(self.signal, t)
        mean = at(self.from_start, t) * predicted + at(self.from_noised, t) * x_t
        true_mean = at(self.from_start, t) * x_start + at(self.from_noised, t) * x_t
        least, most = at(self.log_least, t), at(self.log_most, t)
        share = (v + 1) / 2  # eq. 15
        log_variance = share * most + (1 - share) * least
        divergence = 0.5 * (log_variance - least + torch.exp(least - log_variance)
                            + (true_mean - mean) ** 2 * torch.exp(-log_variance) - 1)
        likelihood = pixel_log_likelihood(x_start, mean, 0.5 * log_variance)
        terms = torch.where(t.view(-1, 1, 1, 1) == 0, -likelihood, divergence)
        return terms.mean(dim=(1, 2, 3)) / NAT


def at(table, t):
    return table[t].view(-1, 1, 1, 1)


def pixel_log_likelihood(x, mean, log_deviation):
    """log of a normal's mass in the bin of a pixel's value; the outermost bins reach to infinity."""
    below = normal_cdf((x - mean - 1 / 255) * torch.exp(-log_deviation))
    above = normal_cdf((x - mean + 1 / 255) * torch.exp(-log_deviation))
    mass = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return mass.clamp(min=1e-12).log()


def normal_cdf(x):
    """The approximation by tanh that the paper's code uses."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
