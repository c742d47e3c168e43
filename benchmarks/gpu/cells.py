"""What is measured on the machine, cell by cell, the most telling first. A cell is small, and stands for itself."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import nfm_theory as nt
from benchmarks.estimators.cases import build_case
from benchmarks.estimators.measure import interleaved, peak_memory
from benchmarks.estimators.ours import ours
from benchmarks.estimators.run import Options, Record, about, run
from experiments.data.cifar import load_cifar
from experiments.data.integrity import DataError
from experiments.recipes import get_recipe, select_recipes
from experiments.recipes.recipe import Training
from experiments.recipes.schemes import SCHEMES, VIEWS
from experiments.record.ledger import read
from experiments.runner import FAILED, run_recipe
from experiments.training import Execution, MemorySource, run_folder, train

ROOT = Path(__file__).resolve().parents[2]
#: Schemes whose epochs are measured, the most telling first.
ORDER = ("baseline", "nfm", "mixup", "manifold_mixup", "taylor_nfm", "noisymix", "adversarial")
#: Measurements of a compact network that need no images of other packages.
SUITES = ("clean", "white_noise", "salt_pepper", "attacks", "calibration")


@dataclass(frozen=True)
class Place:
    """Where and how large the measurements are.

    Attributes:
        device: "cpu" or "cuda".
        out: folder of the results.
        small: True for sizes that a test on a CPU can afford.
    """

    device: str
    out: Path
    small: bool

    @property
    def width(self) -> int:
        """Width of the PreActResNet-18; the papers' is 64."""
        return 8 if self.small else 64

    @property
    def batch_size(self) -> int:
        """Images in a batch; the papers' is 128."""
        return 8 if self.small else 128

    @property
    def execution(self) -> Execution:
        """How trainings run."""
        return Execution(device=self.device, progress=False, test_images=0)


Cell = Callable[[Place], object]


# The library on this device -------------------------------------------------------------------------------------------


def gpu_tests(place: Place) -> object:
    """The tests with the marker `gpu`, if pytest is installed."""
    if importlib.util.find_spec("pytest") is None:
        return {"skipped": "pytest is not installed; the cells `agreement/...` compare the devices"}
    # Only the files with such tests: others may need packages that are not there
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    return {"status": done.returncode, "output": (done.stdout + done.stderr)[-4000:]}


def agreement(name: str) -> Cell:
    """The terms and the verdict of a case on this device, beside the terms on the CPU, in float64."""

    def measure(place: Place) -> object:
        terms = {}
        for device in ("cpu", place.device):
            case = build_case(name, dtype=torch.float64, device=device)
            with torch.no_grad():
                terms[device] = nt.terms(case.problem, remainder=False).to_dict()
        here, there = terms[place.device], terms["cpu"]
        size = max(abs(value) for value in there.values())
        difference = max(abs(here[term] - there[term]) for term in there) / size
        return {"terms": here, "difference": difference, "agrees": difference < 1e-9}

    return measure


def verdict_of_case(place: Place) -> object:
    """A verdict in float64 on a small network."""
    return _verdict(nt.verify(build_case("tiny", dtype=torch.float64, device=place.device).problem))


def _verdict(report: nt.ExpansionReport) -> dict:
    return {
        "verdict": report.verdict, "reason": report.reason, "observed_order": report.to_dict()["observed_order"],
        "evaluations": report.samples, "method": report.method, "terms": report.terms.to_dict(),
        "power": {term: found["words"] for term, found in report.power.items()},
    }  # fmt: skip


# Estimators -----------------------------------------------------------------------------------------------------------


def estimators(name: str) -> Cell:
    """The benchmark of the estimators on one case, in float32."""

    def measure(place: Place) -> object:
        small = {"repeats": 2, "budget": 0.5} if place.small else {"repeats": 7, "budget": 2.0}
        options = Options(device=place.device, threads=torch.get_num_threads(), **small)
        record = Record(place.out / f"estimators-{name}.json", about(options))
        run([name], record, options)
        return record.cells

    return measure


def steps(name: str) -> Cell:
    """Our training steps of one case under autocast to bfloat16, in multiples of a plain step under autocast."""

    def measure(place: Place) -> object:
        case = build_case(name, device=place.device)
        calls = {"plain": case.training_step}
        calls |= {f"{m.quantity} / {m.name}": m.ready() for m in ours(case) if m.kind == "gradient"}
        found: dict[str, dict] = {}
        with torch.autocast(place.device, torch.bfloat16):
            for title, call in list(calls.items()):
                try:
                    found[title] = {"peak_bytes": peak_memory(call, place.device)}
                except Exception as error:  # what does not work in bfloat16 is a result
                    found[title] = {"error": f"{type(error).__name__}: {error}"}
                    del calls[title]
            timings = interleaved(calls, repeats=2 if place.small else 9, warmup=1, budget=3.0)
        one = timings["plain"].median
        for title, time in timings.items():
            quartiles = [time.lower / one, time.upper / one]
            found[title] |= {"steps": time.median / one, "quartiles": quartiles, "seconds": time.median}
        return found

    return measure


# Epochs ---------------------------------------------------------------------------------------------------------------


def cifar(place: Place) -> tuple[MemorySource, str]:
    """The training images of CIFAR-10 if the user has them, otherwise random bytes of the same shape."""
    count = 2 * place.batch_size if place.small else 40 * place.batch_size
    try:
        data = load_cifar(10)
        images = data.train.images[:count].permute(0, 2, 3, 1).contiguous().numpy()
        return MemorySource(images, data.train.labels[:count].numpy(), data.mean, data.std), "CIFAR-10"
    except DataError:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        half = (0.5, 0.5, 0.5)
        return MemorySource(images, rng.integers(0, 10, count), half, half), "random bytes of the shape of CIFAR-10"


def _training(place: Place, scheme: str, precision: str) -> Training:
    """Two epochs of a scheme with the papers' network; the second one is measured, warm."""
    chosen = SCHEMES[scheme]
    return Training(
        data="cifar10", model="preactresnet18", scheme=chosen, epochs=2 * chosen.replays, batch_size=place.batch_size,
        learning_rate=0.01, model_options=(("width", place.width),), augmentation="crop_flip",
        views=VIEWS.get(scheme, ""), weight_decay=5e-4, precision=precision,
    )  # fmt: skip


def epoch(scheme: str, precision: str) -> Cell:
    """Time and memory of an epoch of 50,000 images, from a part of it after a warm-up of the same length."""

    def measure(place: Place) -> object:
        source, data = cifar(place)
        training, cuda = _training(place, scheme, precision), place.device == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as folder:
            train(training, source, classes=10, seed=1, runs=Path(folder), execution=place.execution)
            log = (run_folder(Path(folder), training, 1) / "log.jsonl").read_text(encoding="utf-8")
        seconds = [json.loads(line)["seconds"] for line in log.splitlines()]
        images = len(source.labels)
        each = (seconds[1] - seconds[0]) / images
        return {
            "data": data, "images": images, "width": place.width, "batch_size": training.batch_size,
            "seconds": seconds[1] - seconds[0], "warm_up": seconds[0], "seconds_per_epoch": 50_000 * each,
            "repeats_of_a_batch": training.scheme.replays,
            "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        }  # fmt: skip

    return measure


def verdict_of_network(dtype: str, layer: str) -> Cell:
    """A verdict on the papers' network after the two short epochs of the baseline."""

    def measure(place: Place) -> object:
        source, data = cifar(place)
        training = _training(place, "baseline", "float32")
        trained = train(
            training, source, classes=10, seed=1, runs=place.out / "runs", execution=place.execution,
        )  # fmt: skip
        assert trained is not None
        model = trained.model.to(getattr(torch, dtype))
        pixels = torch.from_numpy(source.samples[:8]).permute(0, 3, 1, 2).to(place.device, getattr(torch, dtype)) / 255
        mean, std = (torch.tensor(v, device=place.device, dtype=pixels.dtype) for v in (source.mean, source.std))
        x = (pixels - mean[:, None, None]) / std[:, None, None]
        y = torch.from_numpy(source.labels[:8]).to(place.device)
        problem = nt.Problem(model, x, y, layer=layer, law=nt.Law(add_noise=0.4, mult_noise=0.2))
        budget = "3 s" if place.small else "25 s"
        return {"data": data, "width": place.width, **_verdict(nt.verify(problem, budget=budget))}

    return measure


# Compact networks -----------------------------------------------------------------------------------------------------


def compact(name: str, seed: int) -> Cell:
    """A network of the compact size, trained and measured by its recipe; results go to the ledger of this folder."""

    def measure(place: Place) -> object:
        recipe, ledger = get_recipe(name), place.out / "experiments.jsonl"
        recipe = replace(recipe, suites=SUITES)
        if place.small:
            recipe = replace(
                recipe, suites=("clean",), training=replace(recipe.training, samples=512, epochs=1),
            )  # fmt: skip
        outcome = run_recipe(recipe, seed, ledger=ledger, runs=place.out / "runs", execution=place.execution)
        if outcome.status == FAILED:
            raise RuntimeError(outcome.message)
        found = [e for e in read(ledger) if (e.hash, e.seed, e.suite) == (recipe.hash, seed, "clean")]
        return {"status": outcome.status, "clean": found[-1].metrics["clean"], "training": found[-1].training}

    return measure


def cells(small: bool) -> dict[str, Cell]:
    """All cells by name, in the order in which they are measured.

    Args:
        small: only a few of each kind, for a test.
    """
    first = ("tiny", "tiny_cnn") if small else ("tiny", "tiny_cnn", "mlp64")
    cases = ("tiny",) if small else ("vit", "preact_resnet18", "cnn", "mlp784")
    others = [name for name in SCHEMES if name not in ORDER]
    schemes = ("baseline", "nfm") if small else (*ORDER, *others)
    rows = [recipe.name for recipe in select_recipes("fashion-compact/*")]
    rows.sort(key=lambda name: name.partition("/")[2] not in ORDER)
    found: dict[str, Cell] = {"tests/gpu": gpu_tests}
    found |= {f"agreement/{name}": agreement(name) for name in first}
    found["verdict/tiny"] = verdict_of_case
    precisions = ("bfloat16", "float32")
    found |= {f"epoch/{scheme}/{p}": epoch(scheme, p) for scheme in schemes[:2] for p in precisions}
    found |= {f"estimators/{name}/float32": estimators(name) for name in cases[:2]}
    found["verdict/preactresnet18/float32"] = verdict_of_network("float32", "layer2")
    found["verdict/preactresnet18/float64"] = verdict_of_network("float64", "layer2")
    found |= {f"epoch/{scheme}/bfloat16": epoch(scheme, "bfloat16") for scheme in schemes[2:]}
    found |= {f"steps/{name}/bfloat16": steps(name) for name in cases}
    found |= {f"estimators/{name}/float32": estimators(name) for name in cases[2:]}
    found |= {f"compact/{name}/{seed}": compact(name, seed) for seed in (1,) for name in rows[: 1 if small else None]}
    found |= {f"epoch/{scheme}/float32": epoch(scheme, "float32") for scheme in schemes[2:]}
    if not small:
        found |= {f"compact/{name}/{seed}": compact(name, seed) for seed in range(2, 21) for name in rows}
    return found
