"""The figures: what a user waits for, each beside its floor, measured in one run."""

from casemate.bench.run import run_bench, run_vmm_bench

__all__ = ["run_bench", "run_vmm_bench"]
