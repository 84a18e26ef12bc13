"""Where gpu-check runs: its GPU, its Python, the libraries, the clock."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile

from .programs import MARK, Failed, Log, Outcome, Program, Reaper, last_document

SWITCHES = "DDPM_GPU_OFF"
# What it may turn off; see docs/cuda.md.
FAMILIES = ["graph", "flash", "fuse", "bgradb"]
# A tiny network with what the large ones have, for rehearsals and to try PyTorch's side.
TINY = """\
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


class Machine:
    """What every piece is given."""

    def __init__(self, directory, out, minutes, rehearse):
        """`rehearse` is None, or the device that takes the GPU's place."""
        self.directory, self.out, self.rehearse = directory, out, rehearse
        self.device, self.rivals_device = rehearse or "cuda", "cpu" if rehearse else "cuda"
        self.started = time.monotonic()
        self.end = self.started + minutes * 60 - 10  # to write and print
        self.deadline = self.end
        out.mkdir(parents=True, exist_ok=True)
        self.log = Log(out / "gpu-check.log")
        self.scratch = scratch(out, rehearse)
        self.children, self.programs, self.off, self.reaper = [], {}, {}, Reaper()
        self.full_autotune = False
        self.environment = {**environment(self.scratch, rehearse), MARK: self.reaper.mark}
        for switch in filter(None, map(str.strip, os.environ.get(SWITCHES, "").split(","))):
            if switch not in FAMILIES:
                raise ValueError(f"{SWITCHES}: found {switch}, expected any of {', '.join(FAMILIES)}")
            self.turn_off(switch, "the environment said so")
        self.tiny = self.scratch / "tiny.toml"
        self.tiny.write_text(TINY)

    def unpack(self):
        """Our programs, and what this Python lacks."""
        unpack_missing(self.directory / "wheels", self.scratch / "site")
        self.programs = unpack_programs(self.directory, self.scratch)

    def left(self):
        return self.deadline - time.monotonic()

    def say(self, text):
        print(text, file=sys.stderr, flush=True)
        self.log.say(text)

    def turn_off(self, switch, why):
        """From here on every program is told to do without this family of kernels."""
        self.off[switch] = why
        self.environment[SWITCHES] = ",".join(self.off)

    def run(self, command, limit=None, progress=None, environment=None):
        """Runs a program to its end or to its limit: what became of it."""
        seconds = min(self.left(), limit or self.left())
        if seconds <= 0:
            raise Failed("no time was left")
        program = Program(self, command, environment)
        program.process.stdin.close()
        try:
            return Outcome(program, program.wait(seconds, progress), seconds)
        except BaseException:  # told to end: what it has printed counts
            program.kill()
            if progress:
                progress(program.text())
            raise

    def json(self, command, limit=None):
        """The JSON document that a program prints; a failure says what the program said."""
        outcome = self.run(command, limit)
        document = last_document(outcome.stdout)
        if outcome.code == 0 and isinstance(document, dict) and "error" not in document:
            return document
        error = document.get("error") if isinstance(document, dict) else None
        message = error.get("message") if isinstance(error, dict) else error
        raise Failed(f"exit code {outcome.code}: {message}" if message else outcome.why())

    def ddpm(self, *arguments, limit=None):
        return self.json([self.programs["ddpm"], *arguments, "--json"], limit)

    def close(self):
        for program in self.children:
            program.kill()
        self.reaper.finish()
        for name in ["programs", "site"]:
            shutil.rmtree(self.scratch / name, ignore_errors=True)


def scratch(out, rehearse):
    """A folder that stays between calls, for what torch.compile has compiled; of this user's, and on a rehearsal within `out`."""
    folder = out / "scratch" if rehearse else pathlib.Path(tempfile.gettempdir(), f"gpu-check-{os.getuid()}")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        sys.exit(f"error: {folder} belongs to someone else")
    return folder


def tool(name):
    """Where a tool of the CUDA toolkit is, or None."""
    return shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}")


def unpack_programs(directory, scratch):
    """Our program and the test programs, by name."""
    folder = scratch / "programs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with tarfile.open(directory / "programs.tar.xz") as packed:
        for member in packed:
            path = folder / pathlib.Path(member.name).name
            with packed.extractfile(member) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
            path.chmod(0o755)
    return {path.name: path for path in sorted(folder.iterdir())}


def environment(scratch, rehearse):
    """PyTorch's own CUDA libraries for our program, and diffusers with what it needs for PyTorch."""
    nvidia = pathlib.Path(sysconfig.get_paths()["purelib"], "nvidia")
    # A rehearsal on an emulator must not meet the real libraries.
    folders = [] if rehearse else [*sorted(map(str, nvidia.glob("*/lib"))), "/usr/local/nvidia/lib64", "/usr/local/nvidia/lib"]
    return {
        **os.environ, "LD_LIBRARY_PATH": joined(folders, "LD_LIBRARY_PATH"), "PYTHONPATH": joined([str(scratch / "site")], "PYTHONPATH"),
        "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1",
        # Our programs have no symbols: a backtrace would only push the message out of sight.
        "RUST_BACKTRACE": "0",
        # Kept between calls: what was compiled once need not be again.
        "CUDA_CACHE_PATH": str(scratch / "cuda"), "CUDA_CACHE_MAXSIZE": str(4 * 2**30),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"), "TRITON_CACHE_DIR": str(scratch / "triton"),
    }


def joined(paths, variable):
    """A search path: these first, then what the variable has."""
    return ":".join([*paths, *filter(None, [os.environ.get(variable)])])


def unpack_missing(wheels, site):
    """A folder with those packages of ours that this Python lacks. Pure wheels need no more than to be unpacked."""
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    packages = {wheel.name.split("-")[0]: wheel for wheel in sorted(wheels.glob("*.whl"))}
    if packages:
        script = "import sys, importlib.util as u; print(*(p for p in sys.argv[1:] if u.find_spec(p) is None))"
        missing = subprocess.run([sys.executable, "-c", script, *packages], stdout=subprocess.PIPE, text=True).stdout.split()
        for package in missing:
            zipfile.ZipFile(packages[package]).extractall(site)


def gpu(machine):
    """What the GPU is, read and never changed: by nvidia-smi, or where that is missing by PyTorch. None if there is none."""
    fields = ["name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "power.limit", "temperature.gpu"]
    if shutil.which("nvidia-smi"):
        outcome = machine.run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"], 30)
        if outcome.code == 0 and outcome.stdout.strip():
            return dict(zip(fields, (value.strip() for value in outcome.stdout.splitlines()[0].split(","))))
    script = ("import torch, json; c = torch.cuda\n"
              "print(json.dumps({'name': c.get_device_name(), 'memory.total': c.get_device_properties(0).total_memory}"
              " if c.is_available() else {}))")
    if not any(pathlib.Path("/dev").glob("nvidia[0-9]*")) and not pathlib.Path("/dev/dxg").exists():
        return None
    with contextlib.suppress(Failed):
        return machine.json([sys.executable, "-c", script], 60) or None
    return None
