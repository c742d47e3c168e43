"""How much of NFM is its second-order theory: recipes, the loss along a training, and what is said of it."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from ledger_entries import entry
from problems import generator, mlp, randn
from torch import nn
from typer.testing import CliRunner

import nfm_theory as nt
from experiments.commands import app
from experiments.models import build_model, eligible_layers
from experiments.models.preactresnet import DigitsResNet
from experiments.recipes import get_recipe, select_recipes
from experiments.recipes.recipe import Scheme
from experiments.recipes.schemes import TAYLOR_TERMS
from experiments.recipes.taylor_terms import ALONE, SCALES, SOURCES
from experiments.record.comparison import paired_difference
from experiments.record.files import read_lines
from experiments.schemes import build_step
from experiments.studies.decomposition import PARTS, DecompositionCase, cases, decompose, images, run_case
from experiments.studies.gains import (
    GROUPS,
    Gains,
    better,
    by_scale,
    clear_scales,
    corrected,
    decomposition,
    gains,
    metrics_of,
    strongest,
    terms_of,
    verdict,
)
from experiments.studies.study import study

# Recipes --------------------------------------------------------------------------------------------------------


def rows(name):
    return {r.name.partition("/")[2]: r for r in select_recipes(f"{name}/*")}


def test_every_term_of_the_penalty_has_a_recipe_and_is_trained_alone():
    assert set(nt.TaylorRegularizer("", nt.Law(add_noise=1.0, mult_noise=1.0)).terms) == set(TAYLOR_TERMS)
    smooth, relu = rows("digits-terms-smooth"), rows("digits-terms")
    assert not {"R1", "R3"} & (smooth.keys() | relu.keys())
    assert sorted((*ALONE, "R1", "R3")) == sorted(TAYLOR_TERMS)
    for row in ALONE:
        assert smooth[row].training.scheme.terms == (row,)
        assert (row in relu) == (not row.startswith("R3"))
    assert smooth["data"].training.scheme.terms + smooth["noise"].training.scheme.terms == TAYLOR_TERMS
    assert set(smooth["data"].training.scheme.terms) == {"R1", "R2", "R3"} == set(SOURCES["data"])
    taylor = get_recipe("digits/taylor_nfm").training
    for row in (*ALONE, *SOURCES):
        found = smooth[row].training
        assert replace(found.scheme, name="taylor_nfm", terms=TAYLOR_TERMS) == taylor.scheme
        options = (*taylor.model_options, ("activation", "silu"))
        assert replace(found, scheme=taylor.scheme, model_options=taylor.model_options) == taylor
        assert found.model_options == options


def test_scales_are_those_of_one_loss_and_its_expansion():
    nfm, taylor = (get_recipe(f"digits/{name}").training for name in ("nfm", "taylor_nfm"))
    found = rows("digits-eps")
    for eps in SCALES:
        exact, expanded = found[f"nfm-{eps:g}"].training, found[f"taylor_nfm-{eps:g}"].training
        assert exact == replace(nfm, scheme=replace(nfm.scheme, name=exact.scheme.name, eps=eps, form="unmixed"))
        assert expanded == replace(taylor, scheme=replace(taylor.scheme, name=expanded.scheme.name, eps=eps))
    assert rows("digits-eps-smooth").keys() == found.keys()


def test_rows_that_are_trained_already_are_the_same_training():
    for study_name in ("digits-terms", "digits-eps"):
        for row in ("baseline", "nfm"):
            assert get_recipe(f"{study_name}/{row}").hash == get_recipe(f"digits/{row}").hash
    assert get_recipe("digits-eps/taylor_nfm-1").hash == get_recipe("digits/taylor_nfm").hash
    assert get_recipe("digits-eps/nfm-1").hash != get_recipe("digits/nfm").hash
    assert get_recipe("digits/nfm").hash.startswith("e76b27c")  # typed from the ledger: a new hash orphans its results
    smooth = {r.hash for r in select_recipes("digits-*-smooth/*")}
    assert not smooth & {r.hash for r in select_recipes("digits-terms/*", "digits-eps/*", "digits/*")}


def test_no_row_of_a_printed_table_has_the_name_of_another_loss():
    known = {get_recipe(f"digits/{row}").training.scheme for row in ("baseline", "manifold_mixup", "nfm", "taylor_nfm")}
    names = {scheme.name for scheme in known}
    for recipe in select_recipes("digits-terms*/*", "digits-eps*/*"):
        scheme = recipe.training.scheme
        assert scheme in known or scheme.name not in names


# The network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "function"), [("relu", F.relu), ("silu", F.silu), ("gelu", F.gelu)])
def test_the_activation_is_the_one_that_is_named(name, function):
    model, plain = (DigitsResNet(10, width=2, activation=a).eval() for a in (name, "relu"))
    model.load_state_dict(plain.state_dict())  # no activation has parameters
    x = randn(0, 3, 1, 8, 8).float()
    h = model.conv1(x)
    for stage in (model.layer1, model.layer2, model.layer3):
        block = stage[0]
        active = function(block.bn1(h))
        short = active if block.project is None else block.project(active)
        h = block.conv2(function(block.bn2(block.conv1(active)))) + short
    torch.testing.assert_close(model(x), model.linear(h.mean((2, 3))))


def test_the_default_network_is_as_it_was():
    default, relu = (build_model("digits_resnet", 10, seed=1, width=2, **o) for o in ({}, {"activation": "relu"}))
    x = randn(0, 3, 1, 8, 8).float()
    assert torch.equal(default(x), relu(x))
    assert not any(isinstance(m, nn.SiLU) for m in default.modules())
    with pytest.raises(ValueError, match="activation: expected one of"):
        build_model("digits_resnet", 10, activation="tanh")


def test_terms_with_second_derivatives_of_a_relu_network_train_the_baseline():
    """Why they have no recipe of their own."""
    scheme = get_recipe("digits/taylor_nfm").training.scheme
    x, y = randn(1, 6, 1, 8, 8).float(), torch.arange(6)
    options = {"layers": eligible_layers("digits_resnet"), "classes": 10, "mean": (), "std": ()}

    def slopes(chosen, activation):
        model = build_model("digits_resnet", 10, seed=1, width=2, activation=activation).train()
        step = build_step(chosen, model, **options, generator=generator(0))
        loss = step.loss(x, y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    for row in ("R3", "R3_add", "R3_mult"):
        alone = replace(scheme, terms=(row,))
        assert torch.equal(slopes(alone, "relu"), slopes(Scheme("baseline"), "relu"))
        assert not torch.equal(slopes(alone, "silu"), slopes(Scheme("baseline"), "silu"))


# Decomposition --------------------------------------------------------------------------------------------------

MODEL, X, Y = mlp(0, [2, 5, 3], "tanh").eval(), randn(1, 5, 2), torch.tensor([0, 1, 2, 1, 0])
LAW = nt.Law(alpha=0.7, add_noise=0.5, mult_noise=0.4, noise="rademacher")


def test_the_parts_sum_to_the_exact_loss_within_its_standard_error():
    exact = nt.loss(nt.Problem(MODEL, X, Y, law=LAW), method="exact")
    for seed in range(5):
        found = decompose(MODEL, X, Y, LAW, layers=[""], evaluations=4000, seed=seed)
        parts = math.fsum(found["terms"].values()) + found["remainder"]
        assert parts == pytest.approx(found["loss"], abs=1e-12)
        assert abs(parts - float(exact)) <= 5 * found["stderr"]
        assert 0 < found["stderr"] < 0.05


def test_terms_are_those_of_the_library_and_loss_and_error_their_mean_over_layers():
    layers = ["", "1"]
    found = decompose(MODEL, X, Y, LAW, layers=layers, evaluations=1000, seed=3)
    terms = nt.terms(nt.Problem.at_layers(MODEL, X, Y, layers=layers, law=LAW), remainder=False)
    assert list(found["terms"]) == list(PARTS) == list(terms.to_dict())
    assert found["terms"] == pytest.approx(terms.to_dict(), rel=1e-10)
    each = [found["per_layer"][layer] for layer in layers]
    assert found["loss"] == pytest.approx(sum(r["loss"] for r in each) / 2)
    assert found["remainder"] == pytest.approx(sum(r["remainder"] for r in each) / 2)
    assert found["stderr"] == pytest.approx((each[0]["stderr"] ** 2 + each[1]["stderr"] ** 2) ** 0.5 / 2)
    assert each[0]["loss"] != each[1]["loss"]
    again = decompose(MODEL, X, Y, LAW, layers=layers, evaluations=1000, seed=3)
    assert again == found


def test_the_first_coefficients_are_measured_along_the_loss_too():
    """An independent witness: derivatives in ε along every row of a deterministic rule."""
    found = decompose(MODEL, X, Y, LAW, layers=[""], evaluations=1000, seed=0)["terms"]
    measured = nt.coefficients(nt.Problem(MODEL, X, Y, law=LAW), order=2).detach()
    second = sum(found[name] for name in PARTS[2:])
    for k, value in enumerate((found["standard"], found["R1"], second)):
        assert float(measured[k]) == pytest.approx(value, rel=1e-9)


def test_images_are_as_networks_see_them():
    x, y = images(7)
    assert x.shape == (7, 1, 8, 8)
    assert x.dtype == torch.float64
    everything, labels = images(10_000)
    assert (float(everything.mean()), float(everything.std())) == pytest.approx((0, 1), abs=1e-4)
    assert torch.equal(y, labels[:7])


def test_a_training_is_taken_apart_as_it_goes_and_ends_as_it_would(tmp_path):
    arguments = ["study", "decomposition", "--quick", "--workers", "1", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    records = read_lines(tmp_path / "decomposition.jsonl")
    assert [(r["activation"], r["epoch"]) for r in records] == [(a, e) for a in ("relu", "silu") for e in (0, 1)]
    for record in records:
        assert math.fsum(record["terms"].values()) + record["remainder"] == pytest.approx(record["loss"])
        assert list(record["per_layer"]) == list(eligible_layers("digits_resnet"))
        curved = [abs(record["terms"][name]) for name in ("R3", "R3_add", "R3_mult")]
        assert (max(curved) > 0) == (record["activation"] == "silu")
        assert abs(record["remainder"]) < record["loss"]
    first, last = records[0], records[1]
    assert last["terms"]["standard"] < first["terms"]["standard"]
    x, y = images(12)
    fresh = build_model("digits_resnet", 10, seed=1, width=8).double().eval()
    assert first["terms"]["standard"] == pytest.approx(float(F.cross_entropy(fresh(x), y).detach()), rel=1e-9)


def test_epochs_that_are_not_asked_for_are_passed_over():
    short = DecompositionCase("relu", "baseline", 1, epochs=(1, 5), num_samples=6, evaluations=60, length=1)
    ((record,),) = run_case(short)
    assert (record["epoch"], record["epochs"], record["n"]) == (1, 1, 6)
    assert record["hash"] == short.training.hash != get_recipe("digits/baseline").hash
    assert {(c.activation, c.scheme, c.seed) for c in cases(seeds=(1, 2))} == {
        (a, s, k) for a in ("relu", "silu") for s in ("baseline", "nfm", "taylor_nfm") for k in (1, 2)
    }
    assert DecompositionCase("silu", "nfm", 1).training == get_recipe("digits-terms-smooth/nfm").training


def test_the_missing_file_names_its_job(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m experiments study decomposition --record"):
        read_lines(tmp_path / "decomposition.jsonl")


# What is said of it ---------------------------------------------------------------------------------------------


def lines(name, values, metric="clean"):
    return [entry(name, seed, **{metric: value}) for seed, value in enumerate(values, 1)]


BASE = lines("digits-eps/baseline", [0.80, 0.81, 0.82])


def scaled(eps, exact, taylor):
    return lines(f"digits-eps/nfm-{eps:g}", exact) + lines(f"digits-eps/taylor_nfm-{eps:g}", taylor)


CLOSE = ([0.85, 0.861, 0.87], [0.851, 0.86, 0.871])
APART = ([0.90, 0.911, 0.92], [0.85, 0.86, 0.87])


def test_gains_by_scale_by_hand():
    one = study([*BASE, *scaled(0.1, *CLOSE), *scaled(1.0, *APART)], "digits-eps")
    found = by_scale(one, "clean")
    assert list(found) == [0.1, 1.0]
    assert found[1.0].exact.difference == pytest.approx((10 + 10.1 + 10) / 3)
    assert found[1.0].taylor.difference == pytest.approx(5)
    assert found[1.0].share == pytest.approx(15 / 30.1)
    assert clear_scales(found) == [1.0]
    assert gains(one, "nfm-1", "clean") == found[1.0]
    assert metrics_of(one) == ["clean"]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, "not run"),
        ({0.1: ([0.9], [0.8])}, "undecided: one seed has no interval"),
        ({0.1: CLOSE, 1.0: CLOSE}, "no clear difference at any ε"),
        ({0.1: CLOSE, 0.5: APART, 1.0: APART}, "clearly different from ε = 0.5 on"),
        ({0.1: APART, 0.5: CLOSE, 1.0: APART}, "clearly different at ε = 0.1, 1"),
        ({0.1: CLOSE, 1.0: APART}, "clearly different at ε = 1"),
    ],
)
def test_the_verdict_follows_from_the_intervals(found, words):
    some = [line for eps, values in found.items() for line in scaled(eps, *values)]
    assert verdict(by_scale(study([*BASE, *some], "digits-eps"), "clean")) == words


def test_a_share_needs_a_clear_gain():
    unclear = paired_difference({1: 1.0, 2: -1.0}, {1: 0.0, 2: 0.0})
    clear = paired_difference({1: 1.0, 2: 1.01}, {1: 0.0, 2: 0.0})
    assert Gains(unclear, clear, clear).share is None
    assert Gains(clear, None, None).share is None
    assert Gains(clear, unclear, clear).share == pytest.approx(0)


def test_the_correction_is_for_the_whole_family():
    strong = paired_difference({1: 5.0, 2: 5.01, 3: 4.99}, dict.fromkeys((1, 2, 3), 0.0))
    weak = paired_difference({1: 1.0, 2: 1.5, 3: 0.9}, dict.fromkeys((1, 2, 3), 0.0))
    assert weak.p_value < 0.05
    assert list(corrected({"weak": weak})) == ["weak"]
    family = {"strong": strong, "none": None, **dict.fromkeys(map(str, range(9)), weak)}
    assert list(corrected(family)) == ["strong"]
    assert corrected({}) == {}


def test_the_best_single_term_and_what_better_means():
    some = lines("digits-terms/baseline", [0.8, 0.8]) + lines("digits-terms/R2_add", [0.81, 0.82])
    some += lines("digits-terms/R2", [0.9, 0.91]) + lines("digits-terms/data", [0.95, 0.96])
    one = study(some, "digits-terms")
    assert strongest(one, "clean")[0] == "R2"
    assert list(terms_of(one, "clean")) == ["R2", "R2_add", "data"]
    assert strongest(study([], "digits-terms"), "clean") is None
    gain = paired_difference({1: 1.0, 2: 1.1}, {1: 0.0, 2: 0.0})
    assert better(gain, "clean")
    assert not better(gain, "ece")


def record(epoch, seed=1, scheme="nfm", activation="relu"):
    terms = {name: 0.1 * (k + 1) for k, name in enumerate(PARTS)}
    total = sum(terms.values())
    return {
        "activation": activation, "scheme": scheme, "seed": seed, "epoch": epoch, "n": 5, "evaluations": 10,
        "loss": total + 0.4 * seed, "stderr": 0.01 * seed, "terms": terms, "remainder": 0.4 * seed,
    }  # fmt: skip


def test_the_mean_over_seeds_keeps_the_sum():
    assert [name for group in GROUPS.values() for name in group] == list(PARTS)
    first, second = decomposition(
        [record(4), record(4, seed=2), record(1), record(1, scheme="baseline")], "relu", "nfm"
    )
    assert (first.epoch, second.epoch) == (1, 4)
    assert second.remainder == pytest.approx(0.6)
    assert second.stderr == pytest.approx(0.01 * 5**0.5 / 2)
    for parts in (first, second):
        assert sum(parts.groups.values()) + parts.remainder == pytest.approx(parts.loss)
        assert parts.rise_explained == pytest.approx((3.5 - 0.0) / (3.5 + parts.remainder))
