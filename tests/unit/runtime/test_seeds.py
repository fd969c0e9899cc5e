"""Random numbers after a change of generation: drawn anew, unless the user has set a seed in this context."""

from __future__ import annotations

from pathlib import Path

import pytest
from context_bench import ContextBench
from zygote_bench import Bench

SEED = "5a" * 64
OTHER = "a5" * 64


@pytest.mark.parametrize("library", ["random", "numpy"])
class TestSeeds:
    @pytest.fixture(autouse=True)
    def at_hand(self, bench: Bench, library: str) -> None:
        if library == "numpy" and "missing" in str(bench.zygote.about["modules"]["numpy"]):
            pytest.skip(f"{bench.python} has no numpy")

    def draw(self, library: str) -> str:
        return "import random; random.random()" if library == "random" else "import numpy; float(numpy.random.rand())"

    def set_seed(self, library: str, seed: str) -> str:
        return (
            f"import random; random.seed({seed})" if library == "random" else f"import numpy; numpy.random.seed({seed})"
        )

    def test_same_entropy_gives_the_same_numbers(self, bench: Bench, library: str) -> None:
        drawn = []
        for entropy in (SEED, SEED, OTHER):
            context = ContextBench(bench)
            context.run(self.draw(library))
            drawn.append(context.run(self.draw(library), seed=entropy).text)
            context.kill()
        assert drawn[0] == drawn[1] != drawn[2]

    def test_the_users_seed_is_kept(self, fresh_context: ContextBench, library: str) -> None:
        run = fresh_context.run
        run(self.set_seed(library, "7"))
        expected = [run(self.draw(library)).text for _ in range(2)]
        run(self.set_seed(library, "7"))
        assert run(self.draw(library), seed=SEED).text == expected[0]
        assert run(self.draw(library), seed=OTHER).text == expected[1]

    def test_a_seed_of_one_library_is_not_the_others(self, fresh_context: ContextBench, library: str) -> None:
        run = fresh_context.run
        other = "random" if library == "numpy" else "numpy"
        if library == "numpy":
            run(self.set_seed(other, "7"))
        else:
            run("try: import numpy; numpy.random.seed(7)\nexcept ImportError: pass")
        run(self.draw(library))  # numpy may import its numpy.random only now
        first = run(self.draw(library), seed=SEED).text
        run(self.draw(library))
        assert run(self.draw(library), seed=SEED).text == first

    def test_seed_without_a_value_asks_for_randomness(self, fresh_context: ContextBench, library: str) -> None:
        run = fresh_context.run
        run(self.set_seed(library, "7"))
        run(self.set_seed(library, ""))
        first = run(self.draw(library), seed=SEED).text
        run(self.draw(library))
        assert run(self.draw(library), seed=SEED).text == first

    def test_state_set_is_a_seed_set(self, fresh_context: ContextBench, library: str) -> None:
        run = fresh_context.run
        get, put = ("getstate", "setstate") if library == "random" else ("get_state", "set_state")
        module = "random" if library == "random" else "numpy.random"
        run(f"import {module.partition('.')[0]}; state = {module}.{get}()")
        expected = run(self.draw(library)).text
        run(f"{module}.{put}(state)")
        assert run(self.draw(library), seed=SEED).text == expected


def test_library_that_is_imported_later(bench: Bench, tmp_path: Path) -> None:
    """Torch takes a minute to install and gigabytes; a module of its name and manners will do."""
    (tmp_path / "torch.py").write_text(
        "import random as _random\n_own = _random.Random(0)\n"
        "def manual_seed(seed): _own.seed(seed)\n"
        "def set_rng_state(state): _own.setstate(state)\n"
        "def rand(): return _own.random()\n"
    )
    context = ContextBench(bench, PYTHONPATH=str(tmp_path))
    assert context.run("1", seed=SEED).text == "1"
    context.run("import torch; first = torch.rand()")
    drawn = context.run("torch.rand()", seed=SEED).text
    context.run("torch.rand()")
    assert context.run("torch.rand()", seed=SEED).text == drawn
    context.run("torch.manual_seed(3); second = torch.rand(); torch.manual_seed(3)")
    assert context.run("torch.rand() == second", seed=OTHER).text == "True"
    assert context.run("torch.manual_seed.__name__, torch.__spec__.name").text == "('manual_seed', 'torch')"
    context.kill()


def test_import_that_fails_is_tried_again(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('not yet')")
    context = ContextBench(bench, PYTHONPATH=str(tmp_path))
    assert context.run("import torch").end["value"] == "not yet"
    (tmp_path / "torch.py").write_text("x = 1\n" * 100 + "def manual_seed(seed): pass\n")
    assert context.run("import torch; torch.manual_seed.__wrapped__.__name__").text == "'manual_seed'"
    context.kill()


@pytest.mark.parametrize(
    "code",
    [
        "import random; random.seed = None",
        "import random\ndef seed(*_): raise SystemExit\nrandom.seed = seed",
        "import sys; sys.modules['uuid'] = 5",
    ],
)
def test_what_a_cell_has_put_in_place_of_a_seed_ends_nothing(fresh_context: ContextBench, code: str) -> None:
    fresh_context.run("import sys, types; seeded = []; torch = types.ModuleType('torch')")
    fresh_context.run("torch.manual_seed = seeded.append; sys.modules['torch'] = torch")
    fresh_context.run(code)
    seen = fresh_context.run("len(seeded)", seed="ab" * 64)
    assert (seen.text, seen.end) == ("1", {"kind": "ok"})
    assert "Error" in seen.stderr or "Exit" in seen.stderr


IN_AN_IMPORT = """
import numpy, os, random, ssl, sys, types
numpy.random.mtrand._rand.seed(1)
whole = {name: sys.modules[name] for name in ('random', 'numpy.random', 'ssl')}
sys.modules.update({name: types.ModuleType(name) for name in whole})
os.kill(os.getpid(), %d)
sys.modules.update(whole)
numpy.random.rand() == numpy.random.RandomState(1).rand()
"""


def test_what_is_only_being_imported_is_reseeded_as_far_as_it_is_there(bench: Bench) -> None:
    """As when a sandbox is copied meanwhile: the generator of numpy is made long before its module is whole."""
    if "missing" in str(bench.zygote.about["modules"]["numpy"]):
        pytest.skip(f"{bench.python} has no numpy")
    context = ContextBench(bench)
    seen = context.run(IN_AN_IMPORT % context.ready["reseed_signal"])
    assert (seen.text, seen.stderr) == ("False", "")
    context.kill()
