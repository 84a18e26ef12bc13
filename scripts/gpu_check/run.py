"""`gpu-check run`: one part after the other, each with its share of the time, and what there is written after each."""

import datetime
import json
import shutil
import signal
import sys
import time

from . import checks, comparisons, report
from .machine import Failed, Machine, gpu

# Shares of the time; what a part leaves over is the next one's.
SHARES = {"doctor": 30, "tests": 140, "step": 240, "sample": 60, "ops": 30, "data": 30}
NO_GPU = 4
# A tiny network with what the large ones have, for --rehearse.
REHEARSAL = """\
[data]
source = "images"
image_size = 16
channels = 3
[model]
block_out_channels = [32, 64]
layers_per_block = 1
down_block_types = ["DownBlock2D", "AttnDownBlock2D"]
up_block_types = ["AttnUpBlock2D", "UpBlock2D"]
norm_num_groups = 8
[train]
batch_size = 4
"""


def run(directory, out, args):
    """An exit code."""
    machine = Machine(directory, out, args.minutes, args.rehearse)
    results = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "rehearsal": args.rehearse,
        "pack": json.loads((directory / "pack.json").read_text()), "gpu": None, "parts": {}, "targets": [], "exit_code": 1,
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # `finally` below still runs
    try:
        results["gpu"] = gpu(machine)
        if results["gpu"] is None and not args.rehearse:
            results["error"] = {"code": NO_GPU, "message": "no NVIDIA GPU was found on this machine",
                                "hint": "run it where `nvidia-smi` shows one, or see that the pack is whole with --rehearse"}
            results["exit_code"] = NO_GPU
            return NO_GPU
        if args.rehearse:
            (directory / "configs/rehearsal.toml").write_text(REHEARSAL)
        go_through(machine, args, results)
        results["exit_code"] = int(any(part["status"] != "ok" for part in results["parts"].values()))
        return results["exit_code"]
    finally:
        machine.close()
        write(machine, results)
        finish(machine, results)


def go_through(machine, args, results):
    """All parts; each has until its share and what was left over of those before it is used up."""
    scale = (machine.end - time.monotonic()) / sum(SHARES[name] for name in args.parts)
    until = time.monotonic()
    machine.environment[comparisons.CONVOLUTIONS] = "ATEN,TRITON" if args.full_autotune else "ATEN"
    compilers = comparisons.Compilers(machine, args.parts, args.configs)
    for name in args.parts:
        until += SHARES[name] * scale
        machine.deadline = min(until, machine.end)
        machine.say(f"{name} (at most {machine.left():.0f} s)")
        part = results["parts"][name] = {"status": "interrupted"}  # as long as nothing else is known
        begun = time.monotonic()
        try:
            one(name, machine, args, part, results, compilers)
            part["status"] = "ok"
        except Failed as error:
            part.update(status="failed", error=str(error))
        except Exception as error:  # noqa: BLE001: a mistake here must not lose the other parts either
            part.update(status="failed", error=f"{type(error).__name__}: {error}")
        part["seconds"] = time.monotonic() - begun
        if part["status"] != "ok":
            machine.say(f"  failed: {part['error']}")
        write(machine, results)


def one(name, machine, args, part, results, compilers):
    match name:
        case "doctor":
            checks.doctor(machine, part)
        case "tests":
            checks.tests(machine, part)
        case "step":
            comparisons.step(machine, args.configs, compilers, part)
            failed = {case: errors for case, found in part["cases"].items() if (errors := found["errors"])}
            if failed or "error" in part["start"]:
                raise Failed("; ".join([*(f"{case}: {list(errors.values())[0]}" for case, errors in failed.items()),
                                        *([f"start: {part['start']['error']}"] if "error" in part["start"] else [])]))
        case "sample":
            comparisons.sample(machine, compilers, part)
        case "ops":
            checks.ops(machine, part)
        case "data":
            checks.data(machine, part, results["parts"].get("step", {}))


def write(machine, results):
    """The JSON as it stands, whole or not at all."""
    results["targets"] = [] if results["rehearsal"] else report.targets(results)
    fresh = machine.out / "gpu-check.json.tmp"
    fresh.write_text(json.dumps(results, indent=2) + "\n")
    fresh.rename(machine.out / "gpu-check.json")


def finish(machine, results):
    """The table, on stdout and in its file."""
    text = report.table(results)
    (machine.out / "table.txt").write_text(text)
    print(text)
    if "error" in results:
        print(f"error: {results['error']['message']}\n  help: {results['error']['hint']}", file=sys.stderr)
    print(f"written to {machine.out}: gpu-check.json, table.txt, gpu-check.log", file=sys.stderr)
    if machine.rehearse:
        shutil.rmtree(machine.scratch, ignore_errors=True)
