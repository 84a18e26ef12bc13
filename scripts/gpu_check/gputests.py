"""The GPU tests: a process for each module, so that one that ruins its context takes no other's tests with it."""

import re

from . import explained
from .machine import tool
from .plan import Skipped
from .programs import Failed, told

# A module's tests, and one test alone when its module has failed.
MODULE_SECONDS, TEST_SECONDS = 60, 25
KERNELS, TRAINING = "ddpm-kernels-gpu", "ddpm-train-gpu"
# What each family's smoke is, and the switch of DDPM_GPU_OFF that does without that family, where there is one.
SMOKE = {
    "conv": (KERNELS, ["conv2d"], None),
    "linear": (KERNELS, ["linear"], "bgradb"),
    "group norm": (KERNELS, ["group_norm", "group_norm_fused"], "fuse"),
    "flash attention": (KERNELS, ["attention"], "flash"),
    "optimizer": (KERNELS, ["optim"], None),
    "one recorded step": (TRAINING, ["bench::gpu_steps_are_measured_in_blocks_and_by_phases"], "graph"),
}
# Alone and last: they take nearly all of the card.
MEMORY = (TRAINING, "memory")
# Where threads share memory; linear's bias gradients are column sums. An emulator computes one thread after the other and
# sees no race.
RACING = [(KERNELS, "attention"), (KERNELS, "group_norm"), (KERNELS, "group_norm_fused"), (KERNELS, "linear")]
SANITIZED_SECONDS = 30


def modules(pack):
    """(program, module): names of its tests, in the pack's order."""
    found = {}
    for program, names in pack["tests"].items():
        for name in names:
            found.setdefault((program, name.split("::")[0]), []).append(name)
    return found


def smoke_tests(pack, family):
    """A family's program and the names of its tests."""
    program, wanted, _ = SMOKE[family]
    return program, [name for name in pack["tests"].get(program, []) if name in wanted or name.split("::")[0] in wanted]


def remaining(pack):
    """Modules that are neither smoke nor to be run alone."""
    taken = {(program, name) for family in SMOKE for program, names in [smoke_tests(pack, family)] for name in names}
    left = {key: [name for name in names if (key[0], name) not in taken] for key, names in modules(pack).items()}
    return {key: names for key, names in left.items() if names and key != MEMORY}


def need_gpu(check):
    if check.machine.device == "cpu":
        raise Skipped("a rehearsal on the CPU")


def smoke(family):
    """A piece: a family's tests; where they fail, the family is turned off for all that follows."""
    def work(check, record):
        need_gpu(check)
        program, names = smoke_tests(check.results["pack"], family)
        switch = SMOKE[family][2]
        try:
            run_tests(check, record, program, names)
        except Failed as error:
            # What only took too long, or fails beside others alone, is no reason to measure another program.
            if switch and bad_alone(record):
                without(check, record, program, switch, f"the smoke of {family} failed: {error}"[:300])
            raise
    return work


def bad_alone(record):
    """The tests that do not pass in a process of their own."""
    return [name for name, test in record.get("failed", {}).items() if test["status"] not in ("ok", "explained", "not run", "not reached")]


def without(check, record, program, switch, why):
    """Turns a family off, and looks whether what failed passes so; for a recorded step, in the end without any family."""
    machine = check.machine
    failed = bad_alone(record)
    switches = [switch] if switch != "graph" else [switch, "flash", "fuse", "bgradb"]
    for number, name in enumerate(switches):
        machine.turn_off(name, why)
        if number not in (0, len(switches) - 1):
            continue
        check.save()
        found = one_by_one(machine, program, failed, TEST_SECONDS)
        record[f"without {','.join(machine.off)}"] = found
        if all(test["status"] == "ok" for test in found.values()):
            return


def module_tests(program, names):
    """A piece: these tests of a program."""
    def work(check, record):
        need_gpu(check)
        run_tests(check, record, program, names)
    return work


def run_tests(check, record, program, names):
    """In one process; if that fails, each that has not passed in a process of its own. Passing alone does not clear a test."""
    machine = check.machine
    if not names:
        raise Failed("the pack has no such test")

    def note(text):
        found = parse(text)
        record.update(of=len(names), passed=len(found["ok"]), running=found["running"],
                      failed={name: {"status": "failed", "error": found["messages"].get(name, "")} for name in found["failed"]})
        check.save()
    outcome = machine.run(command(machine, program, names), min(MODULE_SECONDS, machine.left()), note)
    note(outcome.stdout)
    passed = parse(outcome.stdout)["ok"]
    if outcome.code == 0 and len(passed) == len(names):
        return
    record["together"] = outcome.why()
    left = [name for name in names if name not in passed]
    for name in left:
        record["failed"].setdefault(name, {"status": "not reached", "error": ""})
    for name in left:
        if machine.left() < 1:
            break
        record["failed"].update(one_by_one(machine, program, [name], TEST_SECONDS))
        check.save()
    judge(record)


def judge(record):
    """Tells apart what means nothing on a card; raises for what is left."""
    record["explained"] = {name: f"{test['why']}; {test['error']}" for name, test in record["failed"].items()
                           if test["status"] == "explained"}
    bad = {name: test for name, test in record["failed"].items() if test["status"] not in ("explained", "ok")}
    if bad:
        raise Failed("; ".join(f"{name}: {test['status']}{': ' if test['error'] else ''}{test['error']}" for name, test in bad.items()))
    if not record["explained"]:
        raise Failed(f"all pass alone, but not together: {record['together']}")


def one_by_one(machine, program, names, seconds):
    """What becomes of each test in a process of its own."""
    found = {}
    for name in names:
        try:
            outcome = machine.run(command(machine, program, [name]), seconds)
        except Failed as error:
            found[name] = {"status": "not run", "error": str(error)}
            continue
        tests = parse(outcome.stdout)
        if outcome.code == 0 and tests["ok"] == [name]:
            found[name] = {"status": "ok", "error": ""}
        elif name in tests["failed"]:
            found[name] = explained.judged(name, tests["messages"].get(name, "") or told(outcome.stderr))
        else:
            found[name] = {"status": "not done" if outcome.code is None else "crashed", "error": outcome.why()}
    return found


def command(machine, program, names):
    return [machine.programs[program], "--exact", "--ignored", "--test-threads", "1", *names]


STARTED = re.compile(r"^test (\S+) \.\.\. ?(.*)$")
MESSAGES = re.compile(r"^---- (\S+) stdout ----$")


def parse(text):
    """What a test program has printed so far: who passed, who failed and why, and who was running when it ended."""
    ok, failed, messages, running, section = [], [], {}, None, None
    for line in text.splitlines():
        if started := STARTED.match(line):
            running, line = started.groups()
        if running and line in ("ok", "FAILED"):
            (ok if line == "ok" else failed).append(running)
            running = None
        elif heading := MESSAGES.match(line):
            section = messages.setdefault(heading[1], [])
        elif line in ("failures:", "") and section:
            section = None
        elif section is not None and line and not line.startswith(("stack backtrace:", "note: run with")):
            section.append(line.strip())
    return {"ok": ok, "failed": failed, "running": running,
            "messages": {name: " | ".join(lines)[:600] for name, lines in messages.items()}}


def sanitized(which, program, module):
    """A piece: a module's tests under compute-sanitizer."""
    def work(check, record):
        need_gpu(check)
        machine, names = check.machine, modules(check.results["pack"]).get((program, module), [])
        sanitizer = tool("compute-sanitizer")
        if machine.rehearse or not sanitizer:
            raise Skipped("compute-sanitizer was not found" if not sanitizer else "a rehearsal")
        # Calls that fail on purpose, such as a library asking what a pointer is, are no finding.
        outcome = machine.run([sanitizer, "--tool", which, "--error-exitcode", "99", "--report-api-errors", "no", "--target-processes", "all",
                               *command(machine, program, names)])
        complaints = [line for line in outcome.stdout.splitlines() if line.startswith("=========") and len(line.strip("= ")) > 2
                      and not line.startswith("========= COMPUTE-SANITIZER")]
        tests = parse(outcome.stdout)
        record.update(of=len(names), passed=len(tests["ok"]), running=tests["running"], complaints=complaints[:30])
        if outcome.code != 0:
            raise Failed(f"{outcome.why()}; {complaints[-1] if complaints else 'nothing was found until then'}")
    return work
