"""Where gpu-check runs: its GPU, its Python, the libraries, the clock; and how programs are run there."""

import json
import lzma
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import zipfile


class Failed(Exception):
    """Why a part, or a piece of one, has no result."""


class Machine:
    """What every part is given."""

    def __init__(self, directory, out, minutes, rehearse):
        self.directory, self.out, self.rehearse = directory, out, rehearse
        self.device = "cpu" if rehearse else "cuda"
        self.started = time.monotonic()
        self.end = self.started + minutes * 60 - 10  # to write and print
        self.deadline = self.end
        out.mkdir(parents=True, exist_ok=True)
        self.log = open(out / "gpu-check.log", "w", buffering=1)
        self.scratch = pathlib.Path(out if rehearse else "/tmp", "gpu-check-scratch")
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.environment = environment(directory, self.scratch)
        self.children = []
        self.program, self.tests = unpack_programs(directory, self.scratch)

    def left(self):
        return self.deadline - time.monotonic()

    def say(self, text):
        print(text, file=sys.stderr, flush=True)
        print(text, file=self.log)

    def start(self, command, **options):
        """A program in a process group of its own, so that it can be ended with its children."""
        command = [str(word) for word in command]
        print(f"[{time.monotonic() - self.started:6.1f} s] {' '.join(command)}", file=self.log)
        process = subprocess.Popen(command, cwd=self.directory, env=self.environment, text=True, start_new_session=True, **options)
        self.children.append(process)
        return process

    def run(self, command, limit=None):
        """Runs a program to its end: exit code, stdout. What it says on stderr goes to the log."""
        seconds = min(self.left(), limit or self.left())
        if seconds <= 1:
            raise Failed("no time was left")
        process = self.start(command, stdout=subprocess.PIPE, stderr=self.log, stdin=subprocess.DEVNULL)
        try:
            stdout, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill(process)
            raise Failed(f"not done after {seconds:.0f} s: {pathlib.Path(command[0]).name}") from None
        print(stdout, file=self.log)
        return process.returncode, stdout

    def json(self, command, limit=None):
        """The JSON document that a program prints; a failure says what the program said."""
        code, stdout = self.run(command, limit)
        document = last_document(stdout)
        if code == 0 and isinstance(document, dict) and "error" not in document:
            return document
        error = document.get("error") if isinstance(document, dict) else None
        message = error.get("message") if isinstance(error, dict) else error
        raise Failed(f"exit code {code}: {first_line(message or stdout) or 'see gpu-check.log'}")

    def ddpm(self, *arguments, limit=None):
        return self.json([self.program, *arguments, "--json"], limit)

    def kill(self, process):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()

    def close(self):
        for process in self.children:
            if process.poll() is None:
                self.kill(process)
        for name in ["bin", "tests", "site", "tools"]:
            shutil.rmtree(self.scratch / name, ignore_errors=True)


class Server:
    """A rival that was started with --serve: warmed up once, asked as often as one likes."""

    def __init__(self, machine, command):
        self.machine = machine
        self.process = machine.start([sys.executable, *command, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     stderr=machine.log, bufsize=1)
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def answer(self, limit):
        """The next document it prints."""
        until = time.monotonic() + limit
        while True:
            try:
                line = self.lines.get(timeout=max(0.1, until - time.monotonic()))
            except queue.Empty:
                raise Failed(f"PyTorch gave no answer in {limit:.0f} s") from None
            if line is None:
                raise Failed(f"PyTorch ended with code {self.process.wait()}: see gpu-check.log")
            print(line, end="", file=self.machine.log)
            document = last_document(line)
            if isinstance(document, dict):
                if "error" in document:
                    raise Failed(str(document["error"]))
                return document

    def measure(self, repeat):
        self.process.stdin.write(f"measure {repeat}\n")
        return self.answer(max(1, self.machine.left()))

    def stop(self):
        self.machine.kill(self.process)


def last_document(text):
    """The JSON object with which a text ends, or None."""
    for start in [0, text.find("{"), text.rfind("\n{") + 1]:
        try:
            return json.loads(text[max(0, start):])
        except json.JSONDecodeError:
            continue
    return None


def first_line(text):
    return next((line.strip() for line in str(text).splitlines() if line.strip()), "")[:300]


def unpack_programs(directory, scratch):
    """Our program, and the test programs."""
    programs = []
    for packed in [directory / "bin/ddpm.xz", *sorted((directory / "tests").glob("*.xz"))]:
        program = scratch / packed.parent.name / packed.stem
        program.parent.mkdir(exist_ok=True)
        program.write_bytes(lzma.decompress(packed.read_bytes()))
        program.chmod(0o755)
        programs.append(program)
    return programs[0], programs[1:]


def environment(directory, scratch):
    """PyTorch's own CUDA libraries for our program, and diffusers with what it lacks for PyTorch."""
    nvidia = pathlib.Path(sysconfig.get_paths()["purelib"], "nvidia")
    folders = [*sorted(map(str, nvidia.glob("*/lib"))), "/usr/local/nvidia/lib64", "/usr/local/nvidia/lib"]
    if before := os.environ.get("LD_LIBRARY_PATH"):
        folders.append(before)
    paths = [str(unpack_missing(directory / "wheels", scratch / "site"))]
    if before := os.environ.get("PYTHONPATH"):
        paths.append(before)
    return {
        **os.environ, "LD_LIBRARY_PATH": ":".join(folders), "PYTHONPATH": ":".join(paths), "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1",
        # Kept between calls: what was compiled once need not be again.
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
    }


def unpack_missing(wheels, site):
    """A folder with those packages of ours that this Python lacks. Pure wheels need no more than to be unpacked."""
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    for wheel in sorted(wheels.glob("*.whl")):
        package = wheel.name.split("-")[0]
        known = subprocess.run([sys.executable, "-c", f"import importlib.util as u; exit(u.find_spec('{package}') is None)"])
        if known.returncode:
            zipfile.ZipFile(wheel).extractall(site)
    return site


def gpu(machine):
    """What the GPU is, read and never changed: by nvidia-smi, or where that is missing by PyTorch. None if there is none."""
    fields = ["name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "power.limit", "temperature.gpu"]
    if shutil.which("nvidia-smi"):
        code, stdout = machine.run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"], 30)
        if code == 0 and stdout.strip():
            return dict(zip(fields, (value.strip() for value in stdout.splitlines()[0].split(","))))
    script = ("import torch, json; c = torch.cuda\n"
              "print(json.dumps({'name': c.get_device_name(), 'memory.total': c.get_device_properties(0).total_memory}"
              " if c.is_available() else {}))")
    if not any(pathlib.Path("/dev").glob("nvidia[0-9]*")) and not pathlib.Path("/dev/dxg").exists():
        return None
    try:
        return machine.json([sys.executable, "-c", script], 60) or None
    except Failed:
        return None
