"""Data from a loader: the terms of all samples, from one batch in memory at a time."""

import datetime

import pytest
import torch
import torch.distributed as dist
from problems import finish, mlp, randn, small_cnn
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nfm_theory as nt
from nfm_theory.estimators.streaming import StreamingRegularizers
from nfm_theory.setting.population import FeatureMoments

LAW = nt.Law(alpha=1.0, add_noise=0.4, mult_noise=0.2)
N, D = 150, 6
X, Y = randn(0, N, D) @ randn(1, D, D), torch.arange(N) % 3
MODEL = mlp(2, (D, 8, 7, 3))
IMAGES, NET = randn(3, 40, 1, 6, 6), small_cnn(0)


def loader(x=X, y=Y, size=32, **options):
    return DataLoader(TensorDataset(x, y), batch_size=size, **options)


def assert_equal_terms(found, whole, rtol=1e-10):
    assert set(found.estimates) == set(whole.estimates)
    scale = max(abs(float(e)) for e in whole.estimates.values())
    for name, expected in whole.estimates.items():
        assert float(found[name]) == pytest.approx(float(expected), rel=rtol, abs=rtol * scale), name
        assert float(found[name].stderr) == 0
    assert float(found.standard) == pytest.approx(float(whole.standard.detach()), rel=1e-12)


@pytest.mark.parametrize(
    "law", [LAW, nt.Law(alpha=0.5), nt.Law(alpha=0, add_noise=0.3), nt.Law.released(add_noise=0.4, mult_noise=0.2)]
)
@pytest.mark.parametrize("layer", ["", "1"])
def test_equal_to_the_terms_in_memory(law, layer):
    whole = nt.regularizers(nt.Problem(MODEL, X, Y, layer=layer, law=law), method="exact")
    for size in (1, 1000) if (law, layer) == (LAW, "1") else (32, 1000):
        found = nt.regularizers(nt.Problem.from_loader(MODEL, loader(size=size), layer=layer, law=law))
        assert_equal_terms(found, whole)


def test_images_of_a_rank_below_their_size():
    y = torch.arange(len(IMAGES)) % 3
    for layer in ("", "3"):
        whole = nt.regularizers(nt.Problem(NET, IMAGES[:9], y[:9], layer=layer, law=LAW), method="exact")
        stream = nt.Problem.from_loader(NET, loader(IMAGES[:9], y[:9], 4), layer=layer, law=LAW)
        assert_equal_terms(nt.regularizers(stream), whole)


def test_five_thousand_samples():
    x, y = randn(0, 5000, D), torch.arange(5000) % 3
    whole = nt.regularizers(nt.Problem(MODEL, x, y, layer="1", law=LAW), method="exact")
    assert_equal_terms(nt.regularizers(nt.Problem.from_loader(MODEL, loader(x, y, 512), layer="1", law=LAW)), whole)


def test_terms_takes_a_loader_without_the_remainder():
    stream = nt.Problem.from_loader(MODEL, loader(), law=LAW)
    known = nt.terms(nt.Problem(MODEL, X, Y, law=LAW), remainder=False)
    assert nt.terms(stream, remainder=False).to_dict() == pytest.approx(known.to_dict(), rel=1e-9)
    with pytest.raises(ValueError, match="remainder=False"):
        nt.terms(stream)
    with pytest.raises(TypeError, match="from_loader"):
        nt.verify(stream)


def test_pairs_within_batches_are_unbiased_and_their_error_is_right():
    """Over many orders of the data: the mean is the exact value, and the standard error is that of the spread."""
    x, y = X[:36], Y[:36]
    whole = nt.regularizers(nt.Problem(MODEL, x, y, law=LAW), method="exact")
    runs = []
    for seed in range(40):
        metric = StreamingRegularizers(MODEL, law=LAW)
        order = torch.randperm(36, generator=torch.Generator().manual_seed(seed))
        for part in order.split(6):
            metric.update(x[part], y[part])
        runs.append(metric.compute())
    for name in ("R2", "R3"):
        values = torch.tensor([float(run[name]) for run in runs])
        stated = torch.tensor([float(run[name].stderr) for run in runs]).square().mean().sqrt()
        assert abs(float(values.mean()) - float(whole[name])) < 4 * float(values.std()) / len(runs) ** 0.5
        assert 0.3 < float(values.std() / stated) < 1.15  # smaller, since the batches share no samples
        assert "pairs within 6 batches" in runs[0][name].method
    for name in ("R1", "R2_add", "R3_add", "R2_mult", "R3_mult"):
        assert float(runs[0][name]) == pytest.approx(float(whole[name]), rel=1e-10)
        assert float(runs[0][name].stderr) == 0


def test_features_too_many_for_a_covariance():
    stream = nt.Problem.from_loader(MODEL, loader(), law=LAW, max_features=D - 1)
    found = nt.regularizers(stream)
    whole = nt.regularizers(nt.Problem(MODEL, X, Y, law=LAW), method="exact")
    assert abs(float(found["R2"]) - float(whole["R2"])) < 5 * float(found["R2"].stderr)
    assert float(found["R1"]) == pytest.approx(float(whole["R1"]), rel=1e-10)


class Interrupted(TensorDataset):
    """Data whose reading stops once, at some sample of some pass."""

    stop_at, reads = None, 0

    def __getitem__(self, index):
        self.reads += 1
        if self.reads == self.stop_at:
            raise KeyboardInterrupt
        return super().__getitem__(index)


@pytest.mark.parametrize("stop_at", [70, N + 70])
@pytest.mark.parametrize("again", ["the same object", "another process"])
def test_an_interrupted_computation_continues(stop_at, again, tmp_path):
    data = Interrupted(X, Y)
    data.stop_at = stop_at
    stream = nt.Problem.from_loader(MODEL, DataLoader(data, batch_size=32), law=LAW)
    with pytest.raises(KeyboardInterrupt):
        nt.regularizers(stream)
    if again == "another process":
        torch.save(stream.state_dict(), tmp_path / "state.pt")
        stream = nt.Problem.from_loader(MODEL, loader(), law=LAW)
        stream.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert_equal_terms(nt.regularizers(stream), nt.regularizers(nt.Problem(MODEL, X, Y, law=LAW), method="exact"))


def test_a_metric_continues_from_its_state():
    whole, first, second = (StreamingRegularizers(MODEL, law=LAW) for _ in range(3))
    parts = list(zip(X.split(50), Y.split(50), strict=True))
    for part in parts:
        whole.update(*part)
    first.update(*parts[0])
    second.load_state_dict(first.state_dict())
    for part in parts[1:]:
        second.update(*part)
    assert second.compute().to_dict() == whole.compute().to_dict()
    second.reset()
    with pytest.raises(ValueError, match="at least one batch"):
        second.compute()


def test_moments_do_not_cancel():
    far = X + 1e6
    moments = FeatureMoments(D)
    for part in far.split(7):
        moments.add(part)
    found = moments.population(far).directions
    torch.testing.assert_close(found.T @ found, torch.cov(X.T, correction=0), rtol=1e-7, atol=1e-8)


def values_of(rank, folder):
    """What one process of two finds, of its part of the data and from the sums of both."""
    limit = datetime.timedelta(minutes=2)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=limit)
    part = slice(None, 70) if rank == 0 else slice(70, None)
    found = nt.regularizers(nt.Problem.from_loader(MODEL, loader(X[part], Y[part]), law=LAW))
    metric = StreamingRegularizers(MODEL, law=LAW)
    for x, y in zip(X[part].split(10), Y[part].split(10), strict=True):
        metric.update(x, y)
    values = [{name: float(e) for name, e in r.estimates.items()} for r in (found, metric.compute())]
    dist.destroy_process_group()
    return values


def other_process(_, folder):
    torch.set_num_threads(1)
    torch.save(values_of(1, folder), folder / "values.pt")


def test_two_processes_give_the_result_of_one(tmp_path):
    other = torch.multiprocessing.spawn(other_process, (tmp_path,), nprocs=1, join=False, daemon=True)
    values = [values_of(0, tmp_path)]  # this process is the first one
    while not other.join():
        pass
    values.append(torch.load(tmp_path / "values.pt"))
    whole = nt.regularizers(nt.Problem(MODEL, X, Y, law=LAW), method="exact")
    metric = StreamingRegularizers(MODEL, law=LAW)
    for x, y in zip(X.split(10), Y.split(10), strict=True):
        metric.update(x, y)
    for streamed, updated in values:
        assert streamed == pytest.approx({name: float(e) for name, e in whole.estimates.items()}, rel=1e-9)
        assert updated == pytest.approx({name: float(e) for name, e in metric.compute().estimates.items()}, rel=1e-9)


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"read twice, such as a DataLoader, got .*Iter"):
        nt.Problem.from_loader(MODEL, iter(loader()), law=LAW)
    with pytest.raises(TypeError, match=r"expected an nfm_theory\.Law"):
        nt.Problem.from_loader(MODEL, loader(), law=None)
    with pytest.raises(ValueError, match="at least one batch"):
        nt.regularizers(nt.Problem.from_loader(MODEL, [], law=LAW))
    with pytest.raises(TypeError, match=r"batches \(inputs, labels\)"):
        nt.regularizers(nt.Problem.from_loader(MODEL, [X], law=LAW))
    with pytest.raises(ValueError, match="same number of samples"):
        nt.regularizers(nt.Problem.from_loader(MODEL, [(X, Y), (X, Y[:3])], law=LAW))
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        nt.regularizers(nt.Problem.from_loader(finish(lambda: nn.BatchNorm1d(D), 0).train(), loader(), law=LAW))
    later = {
        "at least one sample": (X[:0], Y[:0]), "expected finite values": (X * float("nan"), Y),
        "model's dtype": (X.float(), Y),
        r"does not take x of shape \(150, 2\)": (X[:, :2], Y), "finite covariance": (1e200 * X, Y),
    }  # fmt: skip
    for words, batch in later.items():
        with pytest.raises((ValueError, TypeError), match=words):
            nt.regularizers(nt.Problem.from_loader(MODEL, [(X, Y), batch], law=LAW))
    metric = StreamingRegularizers(MODEL, law=LAW)
    metric.update(X[:1], Y[:1])
    with pytest.raises(ValueError, match="at least two samples"):
        metric.compute()
