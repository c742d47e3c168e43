"""The study of which noise does it: levels per layer, the terms behind the prediction, and the verdicts."""

from dataclasses import replace

import pytest
import torch
from ledger_entries import entry
from problems import generator, randn
from torch.func import jacrev, vmap

import nfm_theory as nt
from experiments.claims import Records
from experiments.claims import where as claims
from experiments.models import build_model, eligible_layers
from experiments.recipes import get_recipe, select_recipes
from experiments.recipes import where as recipes
from experiments.recipes.recipe import Scheme
from experiments.record.files import RESULTS, read_lines
from experiments.schemes import build_step
from experiments.studies import where as study

LAYERS = ("", "layer1", "layer2", "layer3")
SMALL, LARGE = "fashion-where", "fashion-where-full"
Y = torch.tensor([0, 1, 2, 3])


def fast_network(seed=1):
    model = build_model("fast_cnn", 4, seed=seed, in_channels=1, widths=(2, 3, 4), stem=2).double()
    return study.with_statistics(model, randn(0, 20, 1, 16, 16))


def made_of(per_layer, *, study=SMALL, epoch=1, epochs=1):
    """A record of the study."""
    return {"study": study, "epoch": epoch, "epochs": epochs, "per_layer": per_layer}


def terms_of(add, mult=None):
    mult = mult or dict.fromkeys(LAYERS, 0.0)
    return {layer: {"R2_add": add[layer], "R2_mult": mult[layer]} for layer in LAYERS}


# Levels per layer -------------------------------------------------------------------------------------------------

#: α, σ_add, σ_mult at the input and at the three stages, typed by hand.
ROWS = {
    "nfm": [(1, 0.4, 0.2)] * 4,
    "noise-input": [(1, 0.4, 0.2), (1, 0, 0), (1, 0, 0), (1, 0, 0)],
    "noise-hidden": [(1, 0, 0), (1, 0.4, 0.2), (1, 0.4, 0.2), (1, 0.4, 0.2)],
    "noise-layer2": [(1, 0, 0), (1, 0, 0), (1, 0.4, 0.2), (1, 0, 0)],
    "quiet-layer2": [(1, 0.4, 0.2), (1, 0.4, 0.2), (1, 0, 0), (1, 0.4, 0.2)],
    "additive": [(1, 0.4, 0)] * 4,
    "multiplicative": [(1, 0, 0.2)] * 4,
    "no-mixing": [(0, 0.4, 0.2)] * 4,
    "mixing-input": [(1, 0.4, 0.2), (0, 0.4, 0.2), (0, 0.4, 0.2), (0, 0.4, 0.2)],
    "double": [(1, 0.8, 0.2)] * 4,
    "manifold_mixup": [(1, 0, 0)] * 4,
}


@pytest.mark.parametrize("row", ROWS)
def test_a_recipe_trains_with_its_levels_at_each_layer(row):
    for recipe in select_recipes(f"*where*/{row}"):
        assert eligible_layers(recipe.training.model) == LAYERS
    model = fast_network().train()
    scheme = get_recipe(f"fashion-where/{row}").training.scheme
    step = build_step(scheme, model, layers=LAYERS, classes=4, mean=(), std=(), generator=generator(0))
    laws = step.mixing.laws
    assert [(laws[a].alpha, laws[a].add_noise, laws[a].mult_noise) for a in LAYERS] == ROWS[row]
    assert {law.noise for law in laws.values()} == {"released"}
    step.close()


def test_a_step_adds_noise_only_at_the_layers_that_have_some():
    model, x = fast_network().train(), randn(1, 4, 1, 16, 16)
    scheme = get_recipe("fashion-where/noise-input").training.scheme
    drawn = {}
    for seed in range(30):
        step = build_step(scheme, model, layers=LAYERS, classes=4, mean=(), std=(), generator=generator(seed))
        step.loss(x, Y)
        last = step.mixing.last
        drawn[last.layer] = (last.draw.add is not None, last.draw.mult is not None, bool((last.draw.lam < 1).all()))
        step.close()
    assert drawn == {"": (True, True, True)} | dict.fromkeys(LAYERS[1:], (False, False, True))


def test_levels_of_unknown_layers_and_of_steps_without_layers_are_refused():
    levels = (("layer7", 1.0, 0.4, 0.2),)
    with pytest.raises(ValueError, match=r"expected layers among \['', 'layer1'\], got 'layer7'"):
        Scheme("any", levels=levels).laws(("", "layer1"))
    with pytest.raises(ValueError, match="levels of single layers need a step that mixes at layers"):
        build_step(
            Scheme("any", patch="cutmix", levels=levels), fast_network(), layers=LAYERS, classes=4, mean=(), std=(),
            generator=generator(0),
        )  # fmt: skip


# The prediction ---------------------------------------------------------------------------------------------------


def test_the_terms_of_the_noise_are_those_of_a_plain_jacobian():
    """A twin: ½ σ² E ξ² times the trace of Jᵀ (diag p - p pᵀ) J, with one Jacobian per sample from `jacrev`."""
    model, x = fast_network(), randn(1, 4, 1, 16, 16)
    found = study.layer_terms(model, x, Y)
    for layer in LAYERS:
        problem = nt.Problem(model, x, Y, layer=layer, law=nt.Law())
        h = problem.features
        rows = vmap(jacrev(lambda one, head=problem.head: head(one[None])[0]))(h).flatten(2)
        p = problem.head(h).softmax(1)
        middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        for name, level, second, scale in (
            ("R2_add", 0.4, 3 / 28, torch.ones_like(h)), ("R2_mult", 0.2, 1 / 28, h),
        ):  # fmt: skip
            j = rows * scale.flatten(1)[:, None]
            expected = level**2 * second / 2 * torch.einsum("nkd,nkl,nld->n", j, middle, j).detach().mean()
            assert found[layer][name] == pytest.approx(float(expected), rel=1e-8), (layer, name)


def test_equal_levels_have_equal_terms_and_the_total_level_the_whole():
    model, x = fast_network(), randn(1, 4, 1, 16, 16)
    terms = study.layer_terms(model, x, Y)

    def additive(layer, level):
        law = nt.Law.released(add_noise=level)
        return float(nt.regularizers(nt.Problem(model, x, Y, layer=layer, law=law), "auto").R2_add)

    levels = study.equal_levels(terms)
    assert levels[""] == 0.4
    assert [additive(layer, levels[layer]) for layer in LAYERS] == pytest.approx([terms[""]["R2_add"]] * 4)
    whole = sum(one["R2_add"] for one in terms.values())
    assert additive("", study.total_level(terms)) == pytest.approx(whole)


def test_the_levels_of_the_recipes_are_those_of_the_record():
    for name in (SMALL, LARGE):
        terms = study.mean_terms(read_lines(RESULTS / study.FILE), name)
        assert {layer: round(value, 2) for layer, value in study.equal_levels(terms).items()} == recipes.EQUAL[name]
        assert round(study.total_level(terms), 2) == recipes.TOTAL[name]


def test_a_share_is_counted_by_hand():
    add, mult = (dict(zip(LAYERS, values, strict=True)) for values in ((4.0, 2.0, 1.0, 1.0), (1.0, 1.0, 0.0, 0.0)))
    terms = terms_of(add, mult)
    record = made_of({a: dict.fromkeys(study.TERMS, 0.0) | terms[a] for a in LAYERS})
    found = study.predictions([record, made_of(dict.fromkeys(LAYERS), study=LARGE)], SMALL)
    assert found["nfm"] == 1
    assert found["baseline"] == found["manifold_mixup"] == 0
    assert found["noise-input"] == pytest.approx(5 / 10)
    assert found["noise-hidden"] == pytest.approx(5 / 10)
    assert found["noise-layer1"] == pytest.approx(3 / 10)
    assert found["additive"] == pytest.approx(8 / 10)
    assert found["double"] == pytest.approx((4 * 8 + 2) / 10)
    assert found["no-mixing"] == 1


def test_a_share_of_the_mixing_is_that_of_r2():
    values = dict(zip(LAYERS, (6.0, 2.0, 1.0, 1.0), strict=True))
    record = made_of({a: dict.fromkeys(study.TERMS, v) for a, v in values.items()})
    found = study.predictions([record], SMALL, mixing=True)
    assert found["nfm"] == found["manifold_mixup"] == 1
    assert found["no-mixing"] == found["baseline"] == 0
    assert (found["mixing-input"], found["mixing-hidden"]) == pytest.approx((0.6, 0.4))


def test_before_during_and_after_are_means_over_their_epochs():
    records = [
        made_of({a: dict.fromkeys(study.TERMS, 10.0 * s + e) for a in LAYERS}, epoch=e, epochs=2)
        for s in (1, 2) for e in (0, 1, 2)
    ]  # fmt: skip
    when = (study.BEFORE, study.DURING, study.AFTER)
    found = [study.mean_terms(records, SMALL, one)["layer1"]["R2"] for one in when]
    assert found == [15.0, 16.5, 17.0]


def test_a_small_run_of_the_study_has_a_record_for_each_epoch():
    (records,) = study.run_case(replace(study.cases(quick=True)[0], num_samples=3))
    assert [record["epoch"] for record in records] == [0, 1]
    assert all(set(record["per_layer"]) == set(LAYERS) for record in records)
    assert all(record["per_layer"][a]["R2_add"] > 0 for record in records for a in LAYERS)


# Verdicts ---------------------------------------------------------------------------------------------------------

OTHER_TERMS = dict.fromkeys(study.TERMS, 1.0) | {"R2_mult": 0.0}
R2_ADD = dict(zip(LAYERS, (7.0, 1.0, 1.0, 1.0), strict=True))
RECORD = made_of({a: OTHER_TERMS | {"R2_add": v} for a, v in R2_ADD.items()})


def lines(row, *values, within=SMALL):
    return [entry(f"{within}/{row}", s, "white_noise", **{recipes.METRIC: v}) for s, v in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("values", "word", "weakness"),
    [
        ((0.64, 0.65, 0.63), "reproduced", ""),  # predicted: 0.5 + 0.7 · 0.2
        ((0.52, 0.53, 0.51), "not reproduced", ""),
        ((0.50, 0.70, 0.60), "undecided", "within noise"),
        ((0.64,), "undecided", "one seed"),
    ],
)
def test_a_share_is_judged_by_students_interval(values, word, weakness):
    rest = (*lines("manifold_mixup", 0.5, 0.5, 0.5), *lines("nfm", 0.7, 0.7, 0.7))
    records = Records(entries=(*rest, *lines("noise-input", *values)), where=(RECORD,))
    found = claims.predicted_shares(SMALL)(records)
    assert (found.word, found.weakness, found.seeds) == (word, weakness, len(values))
    share = claims.shares(records.entries, records.where, SMALL)["noise-input"]
    assert share.predicted == pytest.approx(0.7)
    assert share.measured == pytest.approx((sum(values) / len(values) - 0.5) / 0.2)


def test_rows_that_mix_less_have_no_share():
    rows = ("manifold_mixup", "nfm", "no-mixing", "mixing-input", "baseline", "noise-hidden")
    made = tuple(line for k, row in enumerate(rows) for line in lines(row, 0.5 + k / 20, 0.52 + k / 20))
    assert set(claims.shares(made, (RECORD,), SMALL)) == {"noise-hidden"}
    assert (
        set(claims.shares(made, (RECORD,), SMALL, mixing=True)) == set()
    )  # without mixing, NFM's noise did better here
    assert claims.predicted_shares(SMALL)(Records(where=(RECORD,))).word == "not run"


def test_shares_of_the_mixing_are_judged_against_noise_without_mixing():
    record = made_of({a: dict.fromkeys(study.TERMS, 1.0) for a in LAYERS})
    rest = (*lines("no-mixing", 0.5, 0.5, 0.5), *lines("nfm", 0.7, 0.7, 0.7))
    made = (*rest, *lines("mixing-input", 0.55, 0.56, 0.54), *lines("mixing-hidden", 0.55, 0.55, 0.55))
    found = claims.predicted_shares(SMALL, mixing=True)(Records(entries=made, where=(record,)))
    assert found.word == "reproduced in part"  # predicted: a quarter, three quarters
    assert found.detail.startswith("1 of 2 within 0.25 of the prediction, 1 clearly not, 3 or more seeds; mixing-inp")
    assert claims.predicted_shares(SMALL)(Records(entries=made, where=(record,))).word == "not run"


def test_without_a_gain_there_are_no_shares():
    rest = (*lines("manifold_mixup", 0.5, 0.6, 0.5), *lines("nfm", 0.6, 0.5, 0.5))
    found = claims.predicted_shares(SMALL)(
        Records(entries=(*rest, *lines("noise-input", 0.5, 0.5, 0.5)), where=(RECORD,))
    )
    assert (found.word, found.weakness, found.seeds) == ("undecided", "within noise", 3)


def test_the_large_networks_decide_where_they_were_run():
    small = (*lines("noise-input", 0.5, 0.52, 0.51), *lines("noise-hidden", 0.4, 0.41, 0.42))
    large = (*lines("noise-input", 0.5, 0.52, 0.51, within=LARGE), *lines("noise-hidden", 0.6, 0.6, 0.61, within=LARGE))
    (judge,) = (one.verdict for one in claims.WHERE if one.id == "where-input")
    found = [judge(Records(entries=made)) for made in (small, (*small, *large), (*small, *large[:3]))]
    assert [one.word for one in found] == ["reproduced", "not reproduced", "reproduced"]
    assert [one.size for one in found] == [claims.SIZES[name] for name in (SMALL, LARGE, SMALL)]


def test_every_row_of_a_claim_is_a_recipe():
    """With a result of every recipe, no claim is left without a verdict."""
    made = tuple(
        entry(r.name, seed, "white_noise", **{recipes.METRIC: 0.2 + k / 200 + seed / 100})
        for k, r in enumerate(select_recipes("*where*/*")) for seed in (1, 2)
    )  # fmt: skip
    where = (RECORD, RECORD | {"study": LARGE})
    words = {one.id: one.verdict(Records(entries=made, where=where)).word for one in claims.WHERE}
    assert "not run" not in words.values()
    assert len(words) == 9
