"""What a sweep would cost: operations counted by hand, and the tables of the papers."""

from dataclasses import replace

import pytest
from ledger_entries import shortened
from typer.testing import CliRunner

from experiments.commands import app
from experiments.cost import SHAPES, estimate, network_of, passes, training_flops
from experiments.data import load_data
from experiments.data.toy_sets import ToyData
from experiments.recipes import Scheme, Training, get_recipe, select_recipes
from experiments.runner import run_recipe
from experiments.sweep import Sweep, make_tasks
from experiments.training import Execution

TOY = get_recipe("nfm-figure-toy/nfm")
#: GPU-hours of an A100 in TF32 and in bfloat16, estimated beforehand for the trainings of these tables.
TABLES = {
    "nfm-table1": (20, 8), "nfm-table2": (169, 65), "nfm-table3": (304, 116), "noisymix-table1": (1063, 407),
    "noisymix-table2": (52, 20), "noisymix-table3": (90, 35), "noisymix-table4": (35, 13), "noisymix-table5": (27, 10),
}  # fmt: skip


def sweep_of(folder, *recipes, **options):
    return Sweep(make_tasks(recipes), ledger=folder / "l.jsonl", runs=folder / "runs", **options)


def test_operations_of_a_fully_connected_network():
    """2 operations for each weight forward, and twice as many backward but for the gradient in the inputs."""
    training = Training("toy_rings", "nfm_toy", Scheme("baseline"), 1, 1, 0.1, model_options=(("width", 16),))
    weights = [2 * 16, 16 * 16, 16 * 16, 16 * 2]
    expected = sum(6 * count for count in weights) - 2 * weights[0]
    assert network_of(training).flops == pytest.approx(expected)
    assert network_of(training).parameters == 4 * (sum(weights) + 3 * 16 + 2)


def test_operations_of_resnet50_and_preactresnet18():
    """4.09 and 0.56 billion multiplications forward, as known for these networks; three times that in all."""
    imagenet, cifar = (network_of(get_recipe(name).training) for name in ("nfm-table3/baseline", "nfm-table1/baseline"))
    assert imagenet.flops == pytest.approx(6 * 4.09e9, rel=0.02)
    assert cifar.flops == pytest.approx(6 * 0.556e9, rel=0.02)
    assert imagenet.parameters == 4 * 25_557_032


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("nfm-table1/nfm", 200 * 50_000), ("noisymix-table2/cifar10-noisymix", 3 * 200 * 50_000),
        ("noisymix-table1/adversarial", 200 * 1_281_167), ("nfm-table2/puzzlemix-epochs1200", 1200 * 50_000 * 5 / 3),
    ],
)  # fmt: skip
def test_passes_of_a_scheme(name, count):
    assert passes(get_recipe(name).training) == pytest.approx(count)


@pytest.mark.parametrize(
    "name", ["digits", "fashion_mnist", "toy_rings", "toy_band", "toy_spirals", "toy_moons", "toy_features"]
)
def test_shapes_are_those_of_the_data(name):
    data, (count, shape, classes) = load_data(name), SHAPES[name]
    if isinstance(data, ToyData):
        assert (len(data.x), tuple(data.x.shape[1:]), data.classes) == (count, shape, classes)
    else:
        assert (len(data.train), tuple(data.train.images.shape[1:]), data.classes) == (count, shape, classes)


def test_the_tables_cost_what_was_estimated(tmp_path):
    """Each table without the networks of the tables before it; Table 4 shares some with Table 3."""
    found = estimate(sweep_of(tmp_path, *select_recipes(*(f"{table}/*" for table in TABLES))))
    costs = {cost.study: cost for cost in found.costs}
    for place, precision in enumerate(("TF32", "bfloat16")):
        for table, hours in TABLES.items():
            assert costs[table].hours(precision) == pytest.approx(hours[place], rel=0.3), table
        assert found.total.hours(precision) == pytest.approx(sum(one[place] for one in TABLES.values()), rel=0.1)
    assert (costs["nfm-table1"].networks, costs["nfm-table1"].cells) == (45, 135)
    weights = 11.17e6 * 4  # bytes of a PreActResNet-18 of the papers' width
    assert costs["nfm-table1"].kept == pytest.approx(45 * weights, rel=0.01)
    assert costs["nfm-table1"].checkpoint == pytest.approx(2 * weights, rel=0.01)  # with the momentum
    assert found.lacking == ()  # Table 1 is in the sweep
    assert list(found.refused) == ["noisymix-table1/stylized_imagenet"]
    alone = estimate(sweep_of(tmp_path, *select_recipes("noisymix-table5/*")))
    assert len(alone.lacking) == 6


def test_what_is_done_costs_nothing(tmp_path):
    short, other = shortened(TOY, epochs=2), shortened(get_recipe("nfm-figure-toy/baseline"), epochs=2)
    chosen = replace(sweep_of(tmp_path, short, other), tasks=make_tasks([short, other], (1, 2)))
    before = estimate(chosen).total
    assert (before.tasks, before.networks, before.cells) == (4, 4, 4)
    assert before.flops == pytest.approx(2 * (training_flops(short.training) + training_flops(other.training)))
    run_recipe(short, 1, ledger=chosen.ledger, runs=chosen.runs, execution=Execution(device="cpu", progress=False))
    after = estimate(chosen).total
    assert (after.tasks, after.networks, after.cells) == (4, 3, 3)
    assert after.flops == pytest.approx(before.flops - training_flops(short.training))
    file = next(chosen.runs.glob("*/*/final.pt"))
    assert before.kept / 4 == pytest.approx(file.stat().st_size, abs=8_000)  # the file also has a record


def test_the_command_says_it_and_trains_nothing(tmp_path):
    result = CliRunner().invoke(
        app, ["sweep", "nfm-table1/*", "noisymix-table5/*", "--dry-run", "--ledger", str(tmp_path / "l.jsonl"),
              "--runs", str(tmp_path / "r"), "--workers", "8"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "45 of 45" in result.output
    assert "some start from noisymix-table1/baseline, which is not trained yet" in result.output
    assert "With 8 workers" in result.output
    assert list(tmp_path.iterdir()) == []
