"""The pieces without a rival: what the machine is, its roofs, a run from start to end, each operation, the loader."""

import json
import re
import shutil
import sys
import time

from . import comparisons, images, roofs
from .programs import Failed, Program, documents, last_document

FIRST_STEP_SECONDS = 60
ENGINES_SECONDS = 20


def doctor(check, record):
    """Our program's view of the machine."""
    record["python"] = sys.version.split()[0]
    record["ddpm"] = check.machine.ddpm("doctor")


def measure_roofs(check, record):
    """What this card's memory and matrix units do at most; operations are held against that."""
    machine = check.machine
    roofs_found = machine.json([sys.executable, "benches/torch_roofs.py", "--device", machine.rivals_device])
    check.results["roofs"] = {**roofs_found, "source": "measured here"}


def try_rival(check, record):
    """A training step of a tiny network in PyTorch and diffusers: a clash of packages shows here, not after minutes."""
    machine = check.machine
    precision = "f32" if machine.rehearse else "bf16"
    record.update(machine.json([
        sys.executable, "benches/torch_step.py", machine.tiny, "--mode", comparisons.EAGER, "--device", machine.rivals_device,
        "--precision", precision, "--repeat", 2]))


def train(check, record):
    """The quick start from its first step to its last picture, as a user would run it."""
    machine = check.machine
    found, place = check.results["train"], machine.scratch / "quickstart"
    shutil.rmtree(place, ignore_errors=True)
    config, settings = machine.directory / "configs/quickstart.toml", []
    if machine.rehearse:
        config = machine.tiny
        settings = ["--max-steps", 4, "--set", "log.every=1", "--set", "sample.num=4", "--set", "sample.steps=2", "--set",
                    f"data.source={images.folder(machine, config, 4)}", "--set", "data.split="]

    def look(_=None):
        metrics = place / "metrics.jsonl"
        if metrics.is_file() and (lines := documents(metrics.read_text())):
            found["last"] = lines[-1]
        pictures = sorted((place / "samples").glob("*.png"))
        if pictures:
            shutil.copyfile(pictures[-1], machine.out / "quickstart.png")
            found["picture"] = f"quickstart.png, after step {int(re.sub(r'[^0-9]', '', pictures[-1].stem))}"
        check.save()
    outcome = machine.run([machine.programs["ddpm"], "train", config, "--run-dir", place, "--device", machine.device, "--json",
                           *settings], progress=look)
    look()
    document = last_document(outcome.stdout)
    if outcome.code or not isinstance(document, dict):
        raise Failed(outcome.why())
    found.update(steps=document.get("step"), seconds=document.get("seconds"), whole_seconds=outcome.seconds)
    if "picture" not in found:
        raise Failed("the run left no picture")


def start(check, record):
    """Seconds from starting `ddpm train` to the first step in its metrics."""
    machine, case = check.machine, comparisons.cases(check)[0]
    place, config = machine.scratch / "start", comparisons.config(machine, case)
    shutil.rmtree(place, ignore_errors=True)
    settings = comparisons.overrides(machine, case, images.folder(machine, config, 4 * case.batch))
    metrics, begun = place / "metrics.jsonl", time.monotonic()
    program = Program(machine, [machine.programs["ddpm"], "train", config, "--run-dir", place, "--max-steps", 3, "--set",
                                "log.every=1", *settings])
    try:
        while not (metrics.is_file() and b"\n" in metrics.read_bytes()):
            if program.process.poll() not in (None, 0):
                raise Failed(f"`ddpm train` ended with code {program.process.returncode}: {program.errors()[-300:]}")
            if time.monotonic() - begun > min(FIRST_STEP_SECONDS, max(1, machine.left())):
                raise Failed(f"no first step in {time.monotonic() - begun:.0f} s")
            time.sleep(0.01)
        check.results["train"]["first_step_seconds"] = time.monotonic() - begun
        record.update(config=case.config, batch_size=case.batch)
        keep_engines(machine, program, place / "engines.json")
    finally:
        program.kill()


def keep_engines(machine, program, path):
    """What was found to be the fastest on this card, which a run writes with its checkpoint: worth keeping for others."""
    until = time.monotonic() + min(ENGINES_SECONDS, max(0, machine.left()))
    while not path.is_file() and program.process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    if path.is_file():
        shutil.copyfile(path, machine.out / path.name)


def saves(check, record):
    """How long a save keeps the card without work: from its beginning, when all steps before are done, to the next step's launch."""
    machine, case = check.machine, comparisons.cases(check)[0]
    place, trace, config = machine.scratch / "saves", machine.scratch / "saves.json", comparisons.config(machine, case)
    shutil.rmtree(place, ignore_errors=True)
    every = 2 if machine.rehearse else 100
    settings = comparisons.overrides(machine, case, images.folder(machine, config, 4 * case.batch))
    outcome = machine.run([machine.programs["ddpm"], "train", config, "--run-dir", place, "--trace", trace, *settings,
                           "--max-steps", 4 * every + 1, "--set", f"checkpoint.every={every}", "--set", "sample.every=0"])
    shutil.rmtree(place, ignore_errors=True)
    if outcome.code:
        raise Failed(outcome.why())
    spans = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    launched = sorted(span["ts"] + span["dur"] for span in spans if span["name"] == "step")
    snapshots = sorted((span["ts"], span["dur"]) for span in spans if span["name"] == "snapshot")
    gaps = [next(after for after in launched if after > ts) - ts for ts, _ in snapshots if ts < launched[-1]]
    record.update(config=case.config, saves=len(gaps), milliseconds=[round(gap / 1000, 3) for gap in gaps],
                  copies=[round(dur / 1000, 3) for _, dur in snapshots])


def ops(check, record):
    """Each operation's time and its floor, as they are measured."""
    machine, case, found = check.machine, comparisons.cases(check)[0], check.results["ops"]
    config = comparisons.config(machine, case)
    rates = check.results["roofs"] or roofs.H200
    found.update(config=case.config, batch_size=case.batch, precision=case.precision, roofs=rates["source"])

    def note(text):
        lines = documents(text)
        whole = next((line for line in lines if "ops" in line), {})
        measured = whole.get("ops") or [line["op"] for line in lines if "op" in line]
        found.update({key: value for key, value in whole.items() if key != "ops"}, complete=bool(whole),
                     ops=[{**op, **roofs.floor(op, rates)} for op in measured])
        check.save()
    outcome = machine.run([machine.programs["ddpm"], "bench", "ops", config, "--json", *comparisons.overrides(
        machine, case, images.folder(machine, config, case.batch))], progress=note)
    note(outcome.stdout)
    if outcome.code or not found["complete"]:
        raise Failed(f"{outcome.why()}; {len(found['ops'])} operations were measured")


def attention(check, record):
    """A layer's attention by each way PyTorch has, to be set beside ours among the operations."""
    machine = check.machine
    shape = ["--shape", "2,1,16,32"] if machine.rehearse else []
    found = machine.json([sys.executable, "benches/torch_attention.py", "--device", machine.rivals_device, *shape])
    check.results["attention"] = found
    if all("error" in backend for backend in found["backends"].values()):
        raise Failed("; ".join(f"{name}: {backend['error']}" for name, backend in found["backends"].items()))


def data(check, record):
    """How long a step waits for images that are read and decoded; and the loader alone."""
    wait = check.results["data"]["wait"] = {}
    for name, case in check.results["cases"].items():
        if "ours" in case:
            waited, whole = case["ours"]["phases_ms"]["data"], case["ours"]["median_ms"]
            wait[name] = {"wait_ms": waited, "step_ms": whole, "share": waited / whole}
    loader, errors = check.results["data"].setdefault("loader", {}), []
    for case in {case.config: case for case in comparisons.cases(check)}.values():
        config = comparisons.config(check.machine, case)
        source = images.folder(check.machine, config, 4 * case.batch)
        try:
            loader[case.config] = check.machine.ddpm("bench", "data", config, *comparisons.overrides(check.machine, case, source))
        except Failed as error:
            errors.append(f"{case.config}: {error}")
    if errors:
        raise Failed("; ".join(errors))
