"""Whole runs: what is right, what fails, what hangs, and what is then known."""

import os
import re
import unittest

from .support import TESTS, Place

MINUTES = ["--minutes", "2"]


def statuses(results):
    return {name: piece["status"] for name, piece in results["pieces"].items()}


class AllIsWell(unittest.TestCase):
    """One run in which nothing goes wrong."""

    @classmethod
    def setUpClass(cls):
        cls.place = Place()
        cls.addClassCleanup(cls.place.remove)
        cls.code, cls.table, cls.results = cls.place.run(*MINUTES)

    def test_all_is_well(self):
        code, table, results = self.code, self.table, self.results
        self.assertEqual(set(statuses(results).values()), {"ok"}, results["pieces"])
        self.assertEqual(code, 0)
        self.assertEqual(results["exit_code"], 0)
        case = results["cases"]["cifar10-ddpm"]
        self.assertEqual((case["ours"]["rounds_ms"], sorted(case["rivals"])), ([10.0] * 3, ["channels_last", "reduce-overhead"]))
        self.assertEqual({target["found"] for target in results["targets"] if "against" in target["target"]}, {2.0, None})
        self.assertEqual([target["found"] for target in results["targets"] if target["target"].startswith("sampling")], [2.0])
        self.assertEqual(results["roofs"]["bytes_per_s"], 1e12)
        self.assertAlmostEqual(results["ops"]["ops"][0]["floor_ms"], 1e-6)
        self.assertEqual((results["kernels"]["count"], results["kernels"]["sum_ms"]), (4, 0.004))
        self.assertAlmostEqual(results["kernels"]["gap_ms"], 10 - 0.004)
        self.assertEqual(results["kernels"]["by_family"]["convolution"]["count"], 2)
        self.assertEqual(results["attention"]["backends"]["cudnn"]["backward_us"], 90)
        self.assertIn("PyTorch, flash  too wide", table)
        self.assertEqual((self.place.out / "quickstart.png").read_bytes(), b"a picture")
        self.assertEqual([results["pieces"]["saves"][key] for key in ["milliseconds", "copies"]], [[1.2], [0.4]])
        self.assertEqual((self.place.out / "table.txt").read_text().strip(), table.strip())
        self.assertLessEqual(max(map(len, table.splitlines())), 150)
        self.assertEqual(sorted(path.name for path in self.place.out.iterdir()),
                         ["engines.json", "gpu-check.json", "gpu-check.log", "quickstart.png", "table.txt"])

    def test_order_is_by_value_and_memory_is_last(self):
        begun = sorted(self.results["pieces"], key=lambda name: self.results["pieces"][name]["begun"])
        wanted = ["doctor", "roofs", "PyTorch and diffusers", "smoke: conv", "smoke: one recorded step", "quick start",
                  "start to first step", "saves", "step cifar10-ddpm: ours", "operations", "one step by kernel", "step cifar10-ddpm: eager",
                  "step cifar10-batch16: in turn", "torch.compile begins: cifar10-ddpm", "step cifar10-ddpm: in turn",
                  "torch.compile begins: sampling", "sampling: in turn", "racecheck: attention", "memory: memory"]
        self.assertEqual([name for name in begun if name in wanted], wanted)
        self.assertEqual(begun[-1], "memory: memory")


class WholeRuns(unittest.TestCase):
    def setUp(self):
        self.place = Place()
        self.addCleanup(self.place.remove)

    def test_tests_run_while_torch_compile_is_at_work_and_nothing_is_measured(self):
        code, _, results = self.place.run(*MINUTES, "--parts", "step,rivals,tests", compile_seconds=5)
        self.assertEqual(code, 0)
        beside = results["pieces"]["step cifar10-ddpm: in turn"]["compiled_beside"]
        # How many fit in depends on the machine.
        self.assertIn("tests: train training", beside)
        self.assertLessEqual(set(beside), {"tests: kernels dropout", "tests: kernels random", "tests: train training"})

    def test_no_gpu_is_exit_code_4(self):
        (self.place.tools / "nvidia-smi").unlink()
        code, _, results = self.place.run(*MINUTES)
        self.assertEqual((code, results["exit_code"], results["pieces"]), (4, 4, {}))

    def test_a_failing_smoke_turns_its_family_off_for_all_that_follows(self):
        code, table, results = self.place.run(*MINUTES, "--parts", "smoke,step", needs_switch={"attention::gpu_b": "flash"})
        self.assertEqual(code, 1)
        smoke = results["pieces"]["smoke: flash attention"]
        self.assertEqual((smoke["status"], smoke["passed"]), ("failed", 2))
        self.assertEqual(smoke["without flash"]["attention::gpu_b"]["status"], "ok")
        self.assertEqual(list(results["off"]), ["flash"])
        self.assertIn("TURNED OFF for what followed: flash", table)
        others = {name: status for name, status in statuses(results).items() if name != "smoke: flash attention"}
        self.assertEqual(set(others.values()), {"ok"})

    def test_a_recorded_step_that_fails_either_way_is_tried_without_any_family(self):
        name = TESTS["ddpm-train-gpu"][0]
        _, _, results = self.place.run(*MINUTES, "--parts", "smoke", needs_switch={name: "bgradb"})
        smoke = results["pieces"]["smoke: one recorded step"]
        self.assertEqual(smoke["without graph"][name]["status"], "failed")
        self.assertEqual(smoke["without graph,flash,fuse,bgradb"][name]["status"], "ok")

    def test_a_smoke_whose_tests_pass_alone_turns_nothing_off(self):
        _, _, results = self.place.run(*MINUTES, "--parts", "smoke", crash_together=["attention::gpu_a"])
        self.assertEqual(results["pieces"]["smoke: flash attention"]["status"], "failed")
        self.assertIn("all pass alone", results["pieces"]["smoke: flash attention"]["why"])
        self.assertEqual(results["off"], {})

    def test_what_cannot_be_is_refused_before_anything_is_run(self):
        occupied = self.place.root / "a-file"
        occupied.write_text("")
        for options, word in [(["--minutes", "nan"], "minutes"), (["--minutes", "0"], "minutes"), (["--out", str(occupied)], "a-file")]:
            process = self.place.start(*options)
            _, stderr = process.communicate(timeout=30)
            self.assertEqual(process.returncode, 2, stderr)
            self.assertIn(word, stderr)
            self.assertNotIn("Traceback", stderr)
        os.environ["DDPM_GPU_OFF"] = "flash,grpah"
        self.addCleanup(os.environ.pop, "DDPM_GPU_OFF")
        process = self.place.start()
        _, stderr = process.communicate(timeout=30)
        self.assertEqual(process.returncode, 2, stderr)
        self.assertIn("grpah", stderr)

    def test_results_that_cannot_be_written_stop_nothing(self):
        (self.place.out / "gpu-check.json").mkdir(parents=True)
        process = self.place.start(*MINUTES, "--parts", "doctor,step")
        stdout, stderr = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, stderr)
        self.assertIn("gpu-check.json is not up to date", stderr)
        self.assertIn("images/s", stdout)

    def test_a_family_may_be_off_from_the_beginning(self):
        code, _, results = self.place.run(*MINUTES, "--parts", "smoke", "--off", "flash", needs_switch={"attention::gpu_b": "flash"})
        self.assertEqual((code, results["off"]), (0, {"flash": "the command line said so"}))

    def test_what_hangs_is_ended_at_its_time_and_what_no_longer_fits_is_named(self):
        code, table, results = self.place.run("--minutes", "0.5", "--parts", "ops,kernels,rivals", ops_hang=True)
        self.assertEqual(code, 1)
        self.assertEqual([op["name"] for op in results["ops"]["ops"]], ["op 0", "op 1", "op 2"])
        self.assertRegex(results["pieces"]["operations"]["why"], r"not done after \d+ s: ddpm; 3 operations were measured")
        self.assertLess(results["pieces"]["operations"]["seconds"], 25)
        later = [piece for name, piece in results["pieces"].items() if name != "operations"]
        self.assertTrue(all(piece["status"] == "not run" and "s were left" in piece["why"] for piece in later), later)
        self.assertIn("not run: one step by kernel", re.sub(r"\s+", " ", table))
        self.assertEqual(self.place.survivors(), [])

    def test_a_rival_that_dies_drops_out_and_the_others_go_on(self):
        code, _, results = self.place.run(*MINUTES, "--parts", "rivals", "--configs", "cifar10-ddpm", compiled_dies=True)
        case = results["cases"]["cifar10-ddpm"]
        self.assertEqual((code, len(case["ours"]["rounds_ms"]), len(case["rivals"]["channels_last"]["rounds_ms"])), (1, 3, 3))
        self.assertEqual(case["rivals"]["reduce-overhead"]["rounds_ms"], [20.0])
        self.assertIn("out of memory", case["errors"]["reduce-overhead"])

    def test_of_a_large_network_one_rival_is_alive_at_a_time(self):
        code, _, results = self.place.run(*MINUTES, "--parts", "step,rivals", "--configs", "church256")
        case = results["cases"]["church256"]
        self.assertEqual((code, sorted(case["rivals"])), (0, ["channels_last", "reduce-overhead"]))
        self.assertNotIn("rounds_ms", case["rivals"]["channels_last"])
        self.assertEqual(case["rivals"]["reduce-overhead"]["rounds_ms"], [20.0] * 3)

    def test_a_rival_that_does_not_start_costs_only_its_own_numbers(self):
        (self.place.pack / "benches/torch_step.py").write_text("import sys; sys.exit('error: a clash of packages')")
        code, table, results = self.place.run(*MINUTES, "--parts", "doctor,step,rivals")
        self.assertEqual(code, 1)
        self.assertIn("a clash of packages", results["pieces"]["PyTorch and diffusers"]["why"])
        self.assertIn("a clash of packages", table)
        self.assertEqual(results["cases"]["cifar10-ddpm"]["ours"]["rounds_ms"], [10.0] * 3)


if __name__ == "__main__":
    unittest.main()
