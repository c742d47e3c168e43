"""Which methods run on which case: `METHODS`."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from .cases import DENSE, SETTINGS, Case
from .method import Method
from .ours import CUBES, ours
from .peer_packages import CollapsedTaylorMode, linear_operator
from .peers import (
    double_backward,
    finite_differences,
    full_hessian,
    jacobian_projections,
    jvp_of_grad,
    jvp_of_jvp,
    jvp_of_jvp_of_jvp,
    monte_carlo,
    output_hessians,
    train_double_backward,
    train_jvp_of_grad,
)

#: Rows (directions times samples) that one vectorised call may hold, and where it is cut into chunks that stay small.
ROWS, SMALL_ROWS = 2**17, 2**12
#: The same of images, whose activations are larger.
IMAGE_ROWS, SMALL_IMAGE_ROWS = 2**12, 2**8
PROBES, TRAINING_PROBES = 4, (1, 8)


def _exact(case: Case, label: str, sets: tuple[Tensor, ...], count: int, *, probes: bool = False) -> list[Method]:
    """R2 + R3, R3 and R2 along given directions by every way; `count` is their number, `label` what they are."""
    both, residual, gauss_newton = (f"{terms}, {label}" for terms in ("R2+R3", "R3", "R2"))
    dim, batch = case.problem.features[0].numel(), len(case.x)
    vectors = case.x.ndim == 2
    most, few = (ROWS, SMALL_ROWS) if vectors else (IMAGE_ROWS, SMALL_IMAGE_ROWS)
    small = max(1, few // batch)
    # Images are cut, except that the main peer runs at once too; vectors run at once, and some also in chunks
    chunk = max(1, most // batch) if vectors else small
    way = "vmap" if vectors or count <= chunk else "chunks"

    def differences() -> Callable[[], Tensor]:
        _ = case.double.problem  # converted once, outside what is measured
        return lambda: finite_differences(case, *sets)

    def taylor_mode(size: int | None) -> Callable[[], Tensor]:
        jet = CollapsedTaylorMode(case)
        parts = [part for v in sets for part in v.split(size or len(v))]
        return lambda: jet(*parts).sum()

    found = [
        Method("double backward, loop", both, lambda: double_backward(case, *sets), passes=5 * count),
        Method(f"jvp(grad), {way}", both, lambda: jvp_of_grad(case, *sets, chunk=chunk), passes=6 * count),
        Method(f"jvp(jvp), {way}", both, lambda: jvp_of_jvp(case, *sets, chunk=chunk), passes=7 * count),
        Method("finite differences, float64", both, passes=5 * count, prepare=differences),
        Method("curvlinops, Hessian", both, lambda: linear_operator(case, *sets, chunk=chunk), passes=6 * count),
        Method("Taylor mode, collapsed", both, prepare=lambda: taylor_mode(None), passes=2 * count),
        Method(
            "curvlinops, Gauss-Newton",
            gauss_newton,
            lambda: linear_operator(case, *sets, quantity="R2", chunk=chunk),
            passes=5 * count,
        ),
    ]
    if not vectors:  # a perceptron has nothing that is rewritten
        for name, function in (("jvp(grad)", jvp_of_grad), ("jvp(jvp)", jvp_of_jvp)):
            call = partial(function, case, *sets, chunk=chunk, rewritten=True)
            found.append(Method(f"exact_derivatives, {name}, {way}", both, call, passes=6 * count))
    if probes:
        return found
    for quantity, terms in ((both, "R2+R3"), (residual, "R3")):
        by_direction = partial(jvp_of_grad, case, *sets, quantity=terms)
        if quantity == residual:
            found.append(Method(f"jvp(grad), {way}", residual, partial(by_direction, chunk=chunk), passes=6 * count))
        if vectors:
            found.append(Method("jvp(grad), chunks", quantity, partial(by_direction, chunk=small), passes=4 * count))
        elif way == "chunks" and count * batch <= most:
            found.append(Method("jvp(grad), vmap", quantity, partial(by_direction, chunk=None), passes=6 * count))
        if dim <= DENSE:
            whole = partial(full_hessian, case, *sets, quantity=terms)
            if vectors:
                found.append(Method("vmap(hessian)", quantity, partial(whole, chunk=batch), passes=5 * dim))
            found.append(Method("vmap(hessian), chunks", quantity, partial(whole, chunk=batch // 4), passes=5 * dim))
            if case.setting.classes > 1:
                each = partial(output_hessians, case, *sets, quantity=terms, chunk=max(1, batch // 8))
                name, passes = "vmap(hessian), every output", 3 * dim * case.setting.classes
                found.append(Method(name, quantity, each, passes=passes))
    if vectors:
        found.append(Method("Taylor mode, chunks", both, prepare=lambda: taylor_mode(small), passes=2 * count))
    return found


def _training(case: Case) -> list[Method]:
    _ = case.trained.problem  # built once, outside what is measured
    found = []
    for count in TRAINING_PROBES:
        quantity, probes = f"training, {count} probe{'s' * (count > 1)}", case.probes(count)
        for name, function in (("double backward", train_double_backward), ("jvp(grad), vmap", train_jvp_of_grad)):
            call = lambda f=function, v=probes: f(case, v)[0]  # noqa: E731
            found.append(Method(name, quantity, call, kind="gradient", passes=5 * count))
    return found


def peers(case: Case) -> list[Method]:
    """The other ways, on this case."""
    dim = case.problem.features[0].numel()
    rank = min(dim, len(case.x) - 1)
    probes = case.probes(PROBES)
    found = _exact(case, f"{PROBES} probes", (probes,), PROBES, probes=True)
    data = case.data_directions
    found += _exact(case, "data, exact", data, rank + 1)
    chunk = max(1, (ROWS if case.x.ndim == 2 else IMAGE_ROWS) // len(case.x))
    cubes = partial(jvp_of_jvp_of_jvp, case, data[0], chunk=chunk)
    found.append(Method("jvp(jvp(jvp)), vmap", CUBES, cubes, passes=20 * rank))
    if dim <= DENSE:
        merged = case.merged_directions
        found += _exact(case, "data + additive, exact", merged, dim + 1)
    found.append(
        Method("Jacobian projection", "R2_add, 1 projection", lambda: jacobian_projections(case).mean(), passes=4)
    )
    found.append(
        Method("plain Monte Carlo", "all six, 4 draws", lambda: monte_carlo(case, replicates=4).mean(), passes=14)
    )
    if not case.setting.layer:
        found += _training(case)
    return found


def case_methods(case: Case) -> list[Method]:
    """Ours first, then the peers."""
    return [*ours(case), *peers(case)]


#: Case -> function from the built case to its methods.
METHODS: dict[str, Callable[[Case], list[Method]]] = dict.fromkeys(SETTINGS, case_methods)
