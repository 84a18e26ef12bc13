"""The pieces that set ours beside PyTorch's: training steps and sampling, alone and then in turn."""

import time
from typing import NamedTuple

from . import images
from .programs import Failed, Server

ROUNDS = 3
STEPS = 20
# With CUDA graphs, and products and convolutions by NVIDIA's libraries. max-autotune tries templates of its own for each product,
# some 12 s for one on an H100, so that it does not end within this time.
COMPILED, EAGER = "reduce-overhead", "channels_last"
WARM_SECONDS, COMPILE_SECONDS = 90, 270
# What the piece is called in which a rival begins to compile.
BEGINS = "torch.compile begins: {}"
# One measurement, our program's start and its choice of algorithms included.
MEASURE_SECONDS = 60


class Case(NamedTuple):
    """One comparison of training steps. By default those that are not `large` are made."""

    name: str
    config: str
    batch: int
    rivals: tuple
    precision: str = "bf16"
    large: bool = False


# The large two fit into 80 GB, one rival at a time: eager takes about 32 GiB of each (docs/performance.md), ours 14.
CASES = [
    Case("cifar10-ddpm", "configs/cifar10-ddpm.toml", 128, (EAGER, COMPILED)),
    Case("cifar10-batch16", "configs/cifar10-ddpm.toml", 16, (EAGER,)),
    Case("imagenet64-iddpm", "configs/imagenet64-iddpm.toml", 128, (EAGER, COMPILED), large=True),
    Case("church256", "configs/church256.toml", 16, (EAGER, COMPILED), large=True),
]
NAMES = [case.name for case in CASES]
REHEARSED = [Case("cifar10-ddpm", "tiny", 4, (EAGER, COMPILED), "f32"), Case("cifar10-batch16", "tiny", 2, (EAGER,), "f32")]
# Configuration, precision, images and steps of DDIM; and those of a rehearsal.
SAMPLED, SAMPLED_REHEARSED = ("configs/cifar10-ddpm.toml", "bf16", 64, 50), ("tiny", "f32", 4, 5)
SAMPLING = "sampling"


def cases(check):
    """Those that were chosen; the first is what everything else is measured on."""
    every, chosen = REHEARSED if check.machine.rehearse else CASES, check.args.configs
    return [case for case in every if (case.name in chosen if chosen else not case.large)] or every[:1]


def config(machine, case):
    """Its configuration's path."""
    return machine.tiny if case.config == "tiny" else case.config


def trainer(machine, case, mode):
    """PyTorch's training step."""
    return ["benches/torch_step.py", config(machine, case), "--mode", real(machine, mode), "--device", machine.rivals_device,
            "--precision", case.precision, "--batch", case.batch]


def sampler(machine, mode):
    """PyTorch's sampling."""
    path, precision, number, steps = sampled(machine)
    return ["benches/torch_sample.py", path, "--mode", real(machine, mode), "--device", machine.rivals_device, "--precision",
            precision, "--batch", number, "--steps", steps]


def real(machine, mode):
    """A rehearsal goes through all motions but compiles nothing: that takes minutes and a compiler."""
    if machine.rehearse:
        return EAGER
    return "max-autotune" if mode == COMPILED and machine.full_autotune else mode


def sampled(machine):
    if machine.rehearse:
        return (machine.tiny, *SAMPLED_REHEARSED[1:])
    return SAMPLED


def overrides(machine, case, source):
    """How ours is told the same work: one pass over the batch, in that precision, with images of the right size."""
    keys = {"data.source": source, "data.split": "", "run.device": machine.device, "train.precision": case.precision,
            "train.batch_size": case.batch, "train.micro_batch": case.batch}
    return [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]


def record_of(check, case):
    """Where a case's results are."""
    empty = {"config": case.config, "batch_size": case.batch, "precision": case.precision, "rivals": {}, "errors": {}}
    return check.results["cases"].setdefault(case.name, empty)


def measure_ours(check, case):
    path = config(check.machine, case)
    source = images.folder(check.machine, path, 4 * case.batch)
    return check.machine.ddpm("bench", "step", path, "--repeat", STEPS, *overrides(check.machine, case, source),
                              limit=MEASURE_SECONDS)


def ours(case):
    """A piece: our step, before anything of PyTorch's is in the card's memory."""
    def work(check, _):
        record_of(check, case)["ours"] = measure_ours(check, case)
    return work


def eager(case):
    """A piece: PyTorch as it is; it stays for the rounds."""
    def work(check, _):
        found = record_of(check, case)
        server = begin(check, (case.name, EAGER), trainer(check.machine, case, EAGER))
        try:
            server.warm(min(WARM_SECONDS, check.machine.left()))
            found["rivals"][EAGER] = server.measure(STEPS, limit(check))
            same_work(found)
        except Failed:
            check.take_rival((case.name, EAGER)).stop()
            raise
        if case.large:  # two of them would not fit beside ours
            check.take_rival((case.name, EAGER)).stop()
    return work


def limit(check):
    """Seconds for one answer of a rival."""
    return min(MEASURE_SECONDS, max(1, check.machine.left()))


def begin(check, key, command):
    server = check.rivals[key] = Server(check.machine, command)
    server.begun = time.monotonic()
    return server


def compiles(case):
    """Whether one of its rivals has to be compiled."""
    return COMPILED in case.rivals


def compiling(key, make):
    """A piece: torch.compile begins. What is measured has to wait for it; what is only checked need not."""
    def work(check, _):
        begin(check, (key, COMPILED), make(check.machine))
    return work


def settled(check, key):
    """Whether a rival has compiled, or failed to, or is not there."""
    server = check.rivals.get((key, COMPILED))
    return server is None or server.settled() or time.monotonic() - server.begun > COMPILE_SECONDS


def turns(check, found, key, rivals, measure):
    """Rounds of ours and every rival in turn: each result is the median round, with all rounds beside it. Whoever fails drops out."""
    servers, errors = warmed(check, key, rivals)
    rounds = {name: [] for name in ["ours", *servers]}
    try:
        for _ in range(1 if check.machine.rehearse else ROUNDS):
            for name in list(rounds):
                try:
                    rounds[name].append(measure(servers.get(name)))
                except Failed as error:
                    errors[name] = str(error)
                    del rounds[name]
                    continue
                (found if name == "ours" else found["rivals"])[name] = middle(rounds[name])
                check.save()
    finally:
        for server in servers.values():
            server.stop()
    found["errors"] = dict(errors)
    same_work(found)
    if errors:
        raise Failed("; ".join(f"{name}: {error}" for name, error in errors.items()))


def warmed(check, key, rivals):
    """The rivals' servers that are ready, and why others are not."""
    servers, errors = {}, {}
    for mode in rivals:
        try:
            server = check.take_rival((key, mode))
        except Failed as error:
            errors[mode] = str(error)
            continue
        left = (COMPILE_SECONDS if mode == COMPILED else WARM_SECONDS) - (time.monotonic() - server.begun)
        try:
            server.warm(min(check.machine.left(), max(1, left)))
            servers[mode] = server
        except Failed as error:
            errors[mode] = str(error)
            server.stop()
    return servers, errors


def rounds(case):
    """A piece: training steps of ours and of all rivals, in turn."""
    def work(check, record):
        def measure(server):
            return server.measure(STEPS, limit(check)) if server else measure_ours(check, case)
        conditions(check, record, case.name)
        rivals = [mode for mode in case.rivals if mode == COMPILED or not case.large]
        turns(check, record_of(check, case), case.name, rivals, measure)
    return work


def sampling_alone(check, _):
    """Ours and PyTorch as it is."""
    machine, found = check.machine, check.results["sample"]
    path, _, number, steps = sampled(machine)
    found.update(config=str(path), batch_size=number, steps=steps, rivals={}, errors={})
    found["ours"] = measure_sampling(check)
    check.save()
    server = begin(check, (SAMPLING, EAGER), sampler(machine, EAGER))
    server.warm(min(WARM_SECONDS, machine.left()))
    found["rivals"][EAGER] = server.measure(repeat(machine), limit(check))


def sampling_rounds(check, record):
    def measure(server):
        return server.measure(repeat(check.machine), limit(check)) if server else measure_sampling(check)
    conditions(check, record, SAMPLING)
    found = check.results["sample"]
    for key in ["rivals", "errors"]:
        found.setdefault(key, {})
    turns(check, found, SAMPLING, (EAGER, COMPILED), measure)


def measure_sampling(check):
    """Ours."""
    machine = check.machine
    path, precision, number, steps = sampled(machine)
    keys = {"run.device": machine.device, "train.precision": precision, "sample.num": number, "sample.sampler": "ddim",
            "sample.steps": steps}
    settings = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    return machine.ddpm("bench", "sample", path, "--repeat", repeat(machine), *settings, limit=MEASURE_SECONDS)


def repeat(machine):
    return 1 if machine.rehearse else 5


def conditions(check, record, key):
    """How torch.compile chose its kernels, and beside what, which a reader may hold against the comparison."""
    if server := check.rivals.get((key, COMPILED)):
        record["compiled_with"] = real(check.machine, COMPILED)
        since = server.begun - check.machine.started
        record["compiled_beside"] = [name for name, piece in check.results["pieces"].items()
                                     if piece.get("begun", 0) > since and piece is not record and name != BEGINS.format(key)]


def middle(documents):
    """The round with the median time (the slower of the middle two), and every round's median."""
    by_time = sorted(documents, key=lambda document: document["median_ms"])
    return {**by_time[len(by_time) // 2], "rounds_ms": [document["median_ms"] for document in documents]}


def same_work(found):
    """A comparison of different work is none. Sampling's documents lack some of the facts."""
    for mode, document in found["rivals"].items():
        for key in ["parameters", "batch_size", "precision"]:
            both = [side[key] for side in [found.get("ours", {}), document] if key in side]
            if len(both) == 2 and both[0] != both[1]:
                found["errors"]["work"] = f"{key}: ours {both[0]}, {mode} {both[1]}"
