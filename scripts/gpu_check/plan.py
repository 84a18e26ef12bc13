"""One piece of work after the other, in the order of their value; after each, all that is known is written down."""

import datetime
import json
import time
from typing import Callable, NamedTuple

from . import report
from .programs import Failed, complain

LEAST_SECONDS = 8


class Skipped(Failed):
    """There is nothing to be done on this machine; that is no failure."""


class Interrupted(Exception):
    """The runner was told to end."""


class Piece(NamedTuple):
    """What is done or not done as a whole. `work` is given the check and the piece's record, which it fills as it goes."""

    name: str
    part: str
    limit: float
    work: Callable
    # Less time than this is not worth beginning with.
    least: float = LEAST_SECONDS
    # Until this is true something else may be done: the first piece behind it that is a filler.
    ready: Callable | None = None
    filler: bool = False


class Check:
    """A run: the machine, what was found so far, and where it is written."""

    def __init__(self, machine, args, pack):
        self.machine, self.args, self.rivals = machine, args, {}
        self.results = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "rehearsal": machine.rehearse,
            "pack": pack, "gpu": None, "off": machine.off, "roofs": None, "pieces": {}, "cases": {}, "sample": {}, "train": {},
            "ops": {}, "attention": {}, "kernels": {}, "data": {}, "targets": [], "exit_code": 1,
        }

    def save(self):
        """JSON and table as things stand, each whole or not at all. What cannot be shown is no reason to stop."""
        try:
            self.results["targets"] = [] if self.machine.rehearse else report.targets(self.results)
            table = report.table(self.results)
        except Exception as error:  # noqa: BLE001: some program's answer lacks what the table shows
            table = f"no table could be made of gpu-check.json: {type(error).__name__}: {error}\n"
        for name, text in [("gpu-check.json", json.dumps(self.results, indent=1) + "\n"), ("table.txt", table)]:
            fresh = self.machine.out / f".{name}.tmp"
            try:
                fresh.write_text(text)
                fresh.replace(self.machine.out / name)
            except OSError as error:  # a full disk: what stood there stays, and the next time may succeed
                complain(f"{name} is not up to date: {error}")
        return table

    def take_rival(self, name):
        """A server that was started for a piece before; whoever takes it stops it."""
        if name not in self.rivals:
            raise Failed("PyTorch's side was not started")
        return self.rivals.pop(name)


def go_through(check, pieces):
    """Whatever fails, the next piece is tried; what there is no time for is named."""
    records = check.results["pieces"]
    for piece in pieces:
        records[piece.name] = {"part": piece.part, "status": "not run", "why": "not reached"}
    left = list(pieces)
    while left:
        piece = choose(left)
        left.remove(piece)
        one(check, piece, records[piece.name])


def choose(left):
    """The next in order; or, while that one must wait, what can be done meanwhile."""
    if left[0].ready is not None and not left[0].ready():
        return next((piece for piece in left if piece.filler), left[0])
    return left[0]


def one(check, piece, record):
    machine = check.machine
    begun = time.monotonic()
    machine.deadline = min(begun + piece.limit, machine.end)
    if machine.left() < piece.least:
        record["why"] = f"{max(0, machine.left()):.0f} s were left, and it is not begun with less than {piece.least:.0f} s"
        check.save()
        return
    record.update(status="running", why="", begun=round(begun - machine.started, 2))
    check.save()
    machine.say(f"{piece.name} (at most {machine.left():.0f} s)")
    try:
        piece.work(check, record)
        record["status"] = "explained" if record.get("explained") else "ok"
    except Skipped as reason:
        record.update(status="skipped", why=str(reason))
    except Failed as error:
        record.update(status="failed", why=str(error))
    except Interrupted:
        record.update(status="interrupted", why="the runner was told to end")
        raise
    except Exception as error:  # noqa: BLE001: a mistake here must not lose the other pieces either
        record.update(status="failed", why=f"{type(error).__name__}: {error}")
    finally:
        record["seconds"] = round(time.monotonic() - begun, 2)
        check.save()
    if record["why"]:
        machine.say(f"  {record['status']}: {record['why']}")
