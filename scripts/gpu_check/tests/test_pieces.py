"""Single pieces on stand-ins: modules of tests that crash, hang or fail, a profile that breaks off, a pack that is too large."""

import contextlib
import io
import os
import pathlib
import re
import subprocess
import tempfile
import unittest
import unittest.mock

from gpu_check import explained, gputests, kernels, pack, plan, programs, report, roofs

from .support import TESTS, Place

ATTENTION = TESTS[gputests.KERNELS][:3]


class Modules(unittest.TestCase):
    def setUp(self):
        self.place = Place()
        self.addCleanup(self.place.remove)
        for patch in [unittest.mock.patch.dict(os.environ), unittest.mock.patch.object(tempfile, "tempdir", None)]:
            patch.start()
            self.addCleanup(patch.stop)

    def run_attention(self, seconds=20, **wrong):
        """The record of the module's piece, and how it ended."""
        self.check = self.place.check(seconds, **wrong)
        self.addCleanup(self.check.machine.close)
        record = self.check.results["pieces"]["attention"] = {"part": "tests", "status": "not run"}
        plan.one(self.check, plan.Piece("attention", "tests", seconds, gputests.module_tests(gputests.KERNELS, ATTENTION), least=0), record)
        return record

    def test_all_pass_in_one_process(self):
        record = self.run_attention()
        self.assertEqual((record["status"], record["passed"], record["of"], record["failed"]), ("ok", 3, 3, {}))
        self.assertEqual(len(self.check.machine.children), 1)

    def test_a_crash_is_of_one_test_and_those_behind_it_are_run_alone(self):
        record = self.run_attention(crash=["attention::gpu_b"])
        self.assertEqual(record["status"], "failed")
        self.assertEqual({name: test["status"] for name, test in record["failed"].items()},
                         {"attention::gpu_b": "crashed", "attention::gpu_c": "ok"})
        self.assertIn("SIGSEGV", record["why"])
        self.assertIn("a kernel read what it must not", record["why"])
        self.assertIn("SIGSEGV", record["together"])

    def test_a_ruined_context_takes_no_other_test_with_it(self):
        record = self.run_attention(crash=["attention::gpu_a"], poison=True)
        self.assertEqual({name: test["status"] for name, test in record["failed"].items()},
                         {"attention::gpu_a": "failed", "attention::gpu_b": "ok", "attention::gpu_c": "ok"})
        self.assertIn("an illegal memory access", record["why"])

    def test_a_test_that_hangs_is_named_and_the_others_are_run(self):
        with unittest.mock.patch.multiple(gputests, MODULE_SECONDS=3, TEST_SECONDS=3):
            record = self.run_attention(hang=["attention::gpu_a"])
        self.assertEqual({name: test["status"] for name, test in record["failed"].items()},
                         {"attention::gpu_a": "not done", "attention::gpu_b": "ok", "attention::gpu_c": "ok"})
        self.assertIn("attention::gpu_a: not done: not done after 3 s", record["why"])

    def test_what_is_explained_is_no_failure_and_is_shown_with_its_values(self):
        message = "bf16, checkpointing true: peak 1234567, estimated 1000000"
        with unittest.mock.patch.object(explained, "HARMLESS", [(r"^attention::", r"peak \d+", "a card's pieces are larger")]):
            record = self.run_attention(fail={"attention::gpu_b": message})
        self.assertEqual(record["status"], "explained")
        table = " ".join(report.table(self.check.results).split())
        self.assertIn(message, table)
        self.assertIn("a card's pieces are larger", table)

    def test_a_failure_that_is_not_explained_beside_one_that_is_fails(self):
        messages = {"attention::gpu_a": "peak 1", "attention::gpu_b": "0.5, on the CPU 0.25"}
        with unittest.mock.patch.object(explained, "HARMLESS", [(r"^attention::", r"peak \d+", "why not")]):
            record = self.run_attention(fail=messages)
        self.assertEqual(record["status"], "failed")
        self.assertIn("0.5, on the CPU 0.25", record["why"])

    def test_tests_that_pass_alone_only_are_a_failure(self):
        with unittest.mock.patch.object(gputests, "one_by_one", lambda *words: {words[2][0]: {"status": "ok", "error": ""}}):
            record = self.run_attention(fail={"attention::gpu_a": "once"})
        self.assertEqual(record["status"], "failed")
        self.assertIn("pass alone", record["why"])

    def test_a_profile_that_breaks_off_in_a_line_keeps_the_lines_before(self):
        check = self.place.check(4, ncu_hang=True)
        self.addCleanup(check.machine.close)
        check.results["cases"]["cifar10-ddpm"] = {"ours": {"median_ms": 5.0, "images_per_s": 1.0}}
        with self.assertRaisesRegex(programs.Failed, r"not done after \d s: ncu.*3 kernels were seen"):
            kernels.kernels(check, {})
        self.assertEqual((check.results["kernels"]["count"], check.results["kernels"]["complete"]), (3, False))
        self.assertAlmostEqual(check.results["kernels"]["sum_ms"], 0.003)

    def test_an_answer_that_the_table_cannot_show_is_in_the_document_and_stops_nothing(self):
        check = self.place.check(5)
        check.results["cases"]["cifar10-ddpm"] = {"ours": {"median_ms": 5.0}}
        table = check.save()
        self.assertIn("KeyError", table)
        self.assertIn("start to first step", table)
        self.assertEqual(self.place.results()["cases"]["cifar10-ddpm"]["ours"], {"median_ms": 5.0})

    def test_a_log_that_would_grow_too_large_ends(self):
        with unittest.mock.patch.object(programs, "LOG_BYTES", 1000):
            log = programs.Log(self.place.root / "log")
            for _ in range(100):
                log.write("someone", b"x" * 99 + b"\n")
        self.assertLess((self.place.root / "log").stat().st_size, 1300)
        self.assertIn("the log ends here", (self.place.root / "log").read_text())


class Explained(unittest.TestCase):
    def status(self, test, message):
        return explained.judged(test, message)["status"]

    def test_only_the_known_harmless_failures_are_explained(self):
        estimated, bytes_left = "memory::gpu_a_steps_memory_is_what_was_estimated", "memory::gpu_a_step_that_cannot_fit_says_what_it_takes"
        self.assertEqual(self.status(estimated, "f32, checkpointing false: peak 120, estimated 100"), "explained")
        self.assertEqual(self.status(bytes_left, "called `Result::unwrap()` on DriverError(CUDA_ERROR_OUT_OF_MEMORY)"), "explained")
        training = "training::gpu_training_is_the_cpus"
        self.assertEqual(self.status(training, "f32 []: weights are off by 0.00018"), "explained")
        self.assertEqual(self.status(training, "f32 []: weights are off by 0.5"), "failed")
        self.assertEqual(self.status(training, "bf16 []: weights are off by 0.00018"), "failed")
        self.assertEqual(self.status(training, "f32 []: step 1: 0.5, on the CPU 0.25"), "failed")
        self.assertEqual(self.status("attention::gpu_a", "CUDA_ERROR_OUT_OF_MEMORY"), "failed")
        self.assertEqual(self.status(estimated, "CUDA_ERROR_ILLEGAL_ADDRESS"), "failed")


class Reading(unittest.TestCase):
    def test_what_a_library_prints_between_a_tests_name_and_its_result_is_passed_over(self):
        found = gputests.parse("test a::b ... a library says\nso\nok\ntest a::c ... ok\ntest a::d ... FAILED\ntest a::e ... ")
        self.assertEqual((found["ok"], found["failed"], found["running"]), (["a::b", "a::c"], ["a::d"], "a::e"))

    def test_both_layouts_of_a_profile_are_read(self):
        tall = ('"ID","Kernel Name","Grid Size","Metric Name","Metric Unit","Metric Value"\n'
                '"0","a(int)","(1, 2, 3)","gpu__time_duration.sum","us","1,234.5"\n"1","b","(1, 1, 1)","other","us","5"\n')
        wide = '"ID","Kernel Name","Grid Size","gpu__time_duration.sum"\n"","","","usecond"\n"0","a(int)","(1, 2, 3)","1,234.5"\n'
        for text in [tall, wide, "==PROF== noise\n" + wide + '"1","b","(1']:
            self.assertEqual(kernels.rows(text), [("a(int)", "(1, 2, 3)", 1234500.0)])

    def test_every_kernel_of_ours_has_a_family(self):
        sources = (pathlib.Path(__file__).parents[3] / "crates/kernels/cuda").glob("*.cu")
        declared = re.compile(r"__global__ void (?:__launch_bounds__\([^)]*\)|[A-Z_]+\([A-Z]\)|[A-Z_]+)?\s*([a-z]\w*)")
        names = {name for path in sources for name in declared.findall(path.read_text().replace("\\\n", " "))}
        self.assertGreater(len(names), 30)
        self.assertEqual([name for name in names if kernels.family(name) == "other" and name != "busy"], [])

    def test_a_floor_is_the_longer_of_two_times(self):
        rates = {"flop_per_s": 1e12, "bytes_per_s": 1e9}
        self.assertEqual(roofs.floor({"bytes": 1e6, "flop": 1e8, "ms": 2.0}, rates), {"floor_ms": 1.0, "of_floor": 0.5})
        self.assertEqual(roofs.floor({"bytes": 1e5, "flop": 1e9, "ms": 2.0}, rates), {"floor_ms": 1.0, "of_floor": 0.5})


class Packing(unittest.TestCase):
    def report(self, **limits):
        """Exit code and output, for a repository of 3,000 bytes and a pack of 1,000."""
        with tempfile.TemporaryDirectory() as place:
            root, folder = pathlib.Path(place, "root"), pathlib.Path(place, "pack")
            root.mkdir()
            folder.mkdir()
            subprocess.run(["git", "init", "--quiet", root], check=True)
            (root / ".gitignore").write_text("ignored\n")
            (root / "ignored").write_bytes(b"x" * 10**6)
            (root / "file").write_bytes(b"x" * (3000 - len("ignored\n")))
            (folder / "programs.tar.xz").write_bytes(b"x" * 1000)
            with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
                with unittest.mock.patch.multiple(pack, **limits):
                    return pack.report(root, folder, {"tests": {"a": ["b", "c"]}}), said.getvalue()

    def test_what_travels_is_the_pack_and_what_git_would_track(self):
        self.assertEqual(self.report(TRAVELS=4000)[0], 0)
        code, said = self.report(TRAVELS=3999)
        self.assertEqual(code, 1)
        self.assertIn("too large to travel", said)
        self.assertEqual(self.report(LIMIT=999)[0], 1)

    def test_a_folder_that_is_no_pack_is_left_alone(self):
        with tempfile.TemporaryDirectory() as place, contextlib.redirect_stderr(io.StringIO()):
            pathlib.Path(place, "something").touch()
            self.assertEqual(pack.pack(pathlib.Path("/"), pathlib.Path(place), "", None), 2)
            self.assertTrue(pathlib.Path(place, "something").is_file())


if __name__ == "__main__":
    unittest.main()
