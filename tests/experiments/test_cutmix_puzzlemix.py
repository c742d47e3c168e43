"""CutMix against loops, the graph cut against enumeration, PuzzleMix against pixel-by-pixel formulas."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from experiments.augment import cutmix as cm
from experiments.augment import puzzlemix as pm
from experiments.augment.graph_cut import energy, swap_cut

UNIT = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def batch(n, side, seed=0, channels=3):
    """Smooth images, saliency and labels."""
    generator = seeded(seed)
    x = nn.functional.interpolate(torch.rand(n, channels, 4, 4, generator=generator), size=side, mode="bilinear")
    saliency = nn.functional.interpolate(torch.rand(n, 1, 8, 8, generator=generator) ** 3, size=side)[:, 0]
    return x, saliency, torch.randint(0, 5, (n,), generator=generator)


# CutMix -------------------------------------------------------------------------------------------------------------


def test_cutmix_equals_the_loop_over_pixels():
    x, _, y = batch(4, 8)
    draw = cm.CutMixDraw(torch.tensor([2, 1, 3, 0]), (1, 4, 5, 8))
    before = x.clone()
    mixed, targets = cm.apply_cutmix(x, cm.soft_labels(y, 5), draw)
    assert torch.equal(x, before)
    for n, partner in enumerate(draw.index.tolist()):
        for i, j in product(range(8), range(8)):
            source = partner if 1 <= i < 4 and 5 <= j < 8 else n
            assert torch.equal(mixed[n, :, i, j], x[source, :, i, j])
        expected = torch.zeros(5)
        expected[y[n]] += 55 / 64
        expected[y[partner]] += 9 / 64
        torch.testing.assert_close(targets[n], expected)


def test_labels_weigh_the_area_that_is_kept_in_images_of_any_shape():
    generator, tallest, widest = seeded(0), 0, 0
    for _ in range(150):
        x = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 20, 60)
        draw = cm.draw_cutmix(4, (20, 60), generator=generator)
        mixed, targets = cm.apply_cutmix(x.clone(), cm.soft_labels(torch.arange(4), 4), draw)
        top, bottom, left, right = draw.box
        tallest, widest = max(tallest, bottom - top), max(widest, right - left)
        for n, partner in enumerate(draw.index.tolist()):
            if partner != n:
                assert float((mixed[n, 0] == n).double().mean()) == pytest.approx(float(targets[n, n]), abs=1e-6)
    assert tallest <= 20 < widest


def test_boxes_have_the_area_of_lambda_in_the_middle_and_are_clipped_at_the_border():
    generator = seeded(0)
    boxes = torch.tensor([cm.sample_box((32, 16), 0.75, generator) for _ in range(4000)])
    top, bottom, left, right = boxes.T
    assert (boxes >= 0).all()
    assert (bottom <= 32).all()
    assert (right <= 16).all()
    # Sides 16 and 8, halves 8 and 4: a centre c gives the rows c - 8 to c + 8, cut to 0..32.
    assert (bottom - top).unique().tolist() == list(range(8, 17))
    assert (right - left).unique().tolist() == list(range(4, 9))
    full = ((bottom - top) == 16).double().mean()  # centres 8 to 24 of 32
    share = 17 / 32
    assert abs(full - share) <= 5 * np.sqrt(share * (1 - share) / 4000)
    middles = (left == 0).double().mean()  # centres 0 to 4 of 16
    assert abs(middles - 5 / 16) <= 5 * np.sqrt(5 / 16 * 11 / 16 / 4000)
    t, b, s, e = cm.sample_box((32, 32), 1.0, generator)
    assert (t, s) == (b, e)


def test_cutmix_is_applied_with_its_probability_and_replays():
    n = 2000
    applied = 0
    for seed in range(n):
        draw = cm.draw_cutmix(6, (32, 32), generator=seeded(seed), probability=0.3)
        applied += draw.box != (0, 0, 0, 0)
    # A box drawn with lambda near 1 may itself be empty: Beta(1, 1) gives halves of 0 when 32 sqrt(1 - lam) < 2.
    share = 0.3
    assert abs(applied / n - share) <= 5 * np.sqrt(share * (1 - share) / n) + 0.3 / 256
    x, _, y = batch(6, 32)
    first, second = (cm.cutmix(x, y, generator=seeded(4), num_classes=5, probability=1.0) for _ in range(2))
    draw = cm.draw_cutmix(6, (32, 32), generator=seeded(4))
    replay = cm.apply_cutmix(x, cm.soft_labels(y, 5), draw)
    for a, b, c in zip(first, second, replay, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    torch.testing.assert_close(first[1].sum(1), torch.ones(6))
    for never in ({"probability": 0.0}, {"alpha": 0.0}):
        mixed, targets = cm.cutmix(x, y, generator=seeded(0), num_classes=5, **never)
        assert torch.equal(mixed, x)
        assert torch.equal(targets, cm.soft_labels(y, 5))


def test_kept_area_of_cutmix_has_the_mean_of_its_law():
    """E kept by exact sums over the centre and quadrature over lambda, against draws."""
    lams = (np.arange(4000) + 0.5) / 4000

    def covered(side):
        half = (side * np.sqrt(1 - lams)).astype(int) // 2
        centre = np.arange(side)[:, None]
        return (np.minimum(centre + half, side) - np.maximum(centre - half, 0)).mean(0) / side

    truth = 1 - (covered(32) ** 2).mean()
    generator = seeded(1)
    kept = torch.tensor([cm.draw_cutmix(2, (32, 32), generator=generator).kept((32, 32)) for _ in range(3000)])
    assert abs(float(kept.mean()) - truth) <= 5 * float(kept.std()) / np.sqrt(3000)


def test_soft_and_hard_labels_mix_alike_and_bad_ones_are_refused():
    x, _, y = batch(6, 16)
    hard = cm.cutmix(x, y, generator=seeded(2), num_classes=5)
    soft = cm.cutmix(x, cm.soft_labels(y, 5), generator=seeded(2), num_classes=5)
    assert torch.equal(hard[1], soft[1])
    with pytest.raises(ValueError, match="y: expected class indices"):
        cm.cutmix(x, torch.rand(6, 4), generator=seeded(2), num_classes=5)
    with pytest.raises(ValueError, match="expected probability in"):
        cm.draw_cutmix(2, (4, 4), generator=seeded(0), probability=1.5)


# Graph cut ----------------------------------------------------------------------------------------------------------


def problem(seed, n_labels, n=1, grid=(2, 2), strength=0.8):
    rng = np.random.default_rng(seed)
    g, h = grid
    weights = (strength * rng.random(shape) for shape in ((n, g - 1, h), (n, g, h - 1)))
    return rng.random((n, n_labels, g, h)), *weights


def naive_energy(labels, unary, down, right):
    """One grid, loops."""
    steps = unary.shape[0] - 1
    g, h = labels.shape
    total = sum(unary[labels[i, j], i, j] for i, j in product(range(g), range(h)))
    total += sum(down[i, j] * ((labels[i, j] - labels[i + 1, j]) / steps) ** 2 for i in range(g - 1) for j in range(h))
    return total + sum(
        right[i, j] * ((labels[i, j] - labels[i, j + 1]) / steps) ** 2 for i in range(g) for j in range(h - 1)
    )


def every_labelling(n_labels, grid):
    return [np.array(c).reshape(grid) for c in product(range(n_labels), repeat=grid[0] * grid[1])]


@pytest.mark.parametrize("n_labels", [2, 3, 4])
def test_energy_equals_the_loop(n_labels):
    parts = problem(0, n_labels, n=5, grid=(3, 4))
    labels = np.random.default_rng(1).integers(0, n_labels, (5, 3, 4))
    expected = [naive_energy(labels[k], *(p[k] for p in parts)) for k in range(5)]
    np.testing.assert_allclose(energy(labels, *parts), expected, rtol=1e-12)


@pytest.mark.parametrize("grid", [(2, 2), (2, 3), (3, 3)])
def test_two_labels_give_the_global_optimum(grid):
    changed = 0
    for seed in range(20):
        parts = problem(seed, 2, grid=grid)
        labels = swap_cut(*parts)
        best = min(naive_energy(c, *(p[0] for p in parts)) for c in every_labelling(2, grid))
        assert energy(labels, *parts)[0] <= best + 1e-6
        changed += not np.array_equal(labels, parts[0].argmin(1))
    assert changed > 5  # the neighbors matter in these problems


@pytest.mark.parametrize("grid", [(2, 2), (2, 3)])
def test_three_labels_end_where_no_swap_move_helps_and_often_at_the_optimum(grid):
    optimal, problems = 0, 40 if grid == (2, 2) else 12
    for seed in range(problems):
        parts = problem(seed, 3, grid=grid)
        one = [p[0] for p in parts]
        labels = swap_cut(*parts)[0]
        found = naive_energy(labels, *one)
        assert found <= naive_energy(parts[0].argmin(1)[0], *one) + 1e-6  # never above the start
        everything = [(c, naive_energy(c, *one)) for c in every_labelling(3, grid)]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            mine = np.isin(labels, (a, b))
            moves = [e for c, e in everything if (np.isin(c, (a, b)) == mine).all() and (c == labels)[~mine].all()]
            assert found <= min(moves) + 1e-6
        optimal += found <= min(e for _, e in everything) + 1e-6
    assert optimal >= 0.7 * problems


def test_grids_of_a_batch_do_not_touch():
    parts = problem(3, 3, n=12, grid=(4, 4))
    together = swap_cut(*parts)
    alone = np.concatenate([swap_cut(*(p[k : k + 1] for p in parts)) for k in range(12)])
    np.testing.assert_allclose(energy(together, *parts), energy(alone, *parts), atol=1e-5)


def test_without_weights_every_place_takes_its_own_best_and_with_huge_ones_all_agree():
    unary, down, right = problem(4, 3, n=4, grid=(5, 5))
    assert np.array_equal(swap_cut(unary, 0 * down, 0 * right), unary.argmin(1))
    unary[:, 1] += 2  # so that the middle label is no way out
    labels = swap_cut(unary, down + 100, right + 100)
    assert all(len(np.unique(grid)) == 1 for grid in labels)
    assert np.array_equal(
        swap_cut(np.zeros((1, 3, 2, 2)), np.zeros((1, 1, 2)), np.zeros((1, 2, 1))), np.zeros((1, 2, 2))
    )
    with pytest.raises(ValueError, match="weights >= 0"):
        swap_cut(unary, down - 1, right)


# PuzzleMix ----------------------------------------------------------------------------------------------------------


def smoothness(z, a, b, size, grid, scale):
    """Loops: what the edges of the picture cost that shows a where z is 1 and b where it is 0."""
    block = a.shape[-1] // grid
    small = {1: nn.functional.avg_pool2d(a[None], size)[0], 0: nn.functional.avg_pool2d(b[None], size)[0]}
    k, total = block // size, 0.0
    for i, j in product(range(grid), range(grid)):
        for di, dj in ((1, 0), (0, 1)):
            if i + di >= grid or j + dj >= grid:
                continue
            here, there = small[int(z[i, j])], small[int(z[i + di, j + dj])]
            for t in range(k):
                p, q = ((i + 1) * k - 1, j * k + t) if di else (i * k + t, (j + 1) * k - 1)
                total += scale * float((here[:, p, q] - there[:, p + di, q + dj]).abs().mean()) / k
    return total


@pytest.mark.parametrize(("side", "grid", "size"), [(16, 2, 4), (16, 2, 2), (12, 3, 4)])
def test_costs_of_binary_masks_equal_the_formula_of_the_paper(side, grid, size):
    x, saliency, _ = batch(2, side)
    options = pm.PuzzleOptions(neighborhood=size, n_labels=3, beta=1.2, gamma=0.5, eta=0.2)
    shares = pm.cell_shares(saliency, side // grid)
    parts = pm.mask_costs(shares[:1], shares[1:], x[:1], x[1:], 0.3, options)
    parts = [p.double().numpy() for p in parts]
    beta = 1.2 / (16 * grid)
    gaps = []
    for seed in range(12):
        z = np.random.default_rng(seed).integers(0, 2, (grid, grid))
        own = torch.from_numpy(z)
        expected = float((own * shares[1] + (1 - own) * shares[0]).sum())
        expected += beta * ((np.diff(z, axis=0) ** 2).sum() + (np.diff(z, axis=1) ** 2).sum())
        expected += smoothness(z, x[0], x[1], size, grid, beta * 0.5)
        # Binomial(2, lam) prior: label 0 (all own) has chance 0.09, label 2 has 0.49.
        expected += 0.2 / grid**2 * np.where(z == 1, -np.log(0.09), -np.log(0.49)).sum()
        gaps.append(energy(2 * (1 - z)[None], *parts)[0] - expected)
    np.testing.assert_allclose(gaps, gaps[0], atol=1e-6)  # equal up to one constant for all masks


def test_the_middle_label_costs_the_mean_of_its_neighbors_but_for_the_binomial_prior():
    x, saliency, _ = batch(2, 16)
    shares = pm.cell_shares(saliency, 8)
    unary = pm.mask_costs(shares[:1], shares[1:], x[:1], x[1:], 0.3, pm.PuzzleOptions())[0]
    # -log(2 * 0.3 * 0.7) against the mean of -log(0.3^2) and -log(0.7^2).
    gap = torch.full((1, 2, 2), -0.2 / 4 * np.log(2), dtype=unary.dtype)
    torch.testing.assert_close(unary[:, 1] - (unary[:, 0] + unary[:, 2]) / 2, gap, rtol=1e-4, atol=1e-6)


def test_each_image_moves_its_own_salient_patches_into_its_own_part():
    x, saliency, _ = batch(3, 32, seed=11)
    index = torch.tensor([1, 2, 0])
    options, still = pm.PuzzleOptions(t_eps=0.05), pm.PuzzleOptions(transport=False)
    draw = pm.PuzzleDraw(0.5, index, 4)
    shares = pm.cell_shares(saliency, 8)
    mask = pm.optimal_mask(pm.mask_costs(shares, shares[index], x, x[index], 0.5, options))
    share = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    own = pm.transported(x, saliency, mask, options)
    pairs = [(x[p : p + 1], saliency[p : p + 1], 1 - mask[n : n + 1]) for n, p in enumerate(index.tolist())]
    other = torch.cat([pm.transported(*pair, options) for pair in pairs])
    mixed = pm.apply_puzzlemix(x, torch.eye(3), saliency, draw, **UNIT, options=options)[0]
    torch.testing.assert_close(mixed, share * own + (1 - share) * other)
    unmoved = pm.apply_puzzlemix(x, torch.eye(3), saliency, draw, **UNIT, options=still)[0]
    torch.testing.assert_close(unmoved, share * x + (1 - share) * x[index])
    assert not torch.equal(mixed, unmoved)


def test_shares_sum_to_one_and_a_blank_map_is_shared_equally():
    shares = pm.cell_shares(torch.stack([torch.eye(4), torch.zeros(4, 4)]), 2)
    torch.testing.assert_close(shares, torch.tensor([[[0.5, 0], [0, 0.5]], [[0.25] * 2] * 2]))


def test_the_mask_follows_saliency_and_lambda():
    x = torch.full((2, 3, 16, 16), 0.5)
    saliency = torch.full((2, 16, 16), 1e-3)
    saliency[0, :, :8], saliency[1, :, 8:] = 1.0, 1.0  # left half of one, right half of the other
    draw = pm.PuzzleDraw(0.5, torch.tensor([1, 0]), 2)
    shares = pm.cell_shares(saliency, 8)
    mask = pm.optimal_mask(pm.mask_costs(shares, shares[draw.index], x, x, 0.5, pm.PuzzleOptions(beta=0.3)))
    assert mask[0].tolist() == [[1, 0], [1, 0]]
    assert mask[1].tolist() == [[0, 1], [0, 1]]
    x, saliency, _ = batch(64, 32, seed=5)
    means = []
    for lam in (0.02, 0.3, 0.5, 0.7, 0.98):
        draw = pm.PuzzleDraw(lam, torch.arange(63, -1, -1), 4)
        targets = pm.apply_puzzlemix(x, torch.eye(64), saliency, draw, **UNIT)[1]
        means.append(float(targets.diagonal().mean()))
    assert means == sorted(means)
    assert means[0] < 0.05
    assert means[-1] > 0.95
    assert all(abs(mean - lam) < 0.2 for mean, lam in zip(means, (0.02, 0.3, 0.5, 0.7, 0.98), strict=True))


def test_assignment_is_a_stable_permutation_and_each_first_choice_where_they_do_not_collide():
    costs = torch.rand(20, 9, 9, generator=seeded(0), dtype=torch.float64)
    target = pm.assign(costs)
    assert torch.equal(target.sort(1).values, torch.arange(9).expand(20, 9))
    source = target.argsort(1)
    for cost, places, patches in zip(costs, target, source, strict=True):
        for patch, place in product(range(9), range(9)):
            wants = cost[patch, place] < cost[patch, places[patch]]
            wanted = cost[patch, place] < cost[patches[place], place]
            assert not (wants and wanted)
    first = torch.rand(3, 4, 4, generator=seeded(1))
    permutation = torch.tensor([2, 0, 3, 1])
    first[:, torch.arange(4), permutation] -= 2
    assert torch.equal(pm.assign(first), permutation.expand(3, 4))
    assert torch.equal(pm.assign(torch.zeros(1, 3, 3)).sort(1).values, torch.arange(3)[None])
    # Both want place 0; patch 1 is cheaper there, so patch 0 goes on to place 1.
    assert pm.assign(torch.tensor([[[1.0, 5.0], [0.5, 0.6]]])).tolist() == [[1, 0]]


def test_transport_brings_the_salient_patch_into_the_mask_unless_it_is_too_far():
    shares = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    wanted = torch.tensor([[[True, False], [False, False]]])
    costs = pm.transport_costs(shares, wanted, 0.8)
    # Squared distances on a 2 x 2 grid are 0, 1 and 2; only patch 1 gains anything, 1 at place 0.
    assert costs[0, 1].tolist() == pytest.approx([0.8 - 1, 0, 1.6, 0.8])
    assert costs[0, 0].tolist() == pytest.approx([0, 0.8, 0.8, 1.6])
    assert pm.assign(costs)[0, :2].tolist() == [1, 0]
    assert pm.assign(pm.transport_costs(shares, wanted, 1.2)).tolist() == [[0, 1, 2, 3]]


def test_moving_patches_keeps_every_patch_and_puts_it_where_it_was_sent():
    x = torch.rand(3, 2, 12, 12, generator=seeded(0))
    target = torch.stack([torch.randperm(9, generator=seeded(s)) for s in range(3)])
    moved = pm.move_patches(x, target, 4)
    for n, p in product(range(3), range(9)):
        (i, j), (a, b) = divmod(p, 3), divmod(int(target[n, p]), 3)
        new = moved[n, :, 4 * a : 4 * a + 4, 4 * b : 4 * b + 4]
        assert torch.equal(new, x[n, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4])
    assert torch.equal(moved.flatten().sort().values, x.flatten().sort().values)


def test_transport_never_loses_saliency_in_the_mask():
    saliency = batch(8, 32, seed=2)[1]
    mask = (torch.rand(8, 4, 4, generator=seeded(3)) > 0.5).float()
    options = pm.PuzzleOptions(t_eps=0.05)
    moved = pm.transported(saliency[:, None].expand(-1, 3, -1, -1), saliency, mask, options)[:, 0]
    fine = nn.functional.interpolate(mask[:, None], size=(32, 32))[:, 0]
    before, after = (fine * saliency).sum((1, 2)), (fine * moved).sum((1, 2))
    assert (after >= before - 1e-4).all()
    assert (after > before + 1e-2).any()
    torch.testing.assert_close(moved.sum((1, 2)), saliency.sum((1, 2)))


@pytest.mark.parametrize("grid", [2, 4, 8, 16])
@pytest.mark.parametrize("transport", [False, True])
def test_puzzlemix_weighs_labels_by_the_mask_and_pixels_alike(grid, transport):
    x, saliency, _ = batch(10, 32, seed=grid)
    index = torch.randperm(10, generator=seeded(1))
    options = pm.PuzzleOptions(transport=transport)
    before = x.clone()
    mixed, targets = pm.apply_puzzlemix(
        x, torch.eye(10), saliency, pm.PuzzleDraw(0.4, index, grid), **UNIT, options=options
    )
    assert torch.equal(x, before)
    assert mixed.shape == x.shape
    assert ((targets >= 0) & (targets <= 1)).all()
    torch.testing.assert_close(targets.sum(1), torch.ones(10))
    # Transport permutes whole patches: images of one color each show the mask's mean in their own mean.
    flat = torch.arange(10.0)[:, None, None, None].expand(-1, 3, 32, 32)
    mixed, targets = pm.apply_puzzlemix(
        flat / 10, torch.eye(10), saliency, pm.PuzzleDraw(0.4, index, grid), **UNIT, options=options
    )
    torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ (torch.arange(10.0) / 10))


def test_normalized_images_get_the_mask_of_their_pixels():
    x, saliency, _ = batch(6, 32, seed=9)
    draw = pm.PuzzleDraw(0.5, torch.tensor([3, 4, 5, 0, 1, 2]), 8)
    plain = pm.apply_puzzlemix(x, torch.eye(6), saliency, draw, **UNIT)
    mean, std = (0.5, 0.4, 0.45), (0.25, 0.2, 0.22)
    shift, scale = (torch.tensor(v)[:, None, None] for v in (mean, std))
    normalized = pm.apply_puzzlemix((x - shift) / scale, torch.eye(6), saliency, draw, mean=mean, std=std)
    torch.testing.assert_close(normalized[1], plain[1])
    torch.testing.assert_close(normalized[0] * scale + shift, plain[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "grids", "patches"),
    [
        (8, (2, 4), (4, 2)),
        (16, (2, 4, 8), (4, 4, 2)),
        (28, (2, 4, 7), (14, 7, 4)),
        (32, (2, 4, 8, 16), (4, 4, 4, 2)),
        (64, (2, 4, 8, 16), (4, 4, 4, 4)),
        (90, (2, 5, 9, 15), (45, 18, 10, 6)),
        (96, (2, 4, 8, 16), (48, 24, 12, 6)),
        (224, (2, 4, 8, 16), (112, 56, 28, 14)),
    ],
)
def test_every_side_has_grids_and_patches_that_fit(side, grids, patches, monkeypatch):
    """Patches of 4 pixels for small images, whole cells for large ones and where 4 pixels do not fill a cell."""
    options = pm.options_for(side)
    assert options.grids == grids
    x, saliency, _ = batch(2, side, seed=1)
    moved = []
    move = pm.move_patches
    monkeypatch.setattr(pm, "move_patches", lambda x, target, size: moved.append(size) or move(x, target, size))
    for grid in grids:
        draw = pm.PuzzleDraw(0.5, torch.tensor([1, 0]), grid)
        mixed, targets = pm.apply_puzzlemix(x, torch.eye(2), saliency, draw, **UNIT)
        assert mixed.shape == x.shape
        torch.testing.assert_close(targets.sum(1), torch.ones(2))
        assert bool(torch.isfinite(mixed).all())
    assert tuple(moved[::2]) == patches


def test_a_side_without_a_grid_is_refused():
    for side in (3, 31):
        with pytest.raises(ValueError, match=f"no prime number, got {side}"):
            pm.options_for(side)


def test_puzzlemix_replays_and_refuses_what_does_not_fit():
    x, saliency, y = batch(6, 32)
    state = torch.random.get_rng_state()
    call = lambda: pm.puzzlemix(x, y, saliency, generator=seeded(7), num_classes=5, **UNIT)  # noqa: E731
    first, second = call(), call()
    assert torch.equal(torch.random.get_rng_state(), state)
    draw = pm.sample_draw(6, generator=seeded(7))
    replay = pm.apply_puzzlemix(x, cm.soft_labels(y, 5), saliency, draw, **UNIT)
    for a, b, c in zip(first, second, replay, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    with pytest.raises(ValueError, match="multiple of the grid"):
        pm.apply_puzzlemix(x[..., :30, :30], torch.eye(6), saliency, pm.PuzzleDraw(0.5, draw.index, 4), **UNIT)
    with pytest.raises(ValueError, match="gamma in"):
        pm.PuzzleOptions(gamma=1.5)


def test_statistics_of_puzzle_draws():
    generator, n = seeded(0), 2000
    draws = [pm.sample_draw(3, generator=generator) for _ in range(n)]
    for grid in (2, 4, 8, 16):
        assert abs(sum(d.grid == grid for d in draws) / n - 1 / 4) <= 5 * np.sqrt(3 / 16 / n)
    lams = np.array([d.lam for d in draws])
    assert abs(lams.mean() - 1 / 2) <= 5 * np.sqrt(1 / 12 / n)
    assert abs(lams.var() - 1 / 12) <= 5 * np.sqrt(1 / 180 / n)
    fixed = sum(int(d.index[0]) == 0 for d in draws) / n
    assert abs(fixed - 1 / 3) <= 5 * np.sqrt(2 / 9 / n)


def test_saliency_of_a_linear_model_by_hand_and_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 2))
    model[1].eval()
    x = torch.rand(3, 2, 2, 2, generator=seeded(0))
    y = torch.tensor([0, 1, 1])
    got = pm.saliency(model, x, y)
    weight = model[2].weight.detach()
    residual = (x.flatten(1) @ weight.T + model[2].bias).softmax(1).detach() - nn.functional.one_hot(y, 2)
    gradient = (residual @ weight).unflatten(1, (2, 2, 2))
    torch.testing.assert_close(got, ((gradient[:, 0] ** 2 + gradient[:, 1] ** 2) / 2).sqrt())
    assert model.training
    assert not model[1].training
    assert model[2].weight.grad is None
    assert not got.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(pm.saliency(model, x, y), got)
    torch.testing.assert_close(pm.saliency(model, x, cm.soft_labels(y, 2)), got)
