"""The runner is killed wherever it may be: what was found until then is there, whole."""

import concurrent.futures
import re
import signal
import time
import unittest

from .support import BEGUN, Place, kill_at

FINAL = {"ok", "failed", "explained", "skipped"}


def at_boundary(number, signal_number):
    """A run that is killed when it begins its piece of that number: (pieces begun, results, table, survivors), or None."""
    place = Place()
    try:
        begun = kill_at(place.start("--minutes", "2"), number, signal_number)
        return begun and (begun, place.results(), (place.out / "table.txt").read_text(), place.survivors())
    finally:
        place.remove()


class Killed(unittest.TestCase):
    def setUp(self):
        self.place = Place()
        self.addCleanup(self.place.remove)

    def check_kills(self, signal_number, numbers):
        """Runs of which each is ended at one boundary."""
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            for number, found in zip(numbers, pool.map(lambda number: at_boundary(number, signal_number), numbers)):
                with self.subTest(signal=signal_number.name, piece=number):
                    self.assertIsNotNone(found, "there are fewer pieces")
                    self.check_one(*found)

    def check_one(self, begun, results, table, survivors):
        pieces = results["pieces"]
        for name in begun[:-1]:
            self.assertIn(pieces[name]["status"], FINAL, f"{name}, when {begun[-1]} began")
        self.assertEqual([name for name, piece in pieces.items() if piece["status"] != "not run" and name not in begun
                          and piece.get("begun", 0) < pieces[begun[-1]]["begun"]], [])
        self.assertEqual(results["exit_code"], 1)
        plain = re.sub(r"\s+", " ", table)
        for name in begun[:-1]:
            self.assertIn(name.removeprefix("smoke: ").removeprefix("tests: ").removeprefix("memory: "), plain)
        if "operations" in begun[:-1]:
            self.assertEqual(len(results["ops"]["ops"]), 4)
        if "step cifar10-ddpm: in turn" in begun[:-1]:
            self.assertEqual(results["cases"]["cifar10-ddpm"]["ours"]["rounds_ms"], [10.0] * 3)
        self.assertEqual(survivors, [], f"when {begun[-1]} began")

    def test_at_every_boundary_no_finished_piece_would_be_lost(self):
        """The runner is stopped where each piece begins: what is in its folder then is what a kill would leave."""
        process, begun = self.place.start("--minutes", "2"), []
        for line in process.stderr:
            if not (found := BEGUN.match(line)):
                continue
            begun.append(found[1])
            process.send_signal(signal.SIGSTOP)
            with self.subTest(piece=found[1]):
                self.check_one(list(begun), self.place.results(), (self.place.out / "table.txt").read_text(), [])
            process.send_signal(signal.SIGCONT)
        process.communicate()
        self.assertGreater(len(begun), 34)

    def test_a_kill_at_a_boundary_loses_no_finished_piece_and_leaves_no_program_behind(self):
        self.check_kills(signal.SIGKILL, [1, 5, 10, 16, 18, 20, 33])

    def test_being_told_to_end_at_a_boundary_loses_no_finished_piece(self):
        self.check_kills(signal.SIGTERM, [2, 9, 15, 19])

    def test_before_the_first_piece_there_is_a_document(self):
        process = self.place.start("--minutes", "2")
        while not (self.place.out / "gpu-check.json").is_file():
            time.sleep(0.005)
        process.kill()
        process.communicate()
        self.assertIn("pieces", self.place.results())

    def until(self, condition):
        """The results as soon as they fulfil a condition."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if (self.place.out / "gpu-check.json").is_file() and condition(found := self.place.results()):
                return found
            time.sleep(0.05)
        self.fail(f"not in 20 s: {self.place.results()}")

    def test_a_kill_inside_a_piece_leaves_what_it_had_printed(self):
        process = self.place.start("--minutes", "2", "--parts", "ops", ops_hang=True)
        self.until(lambda results: len(results["ops"].get("ops", [])) == 3)
        process.kill()
        process.communicate()
        results = self.place.results()
        self.assertEqual((len(results["ops"]["ops"]), results["pieces"]["operations"]["status"]), (3, "running"))
        self.assertIn('{"op": {"name": "half a', (self.place.out / "gpu-check.log").read_text())
        self.assertIn("op 2", (self.place.out / "table.txt").read_text())

    def test_being_told_to_end_inside_a_piece_takes_what_was_printed_last(self):
        process = self.place.start("--minutes", "2", "--parts", "ops", ops_hang=True)
        log = self.place.out / "gpu-check.log"
        while not (log.is_file() and "half a" in log.read_text()):
            time.sleep(0.005)
        process.terminate()
        process.communicate()
        results = self.place.results()
        self.assertEqual((len(results["ops"]["ops"]), results["pieces"]["operations"]["status"]), (3, "interrupted"))

    def test_a_killed_runner_leaves_no_program_and_no_child_of_one_behind(self):
        process = self.place.start("--minutes", "2", "--parts", "train", train_hang=True)
        self.until(lambda results: results["train"].get("last"))
        process.kill()
        process.communicate()
        self.assertEqual(self.place.survivors(), [])

    def test_a_kill_inside_a_module_leaves_who_passed_and_who_was_running(self):
        process = self.place.start("--minutes", "2", "--parts", "smoke", hang=["attention::gpu_b"])
        self.until(lambda results: results["pieces"].get("smoke: flash attention", {}).get("running"))
        process.kill()
        process.communicate()
        found = self.place.results()["pieces"]["smoke: flash attention"]
        self.assertEqual((found["passed"], found["running"], found["status"]), (1, "attention::gpu_b", "running"))

    def test_being_told_to_end_inside_a_piece_says_so_and_ends_with_1(self):
        process = self.place.start("--minutes", "2", "--parts", "train,step", train_hang=True)
        self.until(lambda results: results["train"].get("last"))
        process.terminate()
        process.communicate()
        results = self.place.results()
        self.assertEqual((process.returncode, results["pieces"]["quick start"]["status"]), (1, "interrupted"))
        self.assertEqual(results["pieces"]["step cifar10-ddpm: ours"]["status"], "not run")
        self.assertTrue((self.place.out / "quickstart.png").is_file())
        self.assertEqual(self.place.survivors(), [])


if __name__ == "__main__":
    unittest.main()
