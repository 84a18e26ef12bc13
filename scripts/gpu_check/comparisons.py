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
COMPILED, EAGER = "max-autotune", "channels_last"
# Should torch.compile's best take too long to make, this is measured, and the result says so.
COMPILE_SECONDS = 240


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
SAMPLED, SAMPLES, SAMPLER_STEPS = "configs/cifar10-ddpm.toml", 64, 50


def cases(machine, chosen):
    return [case for case in (REHEARSED if machine.rehearse else CASES) if not chosen or case.name in chosen]


def rival(machine, script, config, mode, precision, batch, *more):
    return [f"benches/{script}", config, "--mode", mode, "--device", machine.device, "--precision", precision,
            "--batch", batch, *more]


class Compilers:
    """Rivals that compile, started one after the other beside the tests: it takes minutes, and mostly the CPU."""

    def __init__(self, machine, wanted):
        self.machine, self.servers, self.errors = machine, {}, {}
        self.thread = threading.Thread(target=self.compile, args=(wanted,), daemon=True)
        self.thread.start()

    def compile(self, wanted):
        for case in wanted:
            server = Server(self.machine, rival(self.machine, "torch_step.py", case.config, COMPILED, case.precision, case.batch))
            try:
                server.ready = server.answer(COMPILE_SECONDS)
                self.servers[case.name] = server
            except Failed as error:
                server.stop()
                self.errors[case.name] = str(error)

    def wait(self, seconds):
        """Nothing is measured while something compiles."""
        self.thread.join(max(0, seconds))
        return not self.thread.is_alive()

    def take(self, case):
        if case.name in self.servers:
            return self.servers.pop(case.name)
        raise Failed(self.errors.get(case.name, "not compiled when its time was over"))


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
            if mode == COMPILED:
                rivals[mode] = compilers.take(case)
            else:
                rivals[mode] = Server(machine, rival(machine, "torch_step.py", case.config, mode, case.precision, case.batch))
                rivals[mode].ready = rivals[mode].answer(min(90, machine.left()))
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
    results["compiled"] = "torch.compile chose its kernels beside the parts before this one"
    if compilers and not compilers.wait(machine.left() * 0.6):
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
            machine.directory / "bin/ddpm", "train", case.config, "--run-dir", metrics.parent, "--max-steps", 3, "--set",
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


def sample(machine, results):
    """DDIM 50, batch 64, of the CIFAR-10 network; a failure on one side leaves the other's result."""
    config, precision = (REHEARSED[0].config, "f32") if machine.rehearse else (SAMPLED, "bf16")
    number, steps, repeat = (4, 5, 1) if machine.rehearse else (SAMPLES, SAMPLER_STEPS, 5)
    results.update(config=config, batch_size=number, steps=steps, rivals={}, errors={})
    keys = {"run.device": machine.device, "train.precision": precision, "sample.num": number, "sample.sampler": "ddim",
            "sample.steps": steps}
    try:
        results["ours"] = machine.ddpm("bench", "sample", config, "--repeat", repeat,
                                       *(word for key, value in keys.items() for word in ("--set", f"{key}={value}")), limit=60)
    except Failed as error:
        results["errors"]["ours"] = str(error)
    for mode in [EAGER] if machine.rehearse else [EAGER, COMPILED]:
        command = rival(machine, "torch_sample.py", config, mode, precision, number, "--steps", steps, "--repeat", repeat)
        try:
            results["rivals"][mode] = machine.json([images.PYTHON, *command], 90)
        except Failed as error:
            results["errors"][mode] = str(error)
    if results["errors"]:
        raise Failed("; ".join(f"{name}: {text}" for name, text in results["errors"].items()))


