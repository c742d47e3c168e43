"""Made-up records of the study `validity`, for tests."""


def trained_record(model, training, layer, law, *, radius=0.3, verdict="undecided", upper=None):
    """A record of one network, layer and law."""
    errors = {str(p): [0.001 / p, 0.04 / p, 0.6 / p] for p in (1, 2, 3, 4)}
    curve = {
        "eps": [0.05, 0.3, 1.0], "relative_error": errors, "linearised_error": [1e-4, 1e-2, 0.2],
        "relative_stderr": {**{p: [0.0, 0.001, 0.2] for p in errors}, "linearised": [0.0, 0.001, 0.01]},
        "linearised": [0.1, 0.2, 0.3] if "resnet" in model else None,
        "radius": dict.fromkeys(errors, radius), "radius_range": {p: [radius and radius / 1.1, None] for p in errors},
    }  # fmt: skip
    sides = [
        {"eps": e, "verdict": v, "nfm_loss": 1.0, "right_lower": 0.4, "right_upper": upper}
        for e, v in ((0.1, "refuted"), (1.0, verdict))
    ]
    bound = {"n": 5, "failed": ["homogeneity"], "sides": sides}
    facts = {"data": "digits", "model": model, "training": training, "layer": layer, "law": law}
    return {**facts, "n": 20, "curve": curve, "bound": bound, "witness": {"miss": [0.5, -1.0]}}


TRAINED = [
    trained_record(m, t, layer, law)
    for m in ("mlp", "digits_resnet") for t in ("baseline", "nfm", "noisymix") for layer in ("", "layer1")
    for law in ("released", "mixing")
]  # fmt: skip
