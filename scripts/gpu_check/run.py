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
        *compiled(check, first),
        compile_piece("sampling", lambda machine: comparisons.sampler(machine, comparisons.COMPILED), comparisons.SAMPLING),
        Piece("sampling: in turn", "sample", 330, comparisons.sampling_rounds, ready=part(comparisons.settled, check, comparisons.SAMPLING)),
    ]
    for case in rest:
        plan += [Piece(f"step {case.name}: ours", "step", 90, comparisons.ours(case)),
                 Piece(f"step {case.name}: eager", "rivals", 120, comparisons.eager(case)), *compiled(check, case)]
    tests, pack = gputests, check.results["pack"]
    plan.append(Piece("loader", "data", 60, checks.data))
    plan += [Piece(f"tests: {program.removeprefix('ddpm-').removesuffix('-gpu')} {module}", "tests", 90, tests.module_tests(program, names),
                   filler=True) for (program, module), names in tests.remaining(pack).items()]
    plan += [Piece(f"{which}: {module}", "sanitizer", tests.SANITIZED_SECONDS, tests.sanitized(which, program, module))
             for program, module in tests.RACING for which in ["racecheck", "memcheck"]]
    program, module = tests.MEMORY
    if names := tests.modules(pack).get(tests.MEMORY):
        plan.append(Piece(f"memory: {module}", "memory", 150, tests.module_tests(program, names)))
    return [piece for piece in plan if piece.part in check.args.parts]


def compile_piece(name, make, key):
    return Piece(f"torch.compile begins: {name}", "sample" if key == comparisons.SAMPLING else "rivals", 30, comparisons.compiling(key, make))


def compiled(check, case):
    """The pieces that set a case in turn with its rivals, of which the last may have to be compiled."""
    begin = [compile_piece(case.name, lambda machine: comparisons.trainer(machine, case, comparisons.COMPILED), case.name)]
    turns = Piece(f"step {case.name}: in turn", "rivals", 360, comparisons.rounds(case),
                  ready=functools.partial(comparisons.settled, check, case.name))
    return [*(begin if comparisons.COMPILED in case.rivals else []), turns]


def run(directory, out, args):
    """An exit code."""
    pack = json.loads((directory / "pack.json").read_text())
    machine = Machine(directory, out, args.minutes, args.rehearse)
    machine.environment[comparisons.CONVOLUTIONS] = "ATEN,TRITON" if args.full_autotune else "ATEN"
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
