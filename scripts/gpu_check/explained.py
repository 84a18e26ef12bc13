"""Failures of tests that mean nothing on a card, and why; each is shown with its values, for a reader to disagree."""

import re

# Of a test's name, of its message, and the reason.
HARMLESS = [
    (r"^memory::", r"OUT_OF_MEMORY|out of memory",
     "the test takes nearly the last byte, and a driver hands out memory in pieces of 2 MiB"),
    (r"^memory::", r"peak \d+, estimated \d+",
     "10 % are the emulator's; a driver's pieces and cuDNN's own scratch space come on top on a card"),
    (r"^memory::gpu_a_chosen_micro_batch", r"micro_batch = \d+",
     "how much scratch space cuDNN takes is known only on a card, and with it which number fits"),
    (r"^training::", r"f32 .*: weights are off by (0\.00|\d(\.\d+)?e-)",
     "the bias of the keys has a gradient of zero in exact arithmetic: AdamW makes steps of lr (0.001) of its rounding errors"),
]


def judged(name, message):
    """A failed test's record."""
    for test, text, why in HARMLESS:
        if re.search(test, name) and re.search(text, message):
            return {"status": "explained", "error": message, "why": why}
    return {"status": "failed", "error": message}
