r"""The terms of the expansion written by hand, a proof that they are the derived ones, and the terms in LaTeX."""

from collections import defaultdict

import sympy as sp
from sympy.polys.rings import ring

from .derivation import NAMES, check_sizes, derive_expansion, parse, substitute_moments, symbol


def table_terms(dim=1, outputs=1):
    r"""Return the thirteen terms up to order 3, written by hand with Jacobians, Hessians and sums over coordinates.

    $$ R_2 = \tfrac12 m_2 (Jv)^\top F (Jv), \quad R_3 = \tfrac12 m_2 (p - y) \cdot \nabla^2 f[v, v], \quad
       C_3 = \tfrac16 m_3 D^3\ell[v,v,v]
       + \tfrac12 m_1 \big(\sigma_{\mathrm{add}}^2 \mathbb{E} D^3\ell[v,\xi,\xi]
       + \sigma_{\mathrm{mult}}^2 \mathbb{E} D^3\ell[v, \xi \odot g, \xi \odot g]\big)
       + m_1 \sigma_{\mathrm{mult}}^2 \mathbb{E} D^2\ell[\xi \odot v, \xi \odot g] $$

    Here `J` is the Jacobian of f, `p` and `F` are gradient and Hessian of h. The terms of a noise have
    `sigma^2 E xi xi'` in place of `m_2 v v'`, with uncorrelated coordinates. The code shares only the names of symbols
    with `derive_expansion`.

    Source: the multi-class form of NFM Theorem 1, as the book's page on notation states it; C3 is derived here.

    Args:
        dim: number of features, >= 1.
        outputs: number of logits, >= 1.

    Returns:
        dict from names to SymPy expressions, which are not expanded, and not averaged over i and r.

    Raises:
        ValueError: if an argument is not an integer >= 1.
    """
    check_sizes(3, dim, outputs)
    d, kk = range(dim), range(outputs)
    fval = [symbol("f", k + 1) for k in kk]
    jac = sp.Matrix(outputs, dim, lambda k, j: symbol("f", k + 1, j + 1))
    hess = [sp.Matrix(dim, dim, lambda i, j, k=k: symbol("f", k + 1, i + 1, j + 1)) for k in kk]
    residual = sp.Matrix([symbol("h", k + 1) - symbol("y", k + 1) for k in kk])
    fisher = sp.Matrix(outputs, outputs, lambda k, m: symbol("h", k + 1, m + 1))
    g, v = (sp.Matrix([symbol(kind, j + 1) for j in d]) for kind in "gv")

    def gauss_newton(a, b):
        return (jac * a).dot(fisher * (jac * b))

    def second(a, b):
        return sp.Matrix([(a.T * q * b)[0] for q in hess])

    def third(a, b, c):
        ja, jb, jc = jac * a, jac * b, jac * c
        out = sum(symbol("h", k + 1, m + 1, q + 1) * ja[k] * jb[m] * jc[q] for k in kk for m in kk for q in kk)
        out += (fisher * second(a, b)).dot(jc) + (fisher * second(b, c)).dot(ja) + (fisher * second(c, a)).dot(jb)
        return out + sum(
            residual[k] * symbol("f", k + 1, i + 1, j + 1, m + 1) * a[i] * b[j] * c[m]
            for k in kk
            for i in d
            for j in d
            for m in d
        )

    axes = [sp.Matrix(dim, 1, lambda i, _, j=j: int(i == j)) for j in d]
    scaled = [g[j] * axes[j] for j in d]
    add = symbol("sigma", "add") ** 2 * symbol("add", 2)
    mult = symbol("sigma", "mult") ** 2 * symbol("mult", 2)
    m1, m2, m3 = (symbol("m", j) for j in (1, 2, 3))
    half = sp.Rational(1, 2)
    terms = {
        "standard": symbol("h") - sum(symbol("y", k + 1) * fval[k] for k in kk),
        "R1": m1 * residual.dot(jac * v),
        "R2": half * m2 * gauss_newton(v, v),
        "R3": half * m2 * residual.dot(second(v, v)),
        "R2_add": half * add * sum(gauss_newton(e, e) for e in axes),
        "R3_add": half * add * sum(residual.dot(second(e, e)) for e in axes),
        "R2_mult": half * mult * sum(gauss_newton(e, e) for e in scaled),
        "R3_mult": half * mult * sum(residual.dot(second(e, e)) for e in scaled),
        "C3_data": m3 / 6 * third(v, v, v),
        "C3_add": half * m1 * add * sum(third(v, e, e) for e in axes),
        "C3_mult": half * m1 * mult * sum(third(v, e, e) for e in scaled),
        "C3_cross": m1
        * mult
        * sum(v[j] * (gauss_newton(axes[j], scaled[j]) + residual.dot(second(axes[j], scaled[j]))) for j in d),
    }
    terms["C3"] = sum(terms[name] for name in NAMES if name.startswith("C3_"))
    return terms


def _vanishes(expr):
    """Decide in exact arithmetic if a polynomial with rational coefficients is identically 0."""
    expr = sp.sympify(expr)
    gens = sorted(expr.free_symbols, key=str)
    return expr == 0 if not gens else not ring(gens, sp.QQ)[0].from_expr(expr)


def prove_expansion(*, dim=1, outputs=1, table=None):
    """Prove that every derived term equals the term of the table, as a polynomial (book: eq-expansion).

    Args:
        dim: number of features, >= 1.
        outputs: number of logits, >= 1.
        table: dict from names to expressions; `None` means `table_terms(dim, outputs)`.

    Returns:
        dict from the names of all thirteen terms to True.

    Raises:
        ValueError: if an argument is out of range.
        KeyError: if `table` lacks a term.
        ArithmeticError: if some terms differ; the message names them.

    Example:
        >>> all(prove_expansion(dim=2, outputs=2).values())
        True
    """
    derived = derive_expansion(3, dim, outputs)
    table = table_terms(dim, outputs) if table is None else table
    equal = {name: _vanishes(derived[name] - table[name]) for name in NAMES}
    failed = [name for name, same in equal.items() if not same]
    if failed:
        raise ArithmeticError(
            f"dim={dim}, outputs={outputs}: derived and tabulated terms differ in {', '.join(failed)}."
        )
    return equal


_RANK = {kind: i for i, kind in enumerate(("m", "sigma", "add", "mult", "y", "h", "rho", "f", "g", "v"))}


def _latex_symbol(sym, scalar):
    """Write one symbol; primes are derivatives of functions of one variable, and rho is the residual h' - y."""
    kind, index = parse(sym)
    wide = any(len(str(i)) > 1 for i in index)
    digits = ("," if wide else "").join(map(str, index))
    if kind == "sigma":
        return rf"\sigma_{{\mathrm{{{digits}}}}}"
    if kind in ("add", "mult"):
        at = [""] if scalar else [f",{j + 1}" for j in range(len(index))]
        factors = [rf"\xi_{{\mathrm{{{kind}}}{j}}}^{{{q}}}" for j, q in zip(at, index, strict=True)]
        return rf"\mathbb{{E}}[{' '.join(factors)}]"
    if scalar and kind != "m":
        n = len(index) - (kind == "f")
        if kind == "rho":
            return "(h' - y)"
        return kind if kind not in "hf" else kind + ("'" * n if n <= 3 else f"^{{({n})}}")
    if kind == "rho":
        return rf"(\partial_{{{digits}}} h - y_{{{digits}}})"
    if kind == "h":
        return rf"\partial_{{{digits}}} h" if index else "h"
    first = str(index[0])
    partial = rf"\partial_{{{digits[len(first) :].lstrip(',')}}} " if len(index) > 1 else ""
    return f"{partial}{kind}_{{{first}}}"


def _latex_product(number, factors, scalar):
    """Write a positive rational number times powers of symbols."""
    out = [] if number == 1 else [rf"\tfrac{{{number.p}}}{{{number.q}}}" if number.q > 1 else str(number)]
    for sym, power in sorted(factors, key=lambda item: (_RANK[parse(item[0])[0]], str(item[0]))):
        text = _latex_symbol(sym, scalar)
        if power > 1 and not text.startswith("(") and any(mark in text for mark in ("'", "partial", "^")):
            text = f"({text})"
        out.append(text if power == 1 else f"{text}^{{{power}}}")
    return " ".join(out)


def _latex_group(expr, scalar):
    """Write a polynomial as a number times common factors times the rest, with high derivatives of h first."""
    if expr.is_number:
        return sp.latex(expr)
    gens = sorted(expr.free_symbols, key=str)
    content, rest = sp.Poly(expr, *gens).primitive()
    powers, rest = rest.terms_gcd()
    body = []
    for exponents, number in rest.terms():
        factors = [(x, q) for x, q in zip(gens, exponents, strict=True) if q]
        depth = max((len(parse(x)[1]) for x, _ in factors if parse(x)[0] == "h"), default=0)
        text = _latex_product(abs(number), factors, scalar)
        body.append((bool(number < 0), -depth, len(text), text))
    common = _latex_product(content, [(x, q) for x, q in zip(gens, powers, strict=True) if q], scalar)
    if len(body) == 1:
        return " ".join(filter(None, [common, body[0][-1]]))
    body = " ".join(f"{'-' if item[0] else '+'} {item[-1]}" for item in sorted(body)).removeprefix("+ ")
    return rf"{common} \left( {body} \right)" if common else body


def _latex_polynomial(expr, scalar):
    """Write a sum with one group for each product of moments, levels and data; h' - y stays one factor."""
    firsts = [s for s in expr.free_symbols if parse(s)[0] == "h" and len(parse(s)[1]) == 1]
    expr = sp.expand(expr.xreplace({s: sp.Symbol("rho" + s.name[1:]) + sp.Symbol("y" + s.name[1:]) for s in firsts}))
    outer = {"m", "sigma", "add", "mult", *("gv" if scalar else ())}
    groups = defaultdict(list)
    for term in sp.Add.make_args(expr):
        powers = term.as_powers_dict()
        groups[frozenset((x, powers[x]) for x in term.free_symbols if parse(x)[0] in outer)].append(term)
    texts = [_latex_group(sp.Add(*terms), scalar) for terms in groups.values()]
    return " + ".join(sorted(texts, key=lambda text: (len(text), text)))


def latex_terms(order=3, dim=1, outputs=1, *, alpha=None, beta=None, noise=None, sparsity=0):
    r"""Write every term in LaTeX: with primes for one feature and one logit, otherwise with partial derivatives.

    Args:
        order: highest power of the scale, >= 0.
        dim: number of features, >= 1.
        outputs: number of logits, >= 1.
        alpha: first parameter of the Beta law, rational, whose moments are inserted; `None` keeps `m_1`, ...
        beta: second parameter; `None` takes the value of `alpha`.
        noise: law of both noises whose moments are inserted, `normal`, `uniform`, `rademacher` or `released`; `None`
            keeps their symbols.
        sparsity: probability that a coordinate of the noise is set to 0, rational.

    Returns:
        dict from names to LaTeX without delimiters. The terms are not averaged over i and r; v is g_r - g_i.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> print(latex_terms(2)["R2"])
        \tfrac{1}{2} m_{2} h'' (f')^{2} v^{2}
    """
    scalar = dim == outputs == 1
    options = {"alpha": alpha, "beta": beta, "noise": noise, "sparsity": sp.nsimplify(sparsity)}
    if alpha is not None:
        options.update(alpha=sp.nsimplify(alpha), beta=sp.nsimplify(alpha if beta is None else beta))
    terms = derive_expansion(order, dim, outputs).terms
    return {name: _latex_polynomial(substitute_moments(expr, **options), scalar) for name, expr in terms.items()}


def latex_expansion(order=3, dim=1, outputs=1, *, alpha=None, beta=None, noise=None, sparsity=0):
    r"""Write the whole expansion as an `aligned` environment, with one term on each line (book: eq-expansion).

    Args:
        order: highest power of the scale, >= 0.
        dim: number of features, >= 1.
        outputs: number of logits, >= 1.
        alpha: first parameter of the Beta law whose moments are inserted; `None` keeps their symbols.
        beta: second parameter; `None` takes the value of `alpha`.
        noise: law of the noises whose moments are inserted; `None` keeps their symbols.
        sparsity: probability that a coordinate of the noise is set to 0.

    Returns:
        LaTeX without delimiters; each term stands above its name.

    Raises:
        ValueError: if an argument is outside its range.
    """
    lines = []
    texts = latex_terms(order, dim, outputs, alpha=alpha, beta=beta, noise=noise, sparsity=sparsity)
    for name, text in texts.items():
        if name == "C3":
            continue
        label, _, part = name.partition("_")
        power = {"standard": 0, "R1": 1, "R2": 2, "R3": 2}[label] if label[0] != "C" else int(label[1:])
        scale = ("", r"\varepsilon ")[power] if power < 2 else rf"\varepsilon^{{{power}}} "
        tag = r"\mathrm{standard}" if not power else f"{label[0]}_{{{label[1:]}}}"
        tag += rf"^{{\mathrm{{{part}}}}}" if part else ""
        lines.append(rf"{scale}\underbrace{{\mathbb{{E}}_{{i,r}}\left[ {text} \right]}}_{{{tag}}}")
    lines.append(rf"O(\varepsilon^{{{order + 1}}})")
    body = " \\\\\n".join(("&+ " if i else r"\mathcal{L}(\varepsilon) ={}& ") + line for i, line in enumerate(lines))
    return "\\begin{aligned}\n" + body + "\n\\end{aligned}"
