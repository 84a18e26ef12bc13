"""The parts that set ours beside PyTorch's: `step` and `sample`, and the start of a run."""

import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from . import images
from .machine import Failed, Server

ROUNDS = 3
STEPS = 20
# What max-autotune may choose convolutions from. Templates of its own for each of them take minutes to compile and try.
CONVOLUTIONS = "TORCHINDUCTOR_MAX_AUTOTUNE_CONV_BACKENDS"
COMPILED, EAGER = "max-autotune", "channels_last"
COMPILE_SECONDS = 300


class Case(NamedTuple):
    """One comparison of training steps."""

    name: str
    config: str
    batch: int
    rivals: tuple
    precision: str = "bf16"


CASES = [
    Case("cifar10-ddpm", "configs/cifar10-ddpm.toml", 128, (EAGER, COMPILED)),
    Case("imagenet64-iddpm", "configs/imagenet64-iddpm.toml", 128, (EAGER, COMPILED)),
    Case("church256", "configs/church256.toml", 16, (EAGER, COMPILED)),
    Case("cifar10-batch16", "configs/cifar10-ddpm.toml", 16, (EAGER,)),
]
REHEARSED = [Case("cifar10-ddpm", "configs/rehearsal.toml", 4, (EAGER,), "f32"),
             Case("cifar10-batch16", "configs/rehearsal.toml", 2, (EAGER,), "f32")]
# Configuration, precision, images and steps of DDIM; when it is rehearsed, those of the second row.
SAMPLED = [("configs/cifar10-ddpm.toml", "bf16", 64, 50), ("configs/rehearsal.toml", "f32", 4, 5)]
SAMPLING = "sampling"


def cases(machine, chosen):
    return [case for case in (REHEARSED if machine.rehearse else CASES) if not chosen or case.name in chosen]


def trainer(machine, case, mode):
    """PyTorch's training step."""
    return ["benches/torch_step.py", case.config, "--mode", mode, "--device", machine.device, "--precision", case.precision,
            "--batch", case.batch]


def sampler(machine, mode):
    """PyTorch's sampling."""
    config, precision, number, steps = SAMPLED[machine.rehearse]
    return ["benches/torch_sample.py", config, "--mode", mode, "--device", machine.device, "--precision", precision,
            "--batch", number, "--steps", steps]


class Compilers:
    """Rivals that compile, all at once and beside the tests: it takes minutes, mostly of one core each."""

    def __init__(self, machine, parts, chosen):
        self.machine, self.servers, self.errors = machine, {}, {}
        wanted = {}
        if "step" in parts and not machine.rehearse:
            wanted = {case.name: trainer(machine, case, COMPILED) for case in cases(machine, chosen) if COMPILED in case.rivals}
        if "sample" in parts and not machine.rehearse:
            wanted[SAMPLING] = sampler(machine, COMPILED)
        self.threads = [threading.Thread(target=self.compile, args=(name, command), daemon=True) for name, command in wanted.items()]
        for thread in self.threads:
            thread.start()

    def compile(self, name, command):
        server = Server(self.machine, command)
        try:
            server.answer(COMPILE_SECONDS)
            self.servers[name] = server
        except Failed as error:
            server.stop()
            self.errors[name] = str(error)

    def wait(self, seconds):
        """Nothing is measured while something compiles, if it can be helped."""
        until = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self.threads)

    def take(self, name):
        if name in self.servers:
            return self.servers.pop(name)
        raise Failed(self.errors.get(name, "not compiled when its time was over"))


def overrides(machine, case, source):
    """How ours is told the same work: one pass over the batch, in that precision, with images of the right size."""
    keys = {"data.source": source, "data.split": "", "run.device": machine.device, "train.precision": case.precision,
            "train.batch_size": case.batch, "train.micro_batch": case.batch}
    return [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]


def ours(machine, case, source):
    return machine.ddpm("bench", "step", case.config, "--repeat", STEPS, *overrides(machine, case, source), limit=90)


def compare(machine, case, compilers):
    """Rounds of ours and every rival in turn; each result is the median round, with all rounds beside it."""
    source = images.folder(machine, case.config, 4 * case.batch)
    result = {"config": case.config, "batch_size": case.batch, "precision": case.precision, "rivals": {}, "errors": {}}
    rivals = {}
    for mode in case.rivals:
        try:
            rivals[mode] = compilers.take(case.name) if mode == COMPILED else started(machine, trainer(machine, case, mode))
        except Failed as error:
            result["errors"][mode] = str(error)
    measured = {name: [] for name in ["ours", *rivals]}
    for _ in range(1 if machine.rehearse else ROUNDS):
        for name in measured:
            if name in result["errors"]:
                continue
            try:
                measured[name].append(ours(machine, case, source) if name == "ours" else rivals[name].measure(STEPS))
            except Failed as error:
                result["errors"][name] = str(error)
    for server in rivals.values():
        server.stop()
    for name, rounds in measured.items():
        if rounds:
            (result if name == "ours" else result["rivals"])[name] = middle(rounds)
    same_work(result)
    return result


def started(machine, command):
    """A rival that need not compile, when it is warm."""
    server = Server(machine, command)
    try:
        server.answer(min(90, machine.left()))
    except Failed:
        server.stop()
        raise
    return server


def middle(rounds):
    """The round with the median time (the slower of the middle two), and every round's median."""
    by_time = sorted(rounds, key=lambda document: document["median_ms"])
    return {**by_time[len(by_time) // 2], "rounds_ms": [document["median_ms"] for document in rounds]}


def same_work(result):
    """A comparison of different work is none."""
    for mode, document in result["rivals"].items():
        for key in ["parameters", "batch_size", "precision"]:
            if "ours" in result and result["ours"].get(key) != document.get(key):
                result["errors"]["work"] = f"{key}: ours {result['ours'].get(key)}, {mode} {document.get(key)}"


def step(machine, chosen, compilers, results):
    """Fills results['cases'] case by case, so that a kill loses one at most; then the start of a run."""
    results["cases"] = {}
    if compilers.threads:
        results["compiled"] = "torch.compile chose its kernels beside the parts before this one, its convolutions from " + (
            machine.environment[CONVOLUTIONS])
    if not compilers.wait(machine.left() * 0.6):
        machine.say("  torch.compile is still at work: steps are measured beside it, and PyTorch's are marked")
        results["compiled_beside_the_measurement"] = True
    for case in cases(machine, chosen):
        machine.say(f"  {case.name}")
        results["cases"][case.name] = compare(machine, case, compilers)
    results["start"] = start(machine)


def start(machine):
    """Seconds from starting `ddpm train` to the first step in its metrics."""
    case = (REHEARSED if machine.rehearse else CASES)[0]
    source = images.folder(machine, case.config, 4 * case.batch)
    with tempfile.TemporaryDirectory() as place:
        metrics = Path(place, "run/metrics.jsonl")
        begun = time.monotonic()
        process = machine.start([
            machine.program, "train", case.config, "--run-dir", metrics.parent, "--max-steps", 3, "--set",
            "log.every=1", *overrides(machine, case, source)], stdout=machine.log, stderr=machine.log, stdin=subprocess.DEVNULL)
        try:
            while not (metrics.is_file() and metrics.read_text().count("\n")):
                if process.poll() not in (None, 0):
                    return {"error": f"`ddpm train` ended with code {process.returncode}: see gpu-check.log"}
                if time.monotonic() - begun > min(60, max(1, machine.left())):
                    return {"error": "no first step in 60 s"}
                time.sleep(0.01)
            return {"seconds": time.monotonic() - begun, "config": case.config, "batch_size": case.batch}
        finally:
            machine.kill(process)


def sample(machine, compilers, results):
    """DDIM, ours and PyTorch's in turn; a failure on one side leaves the other's result."""
    config, precision, number, steps = SAMPLED[machine.rehearse]
    results.update(config=config, batch_size=number, steps=steps, rivals={}, errors={})
    keys = {"run.device": machine.device, "train.precision": precision, "sample.num": number, "sample.sampler": "ddim",
            "sample.steps": steps}
    settings = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    compilers.wait(machine.left() * 0.5)
    repeat = 1 if machine.rehearse else 5
    for mode in ["ours", EAGER] if machine.rehearse else ["ours", EAGER, COMPILED]:
        try:
            if mode == "ours":
                results[mode] = machine.ddpm("bench", "sample", config, "--repeat", repeat, *settings, limit=60)
                continue
            server = compilers.take(SAMPLING) if mode == COMPILED else started(machine, sampler(machine, mode))
            results["rivals"][mode] = server.measure(repeat)
            server.stop()
        except Failed as error:
            results["errors"][mode] = str(error)
    if results["errors"]:
        raise Failed("; ".join(f"{name}: {text}" for name, text in results["errors"].items()))
