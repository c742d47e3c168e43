r"""PuzzleMix: cut two images along a mask that keeps salient parts, and move salient patches into the mask.

The paper (Kim, Choo and Song, ICML 2020) states the following. The mixture is $z \odot \Pi_a a + (1 - z) \odot \Pi_b
b$. The mask z lives on a coarse grid and has L levels between 0 and 1. It minimises lost saliency + smoothness of the
mask (beta) + smoothness of the mixed picture (gamma) + a binomial prior with mean lambda (eta), by alpha-beta swaps.
Then a permutation rearranges each image: it balances displacement (weight t_eps) and saliency inside the image's part
of the mask, and is found by letting the patches choose in turn. The weight of the label is the mean of the mask.

The released settings (protocol, section 2.3) are lambda ~ Beta(1, 1) and one of the grids 2, 4, 8, 16 for a batch, a
permutation for partners, L = 3, beta 1.2 (divided by 16 times the grid), gamma 0.5, eta 0.2 (divided by the number of
cells), edges compared on pictures averaged over 4 x 4 pixels, t_eps 0.8, and patches of 4 x 4 pixels or a cell, if
that is smaller. The released code for ImageNet averages over 2 x 2 pixels and moves whole cells. `options_for` chooses
by the side of the images.

The following is our interpretation. The paper gives the smoothness of the mixed picture for binary masks; for other
levels we continue it by its expansion in $z_i$, $z_j$ and $(z_i - z_j)^2$. A patch that loses its choice never asks for
that place again, and the choice goes on until every place has one patch. (The released code stops after one round.
Places that no patch wants stay black there; they have weight zero.) Costs are rounded only in the cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.augment.cutmix import mix_labels, soft_labels
from experiments.augment.graph_cut import swap_cut
from nfm_theory.setting.mixing import MixingLaw

#: Largest number of transport costs in memory at the same time.
_ENTRIES = 2**25


@dataclass(frozen=True)
class PuzzleOptions:
    """Settings. The defaults are the released ones.

    Attributes:
        alpha: parameter of the law Beta(alpha, alpha) of lambda.
        grids: numbers of cells along a side; one is drawn for a batch. Each must divide the side of the images.
            `options_for` finds grids that fit.
        n_labels: L, the number of levels of the mask.
        beta: weight of the smoothness.
        gamma: share of the smoothness that belongs to the mixed picture, 0 to 1.
        eta: weight of the prior.
        neighborhood: side of the boxes over which pictures are averaged before edges are compared. A cell whose side is
            no multiple of it is averaged over the largest boxes below this side that fill the cell.
        transport: True to move patches.
        t_eps: weight of the displacement.
        t_size: side of a moved patch in pixels; 0 for a whole cell. A cell whose side is no multiple of it is moved as
            a whole. The cost grows with the square of the number of patches.
    """

    alpha: float = 1.0
    grids: tuple[int, ...] = (2, 4, 8, 16)
    n_labels: int = 3
    beta: float = 1.2
    gamma: float = 0.5
    eta: float = 0.2
    neighborhood: int = 4
    transport: bool = True
    t_eps: float = 0.8
    t_size: int = 4

    def __post_init__(self):
        """Refuse settings for which there is no minimum cut."""
        if not (self.n_labels >= 2 and self.beta >= 0 and 0 <= self.gamma <= 1 and self.alpha > 0):
            raise ValueError(f"expected n_labels >= 2, beta >= 0, gamma in [0, 1] and alpha > 0, got {self}.")


def options_for(side: int) -> PuzzleOptions:
    """The released settings for square images: those of the CIFAR code, and above 64 pixels those of the ImageNet code.

    A released grid that does not divide the side is replaced by the nearest number that does. A cell has at least two
    pixels, so small images have fewer grids.

    Args:
        side: side of the images in pixels, an even number or a multiple of another small number.

    Raises:
        ValueError: if no grid fits, since the side is a prime number or below 4.

    Example:
        >>> options_for(28).grids, options_for(32).grids, options_for(224).t_size
        ((2, 4, 7), (2, 4, 8, 16), 0)
    """
    fitting = [g for g in range(2, side // 2 + 1) if side % g == 0]
    if not fitting:
        raise ValueError(f"side: expected at least 4 pixels and no prime number, got {side}; crop or pad the images.")
    wanted = [g for g in PuzzleOptions.grids if 2 * g <= side]
    nearest = (min(fitting, key=lambda g, w=w: (abs(np.log(g / w)), g)) for w in wanted)
    grids = tuple(dict.fromkeys(nearest))
    return PuzzleOptions(grids=grids) if side <= 64 else PuzzleOptions(grids=grids, neighborhood=2, t_size=0)


@dataclass(frozen=True)
class PuzzleDraw:
    """The random numbers of one batch: weight of the first image, partners `(n,)`, number of cells along a side."""

    lam: float
    index: Tensor
    grid: int


def sample_draw(n: int, *, generator: torch.Generator, options: PuzzleOptions | None = None) -> PuzzleDraw:
    """Draw lambda, pairing and grid for a batch of n images."""
    options = options or PuzzleOptions()
    device = generator.device
    grid = options.grids[int(torch.randint(len(options.grids), (), generator=generator, device=device))]
    index = torch.randperm(n, generator=generator, device=device)
    lam = MixingLaw(options.alpha).sample((), unmixed=False, generator=generator, dtype=torch.float64)
    return PuzzleDraw(float(lam), index, grid)


def saliency(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """How strongly the loss reacts to each pixel: root mean square over channels of the input's gradient, `(n, H, W)`.

    The model runs in evaluation mode, and its mode is restored. Gradients of the parameters are not changed.

    Args:
        model: maps images to logits `(n, K)`.
        x: images, `(n, C, H, W)`.
        y: class indices `(n,)` or weights `(n, K)`.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad():
            inputs = x.detach().clone().requires_grad_()
            loss = F.cross_entropy(model(inputs), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, inputs)
    finally:
        for module, mode in modes:
            module.training = mode
    return gradient.square().mean(1).sqrt()


def cell_shares(saliency_map: Tensor, cell: int) -> Tensor:
    """Saliency of cells of `cell` x `cell` pixels, with sum 1 for each image; equal shares if the saliency is zero."""
    pooled = F.avg_pool2d(saliency_map[:, None], cell)[:, 0]
    total = pooled.sum((1, 2), keepdim=True)
    return torch.where(total > 0, pooled / total.clamp_min(torch.finfo(pooled.dtype).tiny), 1 / pooled[0].numel())


def edge_distance(upper: Tensor, lower: Tensor, grid: int) -> Tensor:
    """Mean absolute difference between each cell of a picture and the cell below it in another, `(n, grid - 1, grid)`.

    Args:
        upper: picture with the upper cells, averaged over neighborhoods, `(n, C, s, s)`.
        lower: picture with the lower cells.
        grid: number of cells along a side; divides s.
    """
    k = upper.shape[-1] // grid
    last, first = upper[:, :, k - 1 : -1 : k], lower[:, :, k::k]
    difference = (last - first).abs().mean(1)
    return difference.unflatten(2, (grid, k)).mean(3)


def mask_costs(
    shares: Tensor, partner_shares: Tensor, pictures: Tensor, partners: Tensor, lam: float, options: PuzzleOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """The objective of the mask, as costs of labels and weights of neighbors for `graph_cut`.

    Label l stands for the share z = 1 - l / (L - 1) of the first image. Up to a constant, the costs are those of the
    paper.

    Args:
        shares: saliency of the cells of the first images, `(n, g, g)`, with sum 1.
        partner_shares: the same for their partners.
        pictures: first images, pixels in [0, 1], `(n, C, H, H)`.
        partners: their partners.
        lam: mean of the prior.
        options: settings.

    Returns:
        Costs `(n, L, g, g)`, weights downwards `(n, g - 1, g)`, weights to the right `(n, g, g - 1)`.
    """
    grid, steps = shares.shape[-1], options.n_labels - 1
    beta = options.beta / (16 * grid)
    cell = pictures.shape[-1] // grid
    size = max(s for s in range(1, min(options.neighborhood, cell) + 1) if cell % s == 0)
    coarse = {1: F.avg_pool2d(pictures, size), 0: F.avg_pool2d(partners, size)}
    # Cost of a cell that shows the first image (key 1, the partner's saliency is lost) or its partner (key 0).
    cost = {1: partner_shares.clone(), 0: shares.clone()}
    weights = []
    for turn in (lambda t: t, lambda t: t.transpose(-1, -2)):
        d = {
            (i, j): beta * options.gamma * edge_distance(turn(coarse[i]), turn(coarse[j]), grid)
            for i in (0, 1)
            for j in (0, 1)
        }
        for z in (0, 1):
            turn(cost[z])[:, :-1] += (d[z, 0] + d[z, 1]) / 2
            turn(cost[z])[:, 1:] += (d[0, z] + d[1, z]) / 2
        # Pixels outside [0, 1] could make this negative, and then there is no minimum cut.
        weights.append(turn(beta + (d[1, 0] + d[0, 1] - d[1, 1] - d[0, 0]) / 2).clamp_min(0))
    levels = []
    for label in range(options.n_labels):
        z = 1 - label / steps
        chance = comb(steps, label) * lam ** (steps - label) * (1 - lam) ** label
        prior = -options.eta * np.log(chance + 1e-8) / grid**2
        levels.append(z * cost[1] + (1 - z) * cost[0] + prior)
    return torch.stack(levels, 1), *weights


def optimal_mask(costs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The mask that no swap improves: share of the first image in each cell, `(n, g, g)`."""
    unary = costs[0]
    labels = swap_cut(*(part.detach().cpu().double().numpy() for part in costs))
    share = 1 - torch.from_numpy(labels) / (unary.shape[1] - 1)
    return share.to(device=unary.device, dtype=unary.dtype)


def transport_costs(shares: Tensor, wanted: Tensor, t_eps: float) -> Tensor:
    """Cost of each patch at each place: weighted squared displacement, minus its saliency if the mask shows the place.

    The unit of displacement is the side of the image.

    Args:
        shares: saliency of the patches, `(n, m, m)`, m >= 2.
        wanted: True where the mask shows the place, `(n, m, m)`.
        t_eps: weight of the displacement.

    Returns:
        Costs `(n, m * m, m * m)` with axes patch, place.
    """
    m = shares.shape[-1]
    axis = torch.arange(m, device=shares.device, dtype=shares.dtype)
    squared = (axis[:, None] - axis) ** 2
    distance = (squared[:, None, :, None] + squared[None, :, None, :]).reshape(m * m, m * m) / (m - 1) ** 2
    return t_eps * distance - shares.flatten(1)[:, :, None] * wanted.flatten(1)[:, None, :].to(shares.dtype)


def assign(costs: Tensor) -> Tensor:
    """Assign patches to places: from finite costs `(n, k, k)` of patch and place to the place of each patch, `(n, k)`.

    Each patch asks for its cheapest place, a place keeps the cheapest patch, and the others ask again. The result is
    stable: no patch and place would both prefer each other. For equal costs the first patch wins.
    """
    open_costs = costs.clone()
    target = open_costs.argmin(-1)
    number = torch.arange(costs.shape[-1], device=costs.device).expand_as(target)
    while True:
        offer = costs.gather(-1, target[..., None])[..., 0]
        best = torch.full_like(offer, torch.inf).scatter_reduce(1, target, offer, "amin")
        tied = torch.where(offer == best.gather(1, target), number, costs.shape[-1])
        winner = torch.full_like(target, costs.shape[-1]).scatter_reduce(1, target, tied, "amin")
        lost = winner.gather(1, target) != number
        if not bool(lost.any()):
            return target
        example, patch = lost.nonzero(as_tuple=True)
        open_costs[example, patch, target[example, patch]] = torch.inf
        target[example, patch] = open_costs[example, patch].argmin(-1)


def move_patches(x: Tensor, target: Tensor, size: int) -> Tensor:
    """Put each patch of `size` x `size` pixels of images `(n, C, H, W)` at its place, `target` `(n, k)`, row by row."""
    patches = F.unfold(x, size, stride=size)
    source = target.argsort(1)
    moved = patches.gather(2, source[:, None].expand_as(patches))
    return F.fold(moved, x.shape[2:], size, stride=size)


def transported(x: Tensor, saliency_map: Tensor, mask: Tensor, options: PuzzleOptions) -> Tensor:
    """Images whose salient patches are moved to where their mask `(n, g, g)` shows them."""
    cell = x.shape[-1] // mask.shape[-1]
    size = options.t_size if options.t_size and cell % options.t_size == 0 else cell
    m = x.shape[-1] // size
    wanted = F.interpolate(mask[:, None], size=(m, m))[:, 0] > 0
    shares = cell_shares(saliency_map, size)
    chunk = max(1, _ENTRIES // m**4)
    pairs = zip(shares.split(chunk), wanted.split(chunk), strict=True)
    target = torch.cat([assign(transport_costs(s, w, options.t_eps)) for s, w in pairs])
    return move_patches(x, target, size)


def apply_puzzlemix(
    x: Tensor,
    targets: Tensor,
    saliency: Tensor,
    draw: PuzzleDraw,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    options: PuzzleOptions | None = None,
) -> tuple[Tensor, Tensor]:
    """Mix a batch as drawn. Returns mixed images and mixed label weights.

    Args:
        x: normalized images, `(n, C, H, H)`, which stay unchanged.
        targets: rows of label weights, `(n, K)`.
        saliency: saliency of each pixel, `(n, H, H)`, not negative.
        draw: lambda, partners and grid.
        mean: mean of each channel in the normalisation. Edges are compared for pixels in [0, 1].
        std: standard deviation of each channel.
        options: settings; `None` means `options_for` the side of the images.

    Raises:
        ValueError: if the images are not square, or the grid does not divide their side.
    """
    side = x.shape[-1]
    if x.shape[-2] != side or draw.grid < 2 or side % draw.grid:
        raise ValueError(
            f"expected square images whose side is a multiple of the grid ({draw.grid}, at least 2), got images of "
            f"{x.shape[-2]} x {side}; `options_for(side)` has grids that fit."
        )
    options, cell = options or options_for(side), side // draw.grid
    index = draw.index.to(x.device)
    scale, shift = (torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (std, mean))
    pictures, shares = x * scale + shift, cell_shares(saliency, cell)
    mask = optimal_mask(mask_costs(shares, shares[index], pictures, pictures[index], draw.lam, options))
    first, second = x, x[index]
    if options.transport:
        first = transported(first, saliency, mask, options)
        second = transported(second, saliency[index], 1 - mask, options)
    share = F.interpolate(mask[:, None], size=(side, side))
    weight = mask.mean((1, 2))[:, None].to(targets.dtype)
    return share * first + (1 - share) * second, mix_labels(targets, index, weight)


def puzzlemix(
    x: Tensor, y: Tensor, saliency: Tensor, *, generator: torch.Generator, num_classes: int,
    options: PuzzleOptions | None = None, **normalisation: tuple[float, ...],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """PuzzleMix of a batch. Returns mixed images and soft labels `(n, num_classes)`.

    Args:
        x: normalized images, `(n, C, H, H)`.
        y: class indices `(n,)` or weights `(n, num_classes)`.
        saliency: result of the function `saliency`, `(n, H, H)`.
        generator: source of randomness.
        num_classes: K, the number of classes.
        options: settings; `None` means `options_for` the side of the images.
        **normalisation: `mean` and `std` of `apply_puzzlemix`.
    """
    options = options or options_for(x.shape[-1])
    draw = sample_draw(len(x), generator=generator, options=options)
    return apply_puzzlemix(x, soft_labels(y, num_classes), saliency, draw, options=options, **normalisation)
