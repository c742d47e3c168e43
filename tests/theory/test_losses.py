import pytest
import torch
import torch.nn.functional as F
from problems import randn
from torch.testing import assert_close

from nfm_theory.setting.pointwise import CROSS_ENTROPY, LOGISTIC, SQUARE, pointwise_loss

U = randn(0, 4, 3)
INDEX = torch.tensor([0, 2, 1, 2])


def test_cross_entropy_is_torchs_and_its_derivatives_are_p_minus_y_and_fisher():
    y = CROSS_ENTROPY.prepare(U, INDEX)
    assert_close(CROSS_ENTROPY(U, y), F.cross_entropy(U, INDEX, reduction="none"))
    p = U.softmax(-1)
    assert_close(CROSS_ENTROPY.gradient(U, y), p - y)
    assert_close(CROSS_ENTROPY.hessian(U, y), torch.diag_embed(p) - p[:, :, None] * p[:, None, :])


def test_logistic_is_torchs_and_its_derivatives_are_closed_forms():
    u, y = U[:, :1], LOGISTIC.prepare(U[:, :1], torch.tensor([0, 1, 1, 0]))
    assert_close(LOGISTIC(u, y), F.binary_cross_entropy_with_logits(u, y, reduction="none")[:, 0])
    p = u.sigmoid()
    assert_close(LOGISTIC.gradient(u, y), p - y)
    assert_close(LOGISTIC.hessian(u, y), (p * (1 - p))[..., None])


def test_square_is_the_squared_distance_up_to_the_label_alone():
    y = SQUARE.prepare(U, randn(1, 4, 3))
    assert_close(SQUARE(U, y) + (y**2).sum(-1) / 2, ((U - y) ** 2).sum(-1) / 2)
    assert_close(SQUARE.gradient(U, y), U - y)
    assert_close(SQUARE.hessian(U, y), torch.eye(3, dtype=torch.float64).expand(4, 3, 3))


def test_labels_as_indices_and_as_distributions_agree():
    onehot = F.one_hot(INDEX, 3).double()
    assert_close(CROSS_ENTROPY.prepare(U, INDEX), onehot)
    assert_close(CROSS_ENTROPY.prepare(U, onehot), onehot)
    assert_close(SQUARE.prepare(U, INDEX), onehot)


def test_any_callable_is_a_loss():
    def huber(outputs, labels):
        return F.huber_loss(outputs, labels, reduction="none").sum(-1)

    loss = pointwise_loss(huber)
    assert loss.name == "huber"
    assert_close(loss(U, 0 * U), huber(U, 0 * U))
    assert pointwise_loss(loss) is loss


CASES = [
    ("cross_entropy", U[:, :1], INDEX, "use loss='logistic'"),
    ("cross_entropy", U, torch.tensor([0, 1, 2, 3]), r"class indices in 0\.\.2"),
    ("cross_entropy", U, torch.full((4, 3), 0.5), "rows that sum to 1"),
    ("cross_entropy", U, torch.ones(4, 2), r"expected shape \(4, 3\)"),
    ("logistic", U, torch.zeros(4), "use 'cross_entropy'"),
    ("logistic", U[:, :1], torch.tensor([-1.0, 1.0, 1.0, -1.0]), "0, 1 or probabilities"),
    ("square", U, torch.full((4, 3), float("nan")), "finite numbers"),
]


@pytest.mark.parametrize(("name", "outputs", "labels", "match"), CASES)
def test_unfit_labels_are_refused_with_the_way_out(name, outputs, labels, match):
    with pytest.raises(ValueError, match=match):
        pointwise_loss(name).prepare(outputs, labels)


def test_unknown_losses_are_refused():
    with pytest.raises(ValueError, match="expected one of"):
        pointwise_loss("hinge")
    with pytest.raises(TypeError, match="expected a name or a callable"):
        pointwise_loss(3)
