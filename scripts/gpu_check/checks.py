"""The parts without a rival: `doctor`, `tests`, `ops`, `data`."""

import re
import shutil
import sys
import zipfile

from . import comparisons, images
from .machine import Failed

SUMMARY = re.compile(r"test result: \w+\. (\d+) passed; (\d+) failed")
# What an H200 was measured to do (docs/performance.md); an operation's floor is the larger of its two times.
FLOP_PER_S, BYTES_PER_S = 790e12, 4.3e12


def doctor(machine, results):
    """Our program's view of the machine, and PyTorch's."""
    errors = []
    try:
        results["ddpm"] = machine.ddpm("doctor", limit=30)
    except Failed as error:
        errors.append(f"ddpm doctor: {error}")
    script = ("import json, torch, diffusers; print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda,"
              " 'cudnn': torch.backends.cudnn.version(), 'diffusers': diffusers.__version__}))")
    try:
        results["python"] = {"python": sys.version.split()[0], **machine.json([sys.executable, "-c", script], 60)}
    except Failed as error:
        errors.append(f"PyTorch with diffusers: {error}")
    if errors:
        raise Failed("; ".join(errors))


def tests(machine, results):
    """Every test program, then those of the kernels again under compute-sanitizer."""
    programs = machine.tests
    if not programs:
        raise Failed("the pack has no GPU test")
    results["programs"] = {path.name: test_program(machine, [path]) for path in programs}
    sanitizer = find_sanitizer(machine)
    if sanitizer:
        command = [sanitizer, "--tool", "memcheck", "--error-exitcode", "99", "--target-processes", "all"]
        kernels = [path for path in programs if path.name.startswith("ddpm-kernels")]
        results["sanitizer"] = {path.name: test_program(machine, [*command, path]) for path in kernels}
    else:
        results["sanitizer"] = "compute-sanitizer was not found"
    everyone = {**results["programs"], **({f"{k} (sanitizer)": v for k, v in results["sanitizer"].items()} if sanitizer else {})}
    bad = {name: outcome for name, outcome in everyone.items() if outcome["status"] != "ok"}
    if bad:
        raise Failed("; ".join(f"{name}: {outcome['error']}" for name, outcome in bad.items()))


def find_sanitizer(machine):
    """The machine's own compute-sanitizer, or the pack's."""
    installed = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if installed:
        return installed
    for wheel in machine.directory.glob("tools/nvidia_cuda_sanitizer_api-*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(machine.scratch / "tools")
        for program in machine.scratch.glob("tools/nvidia/*/bin/compute-sanitizer"):
            program.chmod(0o755)
            return program
    return None


def test_program(machine, command):
    """Counts, and the names of what failed."""
    try:
        code, stdout = machine.run([*command, "--ignored", "gpu", "--test-threads", "1"], 150)
    except Failed as error:
        return {"status": "failed", "error": str(error)}
    counts = SUMMARY.search(stdout)
    passed, failed = map(int, counts.groups()) if counts else (0, 0)
    names = re.findall(r"^test (\S+) \.\.\. FAILED", stdout, re.MULTILINE)
    if code == 0 and counts:
        return {"status": "ok", "passed": passed, "failed": failed}
    error = f"{failed} failed: {', '.join(names)}" if failed else f"exit code {code}"
    return {"status": "failed", "passed": passed, "failed": failed, "failures": names, "error": error}


def ops(machine, results):
    """Each operation's time and its floor; the machine's own is what `bench ops` measured, if it did."""
    case = comparisons.cases(machine, None)[0]
    document = machine.ddpm("bench", "ops", case.config, "--set", f"run.device={machine.device}", "--set",
                            f"train.batch_size={case.batch}", "--set", f"train.precision={case.precision}", "--set",
                            f"data.source={images.folder(machine, case.config, case.batch)}", limit=60)
    for op in document["ops"]:
        op["floor_ms"] = max(op["bytes"] / BYTES_PER_S, op["flop"] / FLOP_PER_S) * 1e3
        op["of_floor"] = op["floor_ms"] / op["ms"] if op["ms"] else None
    results.update(document)


def data(machine, results, step_results):
    """How long a step waits for images that are read and decoded; from the step part, and the loader alone."""
    results["wait"] = {}
    for name, case in step_results.get("cases", {}).items():
        if "ours" in case:
            wait, whole = case["ours"]["phases_ms"]["data"], case["ours"]["median_ms"]
            results["wait"][name] = {"wait_ms": wait, "step_ms": whole, "share": wait / whole}
    results["loader"], errors = {}, []
    for case in {case.config: case for case in comparisons.cases(machine, None)}.values():
        source = images.folder(machine, case.config, 4 * case.batch)
        try:
            results["loader"][case.config] = machine.ddpm(
                "bench", "data", case.config, *comparisons.overrides(machine, case, source), limit=30)
        except Failed as error:
            errors.append(f"{case.config}: {error}")
    if errors:
        raise Failed("; ".join(errors))
