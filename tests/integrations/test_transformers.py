"""The Trainer of Hugging Face with the step and the penalty, against plain loops with the same draws."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from problems import generator
from transformers_loop import train

import nfm_theory as nt
from nfm_theory.integrations.transformers import MixupTrainer, soft_cross_entropy

LAW = nt.Law(add_noise=0.3, mult_noise=0.2)
LAYERS = ["bert.embeddings", "bert.encoder.layer.0"]
PIXELS = {"image_size": 4, "patch_size": 2, "num_channels": 1}


def texts(n=48):
    """Classes 0 and 1 use different words."""
    y = torch.arange(n) % 2
    ids = torch.randint(4, 30, (n, 6), generator=generator(0)) + 30 * y.unsqueeze(1)
    return [{"input_ids": row, "labels": int(label)} for row, label in zip(ids, y, strict=True)]


def images(n=16):
    y = torch.arange(n) % 3
    x = torch.randn(n, 1, 4, 4, generator=generator(0)) + y.reshape(-1, 1, 1, 1)
    return [{"pixel_values": row, "labels": int(label)} for row, label in zip(x, y, strict=True)]


def build(kind, **options):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = getattr(transformers, f"{kind}Config")(**small, **dropout, **options)
    task = "ForSequenceClassification" if kind == "Bert" else "ForImageClassification"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, f"{kind}{task}")(config)


def bert(**options):
    return build("Bert", vocab_size=64, **{"num_labels": 2, **options})


def vit(**options):
    return build("ViT", num_labels=3, **PIXELS, **options)


class Batches(MixupTrainer):
    """Keeps the batches of the training."""

    seen = ()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            self.seen = (*self.seen, copy.deepcopy(dict(inputs)))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def trainer_of(model, data, folder, **options):
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 0.1, **options}
    options = {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "optim": "sgd", **options}
    arguments = transformers.TrainingArguments(
        str(folder), use_cpu=True, report_to="none", save_strategy=options.pop("save_strategy", "no"),
        disable_tqdm=True, **options,
    )  # fmt: skip
    return Batches(model=model, args=arguments, train_dataset=data, eval_dataset=data)


def assert_same(model, other):
    for (name, ours), plain in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("bf16", [False, True])
def test_the_trainer_trains_as_a_plain_loop(tmp_path, bf16, accumulate):
    model, net = bert(), bert()
    trainer = trainer_of(model, texts(), tmp_path, bf16=bf16, gradient_accumulation_steps=accumulate)
    trainer.regularize(nt.NoisyFeatureMixup(model, LAYERS, LAW, num_classes=2, generator=generator(1)))
    trainer.train()

    mixup = nt.NoisyFeatureMixup(net.train(), LAYERS, LAW, num_classes=2, generator=generator(1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    assert len(trainer.seen) == 12
    for k, batch in enumerate(trainer.seen, 1):
        _, targets = mixup(batch["input_ids"], batch["labels"])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = net(input_ids=batch["input_ids"]).logits
        (F.cross_entropy(logits.float(), targets) / accumulate).backward()
        if k % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert_same(model, net)
    assert not torch.equal(model.classifier.weight, bert().classifier.weight)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bf16", [False, True])
def test_the_penalty_is_added_in_full_precision(tmp_path, bf16, accumulate):
    """Without mixing, so that the difference to a plain loop is the penalty alone."""
    model, net = vit(), vit()
    penalty = nt.TaylorRegularizer("vit.embeddings", LAW, generator=generator(2))
    trainer = trainer_of(model, images(), tmp_path, bf16=bf16, gradient_accumulation_steps=accumulate)
    trainer.regularize(penalty=penalty)
    trainer.train()

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x).logits

    twin, whole = nt.TaylorRegularizer("net.vit.embeddings", LAW, generator=generator(2)), Logits().train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for k, batch in enumerate(trainer.seen, 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = net(batch["pixel_values"]).logits
        loss = F.cross_entropy(logits.float(), batch["labels"]) + twin(whole, batch["pixel_values"], batch["labels"])
        (loss / accumulate).backward()
        if k % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert_same(model, net)
    assert float(penalty.last["R2"]) > 0
    assert penalty.last["R2"].dtype == torch.float32


def test_evaluation_is_clean_and_mixing_ends(tmp_path):
    model = bert()
    trainer = trainer_of(model, texts(), tmp_path, num_train_epochs=3)
    mixup = nt.NoisyFeatureMixup(model, LAYERS, LAW, num_classes=2, generator=generator(1))
    trainer.regularize(mixup, stop_epoch=2)
    found = trainer.evaluate()["eval_loss"]
    ids = torch.stack([row["input_ids"] for row in texts()])
    labels = torch.tensor([row["labels"] for row in texts()])
    assert found == pytest.approx(F.cross_entropy(model.eval()(ids).logits, labels).item(), rel=1e-5)
    assert mixup.last is None
    trainer.train()
    assert mixup.last is None  # the last epoch did not mix
    assert mixup.enabled is False


def test_the_model_itself_would_train_another_loss():
    """The reason for `soft_cross_entropy`."""
    model, ids = bert().eval(), torch.stack([row["input_ids"] for row in texts(4)])
    soft = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    outputs = model(input_ids=ids, labels=soft)
    assert outputs.loss.item() == pytest.approx(F.binary_cross_entropy_with_logits(outputs.logits, soft).item())
    plain = -(soft * outputs.logits.log_softmax(1)).sum(1)
    assert soft_cross_entropy(outputs, soft).item() == pytest.approx(plain.mean().item())
    assert soft_cross_entropy(outputs, soft, 8).item() == pytest.approx(plain.sum().item() / 8)
    hard = soft_cross_entropy(outputs, torch.tensor([1, 0, 0, 1]))
    assert hard.item() == pytest.approx(F.cross_entropy(outputs.logits, torch.tensor([1, 0, 0, 1])).item())
    with pytest.raises(ValueError, match=r"expected class indices \(n,\) or distributions \(n, K\)"):
        soft_cross_entropy(outputs, soft[:, :1])


def test_several_labels_and_regression_keep_the_loss_of_the_model(tmp_path):
    several = trainer_of(bert(problem_type="multi_label_classification"), texts(), tmp_path)
    number = trainer_of(bert(num_labels=1), texts(), tmp_path)
    assert several.compute_loss_func is None
    assert number.compute_loss_func is None
    assert trainer_of(bert(), texts(), tmp_path).compute_loss_func is soft_cross_entropy


def test_a_training_that_resumes_has_the_same_draws(tmp_path):
    models = []
    for epochs, resume in ((4, False), (2, False), (4, True)):
        model = bert()
        folder = tmp_path / ("whole" if len(models) == 0 else "parts")
        trainer = trainer_of(model, texts(), folder, num_train_epochs=epochs, save_strategy="epoch", seed=3)
        trainer.regularize(nt.NoisyFeatureMixup(model, LAYERS, LAW, num_classes=2))
        torch.manual_seed(5)
        trainer.train(resume_from_checkpoint=resume)
        models.append(model)
    assert_same(models[0], models[2])
    assert not torch.equal(models[0].classifier.weight, models[1].classifier.weight)


def test_what_does_not_fit_is_refused(tmp_path):
    model = bert()
    trainer = trainer_of(model, texts(), tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="Give label_smoothing= to the NoisyFeatureMixup"):
        trainer.regularize(nt.NoisyFeatureMixup(model, LAYERS, LAW, num_classes=2))
    rows = [{**row, "attention_mask": torch.ones(6)} for row in texts()]
    trainer = trainer_of(bert(), rows, tmp_path)
    trainer.regularize(penalty=nt.TaylorRegularizer("bert.embeddings", LAW))
    with pytest.raises(ValueError, match=r"expected a batch of 'input_ids' and 'labels', got \['attention_mask'\]"):
        trainer.train()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_loop_with_accelerate(precision):
    """Accelerate puts autocast inside the forward pass; the step mixes there, and the penalty is as without it."""
    x = torch.stack([row["pixel_values"] for row in images()])
    y = torch.tensor([row["labels"] for row in images()])

    def trained(prepare, backward, autocast):
        model = vit()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = torch.nn.Sequential(
                torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
            )
        mixup = nt.NoisyFeatureMixup(model, ["", "vit.embeddings"], LAW, num_classes=3, generator=generator(1))
        penalty, values = nt.TaylorRegularizer("2", LAW, generator=generator(2)), []
        optimizer = torch.optim.SGD([*model.parameters(), *net.parameters()], 0.1)
        wrapped, net, optimizer = prepare(model, net, optimizer)
        wrapped.train()
        for _ in range(6):
            inputs, targets = mixup(x, y)
            with autocast():
                logits = wrapped(inputs).logits
            values.append(penalty(net, x, y))
            backward(F.cross_entropy(logits.float(), targets) + values[-1])
            optimizer.step()
            optimizer.zero_grad()
        return model, values

    AcceleratorState._reset_state(reset_partial_state=True)  # what the Trainers of other tests have left
    accelerator = Accelerator(mixed_precision=precision, cpu=True)
    ours, values = trained(accelerator.prepare, accelerator.backward, nullcontext)
    half = partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16")
    plain, known = trained(lambda *parts: parts, torch.Tensor.backward, half)
    assert_same(ours, plain)
    torch.testing.assert_close(values, known)
    assert values[-1] < values[0]


def test_the_loop_of_the_book(tmp_path):
    torch.manual_seed(0)
    trainer = train(texts(96), texts(96), 2, tmp_path, bf16=True, use_cpu=True, save_strategy="no", disable_tqdm=True)
    assert trainer.evaluate()["eval_loss"] < 0.5
