"""The random numbers of ddpm in numpy, for comparisons that need the same noise: crates/kernels/src/philox.rs, again.

Philox4x32-10 (Salmon et al. 2011) keyed by seed and purpose, Box-Muller for normals.
"""

import numpy as np

# `Purpose` in philox.rs.
TIMESTEP, NOISE, SAMPLE = 5, 6, 9

MASK = (1 << 64) - 1


def _key(seed, purpose):
    """splitmix64's finaliser of the two."""
    z = (seed + purpose * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    z ^= z >> 31
    return z & 0xFFFFFFFF, z >> 32


def _words(seed, purpose, step, position, blocks):
    """The four 32-bit words of each of the first `blocks` blocks, as u64 [4, blocks]."""
    k0, k1 = (np.uint64(word) for word in _key(seed, purpose))
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    high = ((step >> 32) & 0xFFFF) | (((position >> 32) & 0xFFFF) << 16)
    x = [np.arange(blocks, dtype=np.uint64)]
    x += [np.full(blocks, word & 0xFFFFFFFF, dtype=np.uint64) for word in (step, position, high)]
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * x[0], np.uint64(0xCD9E8D57) * x[2]
        x = [(b >> shift) ^ x[1] ^ k0, b & low, (a >> shift) ^ x[3] ^ k1, a & low]
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return x


def below(seed, purpose, step, position, bound):
    """A uniform integer in 0..bound."""
    words = _words(seed, purpose, step, position, 1)
    return ((int(words[0][0]) | int(words[1][0]) << 32) * bound) >> 64


def normals(seed, purpose, step, first_position, shape):
    """Standard normals of `shape` [N, H, W, C]; image k is the stream of position `first_position + k`."""
    size = int(np.prod(shape[1:]))
    images = []
    for position in range(first_position, first_position + shape[0]):
        u, v, s, w = ((word.astype(np.float64) + 0.5) / 2.0**32 for word in _words(seed, purpose, step, position, -(-size // 4)))
        pairs = []
        for radius, turn in ((u, v), (s, w)):
            radius = np.sqrt(-2.0 * np.log(radius))
            pairs += [radius * np.cos(2 * np.pi * turn), radius * np.sin(2 * np.pi * turn)]
        images.append(np.stack(pairs, axis=1).reshape(-1)[:size])
    return np.stack(images).reshape(shape).astype(np.float32)
