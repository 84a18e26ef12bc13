"""How programs are run: what they print is in the log as it comes, and can be read while they run and after they were killed."""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

# A log that is larger would not be copied back from every machine; what a program prints beyond it is read all the same.
LOG_BYTES = 12 * 2**20
OUTPUT_BYTES = 32 * 2**20
LAST_LINES = 40
# How often a caller is told of what a program has printed meanwhile.
PROGRESS_SECONDS = 1.0
# Told to every program in its environment, which their children inherit.
MARK = "GPU_CHECK_RUNNER"
# Waits until the runner has ended, however that was, and then ends whatever carries its mark.
REAPER = """
import os, sys, time
sys.stdin.read()
for _ in range(40):
    found = False
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if sys.argv[1].encode() in file.read().split(b"\\0"):
                    found = True
                    os.kill(int(name), 9)
        except OSError:
            continue
    if not found:
        break
    time.sleep(0.05)
"""


class Failed(Exception):
    """Why a piece has no result, or not all of it."""


class Log:
    """What everything prints, in one file, as it comes; several programs at once are told apart."""

    def __init__(self, path):
        self.file = open(path, "wb", buffering=0)
        self.lock, self.written, self.last, self.open_line = threading.Lock(), 0, None, False

    def write(self, writer, data):
        with self.lock:
            if writer != self.last:
                data = (b"\n" if self.open_line else b"") + f"[{writer}]\n".encode() + data
                self.last = writer
            if self.written > LOG_BYTES:
                return
            self.written += len(data)
            self.open_line = not data.endswith(b"\n")
            try:
                self.file.write(data)
                if self.written > LOG_BYTES:
                    self.file.write(b"\n[gpu-check]\nthe log ends here: it would grow too large\n")
            except OSError as error:  # a full disk: what is measured counts all the same
                complain(f"the log has a gap: {error}")

    def say(self, text):
        self.write("gpu-check", f"{text}\n".encode())


def complain(text, said=set()):  # noqa: B006: what was said is remembered
    """Tells of what cannot be written, once."""
    if text not in said:
        said.add(text)
        print(f"warning: {text}", file=sys.stderr, flush=True)


class Reaper:
    """A process that outlives a killed runner for a moment, so that no program goes on using the GPU."""

    def __init__(self):
        self.mark = f"{os.getpid()}-{time.time_ns()}"
        self.process = subprocess.Popen([sys.executable, "-I", "-S", "-c", REAPER, f"{MARK}={self.mark}"], process_group=0,
                                        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def finish(self):
        """Ends what is left, children that have left their group among it."""
        self.process.stdin.close()
        self.process.wait()


class Program:
    """A program in a process group of its own, so that it can be ended with its children."""

    count = 0

    def __init__(self, machine, command, environment=None):
        command = [str(word) for word in command]
        Program.count += 1
        self.name, self.log = f"{Program.count} {pathlib.Path(command[0]).name}", machine.log
        self.output, self.last_lines = bytearray(), collections.deque(maxlen=LAST_LINES)
        self.changed, self.started = threading.Condition(), time.monotonic()
        self.log.say(f"{self.started - machine.started:.1f} s, {self.name}: {' '.join(command)}")
        try:
            self.process = subprocess.Popen(
                command, cwd=machine.directory, env={**machine.environment, **(environment or {})}, process_group=0,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            raise Failed(f"{command[0]} cannot be started: {error.strerror}") from None
        self.pumps = [threading.Thread(target=self.pump, args=(stream, keep), daemon=True)
                      for stream, keep in [(self.process.stdout, True), (self.process.stderr, False)]]
        for pump in self.pumps:
            pump.start()
        machine.children.append(self)

    def pump(self, stream, keep):
        """Into the log and, of stdout, into `output`; of stderr the last lines are kept."""
        rest = b""
        while data := os.read(stream.fileno(), 1 << 16):
            self.log.write(self.name, data)
            if not keep:
                *lines, rest = (rest + data).split(b"\n")
                self.last_lines.extend(line for line in lines if line.strip())
                continue
            with self.changed:
                if len(self.output) < OUTPUT_BYTES:
                    self.output += data
                self.changed.notify_all()
        if rest.strip():
            self.last_lines.append(rest)
        with self.changed:
            self.changed.notify_all()

    def text(self):
        with self.changed:
            return self.output.decode(errors="replace")

    def errors(self):
        """What it said last on stderr."""
        return "\n".join(line.decode(errors="replace") for line in list(self.last_lines))

    def wait(self, seconds, progress=None):
        """The exit code, or None if it was not done in time and was killed."""
        until, told = time.monotonic() + seconds, time.monotonic()
        while self.process.poll() is None and time.monotonic() < until:
            with self.changed:
                self.changed.wait(0.02)
            if progress and time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                progress(self.text())
        code = self.process.poll()
        self.kill()
        return code

    def kill(self):
        """Ends it and its children, and takes what they have printed."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self.process.wait()
        for pump in self.pumps:
            pump.join(2)  # a child of its own that has left the group may hold the pipe


class Outcome:
    """How a program ended and what it printed."""

    def __init__(self, program, code, seconds):
        self.program, self.code, self.stdout, self.stderr = program.name.split(" ", 1)[1], code, program.text(), program.errors()
        self.seconds, self.limit = time.monotonic() - program.started, seconds

    def why(self):
        """One line that says what went wrong."""
        if self.code is None:
            return f"not done after {self.limit:.0f} s: {self.program}{told(self.stderr)}"
        if self.code < 0:
            return f"{self.program} ended by {signal.Signals(-self.code).name}{told(self.stderr)}"
        return f"exit code {self.code}: {self.program}{told(self.stderr)}"


def told(stderr):
    """The line of what a program said on stderr that is most likely to be the reason."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    wanted = [line for line in lines if "error" in line.lower() or "panicked" in line] or lines
    return f": {wanted[-1][:300]}" if wanted else ""


class Server:
    """A rival that was started with --serve: warmed up once, asked as often as one likes."""

    def __init__(self, machine, command):
        self.machine, self.position, self.ready = machine, 0, None
        self.program = Program(machine, [sys.executable, *command, "--serve"])

    def line(self):
        """The next whole line that it printed, or None."""
        with self.program.changed:
            end = self.program.output.find(b"\n", self.position)
            if end < 0:
                return None
            line = self.program.output[self.position:end].decode(errors="replace")
            self.position = end + 1
            return line

    def answer(self, limit, key):
        """The next document it prints that has this key: libraries print documents of their own."""
        until = time.monotonic() + limit
        while True:
            ended = self.program.process.poll() is not None and not any(pump.is_alive() for pump in self.program.pumps)
            line = self.line()
            if line is None:
                if ended:
                    raise Failed(f"PyTorch ended with code {self.program.process.returncode}{told(self.program.errors())}")
                if time.monotonic() > until:
                    raise Failed(f"PyTorch gave no answer in {limit:.0f} s{told(self.program.errors())}")
                with self.program.changed:
                    self.program.changed.wait(0.05)
                continue
            document = last_document(line)
            if isinstance(document, dict):
                if "error" in document:
                    raise Failed(str(document["error"]))
                if key in document:
                    return document

    def settled(self):
        """Whether `warm` would answer at once."""
        return b'{"ready"' in self.program.output or self.program.process.poll() is not None

    def warm(self, limit):
        """Waits until it says that it is ready, and remembers what it said."""
        if self.ready is None:
            self.ready = self.answer(limit, "ready")
        return self.ready

    def measure(self, repeat, limit):
        try:
            self.program.process.stdin.write(f"measure {repeat}\n".encode())
            self.program.process.stdin.flush()
        except OSError:
            pass  # it has ended: `answer` says how
        return self.answer(limit, "median_ms")

    def stop(self):
        self.program.kill()


def documents(text):
    """The JSON objects in a text that take a whole line each. Half a line is none."""
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return [document for document in found if isinstance(document, dict)]


def last_document(text):
    """The JSON object with which a text ends, be it on one line or several, or None."""
    for start in [0, text.find("{"), text.rfind("\n{") + 1]:
        try:
            return json.loads(text[max(0, start):])
        except json.JSONDecodeError:
            continue
    return None
