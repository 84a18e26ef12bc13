"""A pack of stand-ins, and the real runner driven on it."""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

from gpu_check.machine import Machine
from gpu_check.plan import Check

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent.parent
STANDIN = pathlib.Path(__file__).with_name("standin.py")
TESTS = {
    "ddpm-kernels-gpu": ["attention::gpu_a", "attention::gpu_b", "attention::gpu_c", "conv2d::gpu_a", "dropout::gpu_a", "group_norm::gpu_a",
                         "group_norm_fused::gpu_a", "linear::gpu_a", "optim::gpu_a", "random::gpu_a", "random::gpu_b"],
    "ddpm-train-gpu": ["bench::gpu_steps_are_measured_in_blocks_and_by_phases", "memory::gpu_a_steps_memory_is_what_was_estimated",
                       "training::gpu_training_is_the_cpus"],
}
BEGUN = re.compile(r"^(.+) \(at most \d+ s\)$")


class Place:
    """A directory with a pack, tools on a PATH, and a place for results; all gone in the end."""

    def __init__(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="gpu-check-test-"))
        self.pack, self.out, self.tools = self.root / "pack", self.root / "out", self.root / "tools"
        for folder in [self.pack / "benches", self.pack / "configs", self.pack / "wheels", self.tools, self.root / "tmp"]:
            folder.mkdir(parents=True)
        program = self.root / "program"
        program.write_text(f"#!{sys.executable} -SE\n{STANDIN.read_text()}")
        program.chmod(0o755)
        for name in ["torch_step.py", "torch_sample.py", "torch_roofs.py", "torch_attention.py", "make_images.py"]:
            shutil.copy(program, self.pack / "benches" / name)
        for name in ["nvidia-smi", "ncu", "compute-sanitizer"]:
            shutil.copy(program, self.tools / name)
        for name in ["cifar10-ddpm", "quickstart", "church256"]:
            (self.pack / f"configs/{name}.toml").write_text("[data]\nimage_size = 32\n")
        with tarfile.open(self.pack / "programs.tar.xz", "w:xz") as archive:
            for name in ["ddpm", *TESTS]:
                archive.add(program, name)
        (self.pack / "pack.json").write_text(json.dumps({"tests": TESTS, "revision": "none"}))

    def environment(self, wrong):
        """No GPU but the stand-in's, and no other scratch space."""
        return {**os.environ, "PATH": f"{self.tools}:/usr/bin:/bin", "STANDIN": json.dumps(wrong), "TMPDIR": str(self.root / "tmp"),
                "OUT": str(self.out)}

    def start(self, *options, **wrong):
        """The runner, as a process."""
        return subprocess.Popen([sys.executable, SCRIPTS / "gpu-check", "run", self.pack, *options], env=self.environment(wrong),
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *options, **wrong):
        """To its end: exit code, stdout, results."""
        process = self.start(*options, **wrong)
        stdout, stderr = process.communicate(timeout=80)
        assert "Traceback" not in stderr, stderr
        return process.returncode, stdout, self.results()

    def results(self):
        """What is written, which is never half of it."""
        return json.loads((self.out / "gpu-check.json").read_text())

    def survivors(self):
        """Processes that still run something of this place, some seconds after its runner ended."""
        until = time.monotonic() + 8
        while (found := self.running()) and time.monotonic() < until:
            time.sleep(0.05)
        return found

    def running(self):
        found = []
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if str(self.root).encode() in (words := (folder / "cmdline").read_bytes()):
                    found.append(words.replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def check(self, seconds, **wrong):
        """A check in this process, with so many seconds for a piece, on a machine as the stand-ins make it."""
        os.environ.update({key: value for key, value in self.environment(wrong).items() if key in ("PATH", "STANDIN", "TMPDIR")})
        tempfile.tempdir = None
        machine = Machine(self.pack, self.out, 10, None)
        machine.unpack()
        machine.deadline = machine.end = time.monotonic() + seconds
        return Check(machine, argparse.Namespace(configs=None, parts=[], off=[]), {"tests": TESTS})

    def remove(self):
        shutil.rmtree(self.root, ignore_errors=True)


def kill_at(process, number, signal_number=signal.SIGKILL):
    """Ends the runner when it begins its piece of that number; the pieces begun, or None if there were fewer."""
    begun = []
    for line in process.stderr:
        if found := BEGUN.match(line):
            begun.append(found[1])
            if len(begun) == number:
                process.send_signal(signal_number)
                break
    process.communicate()
    return begun if len(begun) == number else None
