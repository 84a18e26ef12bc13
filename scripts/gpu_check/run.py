"""`gpu-check run`: which pieces there are, in which order, and how long each may take."""

import functools
import json
import shutil
import signal
import sys

from . import checks, comparisons, gputests, kernels
from .machine import Machine, gpu
from .plan import Check, Interrupted, Piece, go_through

NO_GPU = 4
FINE = ("ok", "explained", "skipped")


def pieces(check):
    """Everything, the most valuable first. Seconds are limits, several times what is expected, not shares."""
    part = functools.partial
    plan = [
        Piece("doctor", "doctor", 30, checks.doctor),
        Piece("roofs", "doctor", 90, checks.measure_roofs),
        Piece("PyTorch and diffusers", "doctor", 90, checks.try_rival),
        *(Piece(f"smoke: {family}", "smoke", 90, gputests.smoke(family)) for family in gputests.SMOKE),
        Piece("quick start", "train", 120, checks.train),
        Piece("start to first step", "train", 60, checks.start),
        Piece("saves", "train", 60, checks.saves),
    ]
    cases = comparisons.cases(check)
    first, rest = cases[0], cases[1:]
    plan += [
        Piece(f"step {first.name}: ours", "step", 60, comparisons.ours(first)),
        Piece("operations", "ops", 90, checks.ops),
        Piece("attention in PyTorch", "ops", 40, checks.attention),
        Piece("one step by kernel", "kernels", 120, kernels.kernels),
        Piece(f"step {first.name}: eager", "rivals", 90, comparisons.eager(first)),
        Piece("sampling: ours and eager", "sample", 90, comparisons.sampling_alone),
    ]
    # What need not wait for a compiler comes before what does.
    for case in rest:
        if not comparisons.compiles(case):
            plan += [*alone(case), *in_turn(check, case)]
    sampling = compile_piece("sampling", lambda machine: comparisons.sampler(machine, comparisons.COMPILED), comparisons.SAMPLING)
    # One after the other: on an H100's 16 cores neither of two at once was there after 160 s; alone a step takes 150 s, of
    # which the last 70 are its first steps, and sampling 60.
    plan += [compile_step(first), *in_turn(check, first), sampling,
             Piece("sampling: in turn", "sample", 330, comparisons.sampling_rounds, ready=part(comparisons.settled, check, comparisons.SAMPLING))]
    for case in rest:
        if comparisons.compiles(case):
            plan += [*alone(case), compile_step(case), *in_turn(check, case)]
    tests, pack = gputests, check.results["pack"]
    plan.append(Piece("loader", "data", 60, checks.data))
    plan += [Piece(f"tests: {program.removeprefix('ddpm-').removesuffix('-gpu')} {module}", "tests", 90, tests.module_tests(program, names),
                   filler=True) for (program, module), names in tests.remaining(pack).items()]
    plan += [Piece(f"{which}: {module}", "sanitizer", tests.SANITIZED_SECONDS, tests.sanitized(which, program, module), filler=True)
             for which in ["racecheck", "memcheck"] for program, module in tests.RACING]
    program, module = tests.MEMORY
    if names := tests.modules(pack).get(tests.MEMORY):
        plan.append(Piece(f"memory: {module}", "memory", 150, tests.module_tests(program, names)))
    return [piece for piece in plan if piece.part in check.args.parts]


def compile_piece(name, make, key):
    return Piece(comparisons.BEGINS.format(name), "sample" if key == comparisons.SAMPLING else "rivals", 30, comparisons.compiling(key, make))


def compile_step(case):
    return compile_piece(case.name, lambda machine: comparisons.trainer(machine, case, comparisons.COMPILED), case.name)


def alone(case):
    """Ours, and PyTorch as it is."""
    return [Piece(f"step {case.name}: ours", "step", 90, comparisons.ours(case)),
            Piece(f"step {case.name}: eager", "rivals", 120, comparisons.eager(case))]


def in_turn(check, case):
    """The piece that sets a case in turn with its rivals, once one that has to be compiled is there."""
    ready = functools.partial(comparisons.settled, check, case.name)
    return [Piece(f"step {case.name}: in turn", "rivals", 360, comparisons.rounds(case), ready=ready)]


def run(directory, out, args):
    """An exit code."""
    try:
        pack = json.loads((directory / "pack.json").read_text())
        machine = Machine(directory, out, args.minutes, args.rehearse)
    except (OSError, ValueError) as error:
        print(f"error: {error}\n  help: pack anew, and name a folder that can be written with --out", file=sys.stderr)
        return 2
    machine.full_autotune = args.full_autotune
    check = Check(machine, args, pack)
    for switch in args.off:
        machine.turn_off(switch, "the command line said so")
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    results = check.results
    try:
        check.save()
        machine.unpack()
        results["gpu"] = gpu(machine)
        if results["gpu"] is None and not args.rehearse:
            results["error"] = {"code": NO_GPU, "message": "no NVIDIA GPU was found on this machine",
                                "hint": "run it where `nvidia-smi` shows one, or see that the pack is whole with --rehearse"}
            results["exit_code"] = NO_GPU
        else:
            go_through(check, pieces(check))
            results["exit_code"] = int(any(piece["status"] not in FINE for piece in results["pieces"].values()))
    except Interrupted:
        machine.say("told to end")
    finally:
        machine.close()
        finish(check, check.save())
    return results["exit_code"]


def interrupt(*_):
    """Once: what follows is short and must not be cut off."""
    for name in [signal.SIGTERM, signal.SIGINT]:
        signal.signal(name, signal.SIG_IGN)
    raise Interrupted


def finish(check, table):
    """The table on stdout."""
    print(table)
    if error := check.results.get("error"):
        print(f"error: {error['message']}\n  help: {error['hint']}", file=sys.stderr)
    print(f"written to {check.machine.out}: {', '.join(sorted(path.name for path in check.machine.out.iterdir() if path.is_file()))}",
          file=sys.stderr)
    if check.machine.rehearse:
        shutil.rmtree(check.machine.scratch, ignore_errors=True)
