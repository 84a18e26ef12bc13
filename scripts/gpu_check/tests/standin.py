"""Stands in for every program that gpu-check starts: it answers as they do, or fails as they may.

Who it is, its file's name says. STANDIN is a JSON object in the environment that says what goes wrong:
  crash_together      names of tests that pass in a process of their own
  crash, hang, fail   names of tests; fail may be an object of names and messages
  needs_switch        an object: tests that fail unless this family is in DDPM_GPU_OFF
  poison              after a crash is caught, every test behind it in the same process fails too
  compile_seconds     how long torch.compile takes          ops_seconds   how long each operation takes
  compiled_dies       at its second measurement
  ops_hang, ncu_hang, train_hang      say half of it and hang
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

WRONG = json.loads(os.environ.get("STANDIN", "{}"))
OPS = [{"name": f"op {number}", "shape": "[1]", "count": 2, "ms": 1.0 + number, "bytes": 1000, "flop": 10} for number in range(4)]
HEADER = '"ID","Process ID","Process Name","Kernel Name","Grid Size","Metric Name","Metric Unit","Metric Value"'
KERNELS = ["flash_forward", "conv2d_fprop(int)", "adamw", "conv2d_fprop(int)"]


def say(value, end="\n"):
    print(value if isinstance(value, str) else json.dumps(value), end=end, flush=True)


def hang():
    time.sleep(600)


def measured(ms=10.0):
    if "sample" in sys.argv:  # ours says less of it
        return {"batch_size": value("--batch", "sample.num"), "median_ms": ms, "images_per_s": 1000 / ms}
    return {"parameters": 5, "batch_size": value("--batch", "train.batch_size"), "precision": value("--precision", "train.precision"),
            "median_ms": ms, "min_ms": ms, "max_ms": ms, "images_per_s": 1000 / ms, "peak_bytes": 2**20,
            "phases_ms": {"data": 0.1, "forward": 1, "backward": 2, "optimizer": 3}}


def value(option, key):
    """What the command line says for it."""
    found = [word.partition("=")[2] for word in sys.argv if word.startswith(f"{key}=")]
    found += [sys.argv[at + 1] for at, word in enumerate(sys.argv) if word == option]
    return int(found[0]) if found and found[0].isdigit() else (found or [None])[0]


def rival():
    """benches/torch_step.py and torch_sample.py."""
    if "--serve" not in sys.argv:
        return say(measured())
    if "reduce-overhead" in sys.argv:
        time.sleep(WRONG.get("compile_seconds", 0))
    say({"ready": True})
    for number, _ in enumerate(sys.stdin):
        if WRONG.get("compiled_dies") and "reduce-overhead" in sys.argv and number == 1:
            sys.exit("error: out of memory")
        say(measured(20.0))


def tests():
    """A test program."""
    names, failed, poisoned = [word for word in sys.argv[1:] if "::" in word], {}, False
    off = os.environ.get("DDPM_GPU_OFF", "").split(",")
    say(f"\nrunning {len(names)} tests")
    for name in names:
        say(f"test {name} ... ", end="")
        if name in WRONG.get("hang", []):
            hang()
        if name in WRONG.get("crash_together", []) and len(names) > 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if name in WRONG.get("crash", []):
            print("a kernel read what it must not", file=sys.stderr, flush=True)
            if not WRONG.get("poison"):
                os.kill(os.getpid(), signal.SIGSEGV)
            poisoned = True
        needed = WRONG.get("needs_switch", {}).get(name)
        bad = name in WRONG.get("fail", []) or poisoned or (needed is not None and needed not in off)
        if bad:
            failed[name] = (WRONG["fail"].get(name) if isinstance(WRONG.get("fail"), dict) else None) or "an illegal memory access"
        say("FAILED" if bad else "ok")
    if failed:
        say("\nfailures:\n")
        for name, message in failed.items():
            say(f"---- {name} stdout ----\nthread panicked at file.rs:1:1:\n{message}\nnote: run with RUST_BACKTRACE=1\n")
        say("\nfailures:\n" + "\n".join(f"    {name}" for name in failed))
    say(f"\ntest result: {'FAILED' if failed else 'ok'}. {len(names) - len(failed)} passed; {len(failed)} failed; 0 ignored")
    sys.exit(101 if failed else 0)


def train():
    place = pathlib.Path(value("--run-dir", "none"))
    (place / "samples").mkdir(parents=True)
    with open(place / "metrics.jsonl", "w") as metrics:
        print(json.dumps({"step": 4, "loss": 0.5, "timing": {"images_per_s": 7}}), file=metrics)
    (place / "samples/step-000000004.png").write_bytes(b"a picture")
    if WRONG.get("train_hang"):  # with a child that has left its group
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", place], start_new_session=True)
        hang()
    (place / "engines.json").write_text("{}")
    if trace := value("--trace", None):
        spans = [("step", 0, 900), ("snapshot", 1000, 400), ("step", 1500, 700)]
        events = [{"name": name, "ph": "X", "ts": ts, "dur": dur} for name, ts, dur in spans]
        pathlib.Path(trace).write_text(json.dumps({"traceEvents": [{"name": "thread_name", "ph": "M"}, *events]}))
    say({"step": 4, "seconds": 0.1})


def ops():
    for number, op in enumerate(OPS):
        time.sleep(WRONG.get("ops_seconds", 0))
        if WRONG.get("ops_hang") and number == 3:
            say('{"op": {"name": "half a', end="")
            hang()
        say({"op": op})
    say({"device": "none", "precision": "bf16", "batch_size": 1, "ops": OPS})


def ddpm():
    match sys.argv[1:3]:
        case ["doctor", *_]:
            say({"findings": []})
        case ["train", *_]:
            train()
        case ["bench", "ops"]:
            ops()
        case ["bench", "data"]:
            say({"images_per_s": 5})
        case ["bench", _]:
            say(measured())


def ncu():
    assert "--clock-control" in sys.argv and os.environ["DDPM_GPU_PROFILE"] == "1"
    say("==PROF== Connected to process 1")
    say(measured())
    say(HEADER)
    for number, name in enumerate(KERNELS):
        line = f'"{number}","1","ddpm","{name}","(1, 1, 1)","gpu__time_duration.sum","ns","1,000"'
        if WRONG.get("ncu_hang") and number == 3:
            say(line[:-3], end="")  # one digit of four: the most misleading half
            hang()
        say(line)


def sanitizer():
    say("========= COMPUTE-SANITIZER")
    sys.argv = [word for word in sys.argv if "::" in word or word == sys.argv[0]]
    tests()


def main():
    match pathlib.Path(sys.argv[0]).name:
        case "ddpm":
            ddpm()
        case "torch_step.py" | "torch_sample.py":
            rival()
        case "torch_roofs.py":
            say({"bytes_per_s": 1e12, "flop_per_s": 1e14})
        case "torch_attention.py":
            say({"shape": [128, 1, 256, 256], "backends": {"cudnn": {"forward_us": 30, "backward_us": 90}, "flash": {"error": "too wide"}}})
        case "make_images.py":
            for number in range(int(sys.argv[3])):
                pathlib.Path(sys.argv[1], f"{number}.png").touch()
        case "nvidia-smi":
            say("A card, 580, 80 GB, 1, 2, 3, 4")
        case "ncu":
            ncu()
        case "compute-sanitizer":
            sanitizer()
        case _:
            tests()


main()
