"""The path of the papers' size from files to the ledger, in one step on tiny sets that the tests write."""

from dataclasses import replace
from functools import cache

import numpy as np
import paper_sets as sets
import pytest
import torch
from PIL import Image

from experiments.cost import SHAPES
from experiments.data.cifar import NORMALISATION
from experiments.data.imagenet import ImageNet, load_imagenet
from experiments.data.images import ImageData, ImageSet
from experiments.data.integrity import DataError
from experiments.evaluation import Subject, at_size, run_suite, suites_of
from experiments.evaluation import imagenet_sets as imagenet
from experiments.evaluation.subject import CROP, bring_to_size, resize_for
from experiments.metrics import noise_accuracy as noise
from experiments.metrics.accuracy import logits_of
from experiments.metrics.calibration import calibration_summary
from experiments.metrics.flips import ALEXNET_FLIP, PERTURBATIONS
from experiments.models import MODELS, build_model, eligible_layers
from experiments.recipes import Evaluation, Scheme, Training, all_recipes, get_recipe
from experiments.record.ledger import read
from experiments.runner import DONE, FAILED, FINISHED, load_training_data, run_recipe
from experiments.schemes import build_step
from experiments.training import CheckpointError, Execution, MemorySource, run_folder, train
from experiments.training.batches import IMAGENET_SIZE, Views
from experiments.training.checkpoint import load_checkpoint
from experiments.training.optimization import learning_rate
from experiments.training.pretrained import classifier_name, load_pretrained

SIDE = sets.SIDE
#: The narrowest that is safe: with 4 channels the backward pass of oneDNN (PyTorch 2.13, AVX2) ends in a segfault.
WIDTH = 8
QUIET = Execution(device="cpu", progress=False)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with all sets."""
    folder = tmp_path_factory.mktemp("shelf")
    sets.write_imagenet(folder / "imagenet")
    sets.write_imagenet_c(folder / "ImageNet-C")
    sets.write_imagenet_r(folder / "ImageNet-R")
    (folder / "ImageNet-P").mkdir()
    if not sets.write_imagenet_p(folder / "ImageNet-P", PERTURBATIONS):
        (folder / "ImageNet-P").rmdir()
    sets.write_cifar10(folder / "cifar-10-batches-py")
    sets.write_cifar10_c(folder / "CIFAR-10-C")
    return folder


@pytest.fixture(autouse=True)
def _data(shelf, monkeypatch):
    for name in ("NFM_IMAGENET", "NFM_CIFAR10"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NFM_DATA", str(shelf))


@pytest.fixture
def data(shelf):
    return load_imagenet(shelf / "imagenet", classes=3)


def subject(data, model=None, batch_size=4):
    model = (model or sets.Color()).eval()
    return Subject(model, data, "paper", evaluation=Evaluation(batch_size=batch_size), image_size=SIDE)


def needs_videos(shelf):
    if not (shelf / "ImageNet-P").is_dir():
        pytest.skip("this OpenCV writes no mp4")


# Recipes --------------------------------------------------------------------------------------------------------

CLASSES = {name: classes for name, (_, _, classes) in SHAPES.items()}


@cache
def on_meta(name, classes, options):
    with torch.device("meta"):
        return MODELS[name].constructor(classes, **dict(options))


@pytest.mark.parametrize("size", ["paper", "compact", "digits", "toy"])
def test_every_recipe_can_be_built(size):
    recipes = [r for r in all_recipes().values() if r.size == size]
    hashes = {r.hash for r in all_recipes().values()}
    assert recipes
    for recipe in recipes:
        training, where = recipe.training, recipe.name
        model = on_meta(training.model, CLASSES[training.data], training.model_options)
        layers = eligible_layers(training.model)
        assert {name for name in layers if name} <= set(dict(model.named_modules())), where
        images = not training.data.startswith(("toy", "series"))
        step = build_step(
            training.scheme, model, layers=layers, classes=CLASSES[training.data], mean=(0.5,) * 3 if images else (),
            std=(0.5,) * 3 if images else (), generator=torch.Generator(),
        )  # fmt: skip
        step.close()
        assert set(recipe.suites) <= set(suites_of(fake_data(training))), where
        Views(MemorySource(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1)), training, 0, 0)
        assert 0 <= learning_rate(training, training.epochs * 7 - 1, 7) <= training.learning_rate, where
        assert not training.pretrained or training.pretrained in hashes, where
        assert dict(training.data_options).get("normalisation", "half") in NORMALISATION, where


def fake_data(training):
    if training.data == "imagenet":
        return ImageNet("imagenet", None, None, 1000, (), ())
    return None


def test_the_classifier_is_what_depends_on_the_number_of_classes():
    for name in MODELS:
        shapes = [{k: v.shape for k, v in on_meta(name, k, ()).state_dict().items()} for k in (3, 7)]
        other = {key.rpartition(".")[0] for key in shapes[0] if shapes[0][key] != shapes[1][key]}
        assert other == {classifier_name(on_meta(name, 3, ()))}


# Training on files ----------------------------------------------------------------------------------------------


def tiny(name, **changes):
    """A recipe of ImageNet with a network and images that a test can afford; its only step."""
    recipe = get_recipe(name)
    small = {"data_options": (("classes", 3),), "model_options": (("width", WIDTH),), "image_size": SIDE}
    small |= {"epochs": 1, "batch_size": 4, "samples": 4}
    return replace(recipe, training=replace(recipe.training, **(small | changes)))


def test_training_images_are_whole_lazy_and_drawn_from_all_classes(data, monkeypatch):
    settings = tiny("nfm-table3/baseline").training
    everything = data.source(replace(settings, samples=None))
    assert (len(everything.labels), everything.classes, everything.mean) == (12, 3, data.mean)
    assert everything.sample(5).shape == (70, 90, 3)  # neither resized nor cropped
    assert everything.sample(5).dtype == np.uint8
    parts = [data.source(replace(settings, samples=n)) for n in (5, 8)]
    assert set(parts[0].chosen) < set(parts[1].chosen)
    assert len(set(parts[1].labels)) == 3  # the first eight files would be of two classes
    for part in parts:
        for k, label in enumerate(part.labels):
            assert part.sample(k).mean((0, 1)).argmax() == label  # colors are the classes
    for count in (0, 13):
        with pytest.raises(ValueError, match="samples: expected 1 to 12"):
            data.source(replace(settings, samples=count))
    source, found, classes = load_training_data(settings)
    assert (len(source.labels), found.name, classes) == (4, "imagenet", 3)


def test_views_have_the_size_of_the_recipe(data):
    assert IMAGENET_SIZE == CROP == 224
    for size, side in ((0, 224), (48, 48)):
        settings = tiny("noisymix-table1/noisymix", image_size=size).training
        x, y = Views(data.source(settings), settings, 0, 0)[np.array([0, 2])]
        assert (x.shape, y.shape) == ((6, 3, side, side), (2,))
    with pytest.raises(ValueError, match="augmentation: expected 'resized_crop'"):
        Views(data.source(settings), replace(settings, augmentation="none"), 0, 0)


# Evaluation on files, with colors as classes --------------------------------------------------------------------


def test_accuracy_on_validation_images_and_renditions(data):
    found, settings = run_suite("clean", subject(data))
    assert found == {"clean": 0.5}
    assert settings == {"images": 6, "resize": 73, "crop": 64}
    found, settings = run_suite("renditions", subject(data))
    # A blue image is no n01; a green one is n05 only because n02 cannot be chosen: blue is its next strongest channel
    assert found == {"imagenet_r/clean": 5 / 6}
    assert (settings["set"], settings["classes"], settings["images"]) == ("ImageNet-R", 2, 6)


def test_calibration_is_that_of_the_renditions(data):
    found, settings = run_suite("calibration", subject(data))
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    colors = [0, 2, 0, 2, 2, 1]
    logits = ((torch.tensor(sets.COLORS)[colors] / 255 - mean) / std)[:, [0, 2]]
    expected = calibration_summary(logits, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert settings["set"] == "ImageNet-R"
    assert set(expected) == {"rms_calibration_error", "ece", "aurra"}
    assert set(found) == {f"imagenet_r/{key}" for key in expected}
    for key, value in expected.items():
        assert found[f"imagenet_r/{key}"] == pytest.approx(value, abs=0.02)  # JPEG moves colors a little


def test_corruptions_are_counted_where_they_are(data):
    found, settings = run_suite("corrupted", subject(data))
    assert settings == {"set": "ImageNet-C", "images": 6, "crop": SIDE}
    assert found["corrupted/fog/2"] == 2 / 6
    assert found["corrupted/shot_noise/2"] == 1
    assert found["corrupted/mean_without_noise"] == pytest.approx(0.5)
    assert found["corrupted/mean"] == pytest.approx((3 + 12 * 0.5) / 15)
    assert found["corrupted/severity/5"] == pytest.approx((3 + 12 * 5 / 6) / 15)


def test_an_incomplete_set_is_noticed_before_anything_is_measured(shelf, data):
    refusing = subject(data, Refusing())
    for path, message in (
        ("ImageNet-C/fog", "missing: fog"),
        ("ImageNet-C/snow/4", "expected severities 1 to 5"),
        ("ImageNet-C/snow/4/n02/1.JPEG", "expected 6 images of snow at severity 4.*got 5"),
    ):
        away = shelf / "away"
        (shelf / path).rename(away)
        try:
            with pytest.raises(DataError, match=message):
                run_suite("corrupted", refusing)
        finally:
            away.rename(shelf / path)
    with pytest.raises(ValueError, match=r"expected one of .*'renditions'.* for 'imagenet', got 'attacks'"):
        run_suite("attacks", refusing)


class Refusing(torch.nn.Module):
    def forward(self, x):
        raise AssertionError("measured")


def test_flips_along_videos(shelf, data):
    needs_videos(shelf)
    found, settings = run_suite("flips", subject(data, batch_size=7))
    # of 29 steps two change the class; of 29 frames two are not as the first one; the second sequence never changes
    assert found["flip_probability/tilt"] == pytest.approx(2 / 29 / 2)
    assert found["flip_probability/shot_noise"] == pytest.approx(2 / 29 / 2)
    assert found["flip_rate/tilt"] == pytest.approx(1 / 29 / ALEXNET_FLIP["tilt"])
    assert found["flip_rate/mean"] == pytest.approx(np.mean([1 / 29 / v for v in ALEXNET_FLIP.values()]))
    assert "recalled, not verified" in settings["reference"]
    assert settings["sequences"] == dict.fromkeys(PERTURBATIONS, 2)
    away = shelf / "away"
    (shelf / "ImageNet-P/zoom_blur").rename(away)
    try:
        with pytest.raises(DataError, match="expected a folder zoom_blur"):
            run_suite("flips", subject(data, Refusing()))
    finally:
        away.rename(shelf / "ImageNet-P/zoom_blur")


@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_noise_on_files_is_that_on_the_same_images_in_memory(data, monkeypatch, batch_size):
    for module in (noise, imagenet):  # two chunks of six images
        monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(imagenet, "WHITE_NOISE", (0.1, 3.0))
    views = data.test.through(imagenet.view_of(SIDE))
    pixels = torch.from_numpy(np.stack([views[k][0] for k in range(6)])).permute(0, 3, 1, 2)
    test = ImageSet(pixels, torch.from_numpy(views.labels))
    memory, model = ImageData("twin", test, test, 3, data.mean, data.std), sets.Projection().eval()
    measured = subject(data, model, batch_size)
    white, settings = run_suite("white_noise", measured)
    curve = noise.noise_curve(model, memory, "white_noise", (0.1, 3.0), seed=0)
    assert white == {f"white_noise/{level:g}": value for level, value in curve.items()}
    assert settings["levels"] == [0.1, 3.0]
    salt, settings = run_suite("salt_pepper", measured)
    assert settings["levels"] == [0.06, 0.1, 0.15]  # NFM Table 3
    for prefix, variant in (("salt_pepper", "released"), ("salt_pepper_standard", "standard")):
        curve = noise.noise_curve(model, memory, "salt_pepper", (0.06, 0.1, 0.15), seed=0, variant=variant)
        assert {f"{prefix}/{level:g}": value for level, value in curve.items()}.items() <= salt.items()


def test_only_a_batch_is_in_memory(data, monkeypatch):
    from experiments.data import imagenet as reading

    decoded, read_image = [], reading.read_image
    monkeypatch.setattr(reading, "read_image", lambda path: decoded.append(path) or read_image(path))
    found = imagenet.batches(data.test.through(imagenet.view_of(SIDE)), subject(data))
    start, pixels, labels = next(found)
    assert (start, pixels.shape, labels.tolist(), len(decoded)) == (0, (4, 3, SIDE, SIDE), [0, 0, 1, 1], 4)
    assert [(start, len(labels)) for start, _, labels in found] == [(4, 2)]


def test_renditions_need_files():
    digits = ImageData("digits", None, None, 10, (0.0,), (1.0,))
    with pytest.raises(ValueError, match=r"'renditions' needs .* images on disk, got 'digits'"):
        run_suite("renditions", Subject(sets.Color(), digits, "digits"))


# One step from files to the ledger --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["noisymix-table1/noisymix", "noisymix-table1/adversarial", "nfm-table3/nfm-alpha1.0"])
def test_a_recipe_of_imagenet_from_files_to_the_ledger(shelf, tmp_path, name):
    needs_videos(shelf)
    recipe = tiny(name)
    extra = ("calibration",) if name.endswith("noisymix") else ()
    recipe = replace(recipe, suites=(*recipe.suites, *extra))
    options = {"ledger": tmp_path / "ledger.jsonl", "runs": tmp_path / "runs", "execution": QUIET}
    outcome = run_recipe(recipe, 1, **options)
    assert outcome.status == DONE, outcome.message
    entries = {entry.suite: entry for entry in read(options["ledger"])}
    assert set(entries) == set(recipe.suites)
    repeats = recipe.training.scheme.replays
    assert all((e.training["steps"], e.training["samples"]) == (repeats, 4) for e in entries.values())
    assert run_recipe(recipe, 1, **options).status == FINISHED


def transfer(pretrained, **changes):
    recipe = get_recipe("noisymix-table5/cifar10-noisymix")
    small = {"model_options": (("width", WIDTH),), "image_size": SIDE, "epochs": 1, "batch_size": 4, "samples": 4}
    small |= {"data_options": (("check", False), ("normalisation", "imagenet")), "pretrained": pretrained}
    return replace(recipe, training=replace(recipe.training, **(small | changes)))


def test_transfer_starts_from_the_other_training_and_ends_in_the_ledger(tmp_path):
    first = replace(tiny("noisymix-table1/noisymix"), suites=("clean",))
    options = {"ledger": tmp_path / "ledger.jsonl", "runs": tmp_path / "runs", "execution": QUIET}
    second = transfer(first.hash)
    outcome = run_recipe(second, 1, **options)
    assert outcome.status == FAILED
    assert f"run the training {first.hash}, which no recipe has, with seed 1 first" in outcome.message
    assert run_recipe(first, 1, **options).status == DONE
    outcome = run_recipe(second, 1, **options)
    assert outcome.status == DONE, outcome.message
    entries = {e.suite: e for e in read(options["ledger"]) if e.hash == second.hash}
    assert set(entries) == {"clean", "corrupted"}
    assert entries["corrupted"].suite_settings["set"] == "CIFAR-10-C"
    # at a rate of zero the weights are those that it started from, and the classifier that of its own seed
    source, _, classes = load_training_data(second.training)
    still = replace(second.training, learning_rate=0.0)
    model = train(still, source, classes=classes, seed=1, runs=options["runs"], execution=QUIET).model
    folder = run_folder(options["runs"], first.training, 1)
    weights = load_checkpoint(folder / "final.pt", hash=first.hash, seed=1)["model"]
    fresh = build_model("resnet50", 10, seed=1, width=WIDTH)
    for key, value in model.named_parameters():
        expected = fresh.get_parameter(key) if key.startswith("fc.") else weights[key]
        assert torch.equal(value, expected), key


def test_weights_that_cannot_be_taken_over(tmp_path):
    recipe = get_recipe("noisymix-table1/augmix")
    model = build_model("resnet50", 10, width=WIDTH)
    with pytest.raises(CheckpointError, match=rf"run noisymix-table1/augmix or .*{recipe.hash}.* with seed 2 first"):
        load_pretrained(model, tmp_path / "final.pt", hash=recipe.hash, seed=2)
    for wrong in (build_model("resnet50", 10, width=2 * WIDTH), build_model("preactresnet18", 10, width=WIDTH)):
        content = {"version": 1, "hash": recipe.hash, "seed": 2, "model": wrong.state_dict()}
        torch.save(content, tmp_path / "final.pt")
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(CheckpointError, match="expected weights of the same network but for fc"):
            load_pretrained(model, tmp_path / "final.pt", hash=recipe.hash, seed=2)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_images_in_memory_are_brought_to_size_batch_by_batch():
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    test = ImageSet(images, torch.zeros(5, dtype=torch.int64))
    data = ImageData("cifar10", test, test, 10, (0.5,) * 3, (0.25,) * 3)
    assert at_size(data, 0) is data
    sized = at_size(data, 224)
    for k, image in enumerate(images.permute(0, 2, 3, 1).numpy()):  # Pillow by hand: 32 to 256, then 16 off each side
        view = np.array(Image.fromarray(image).resize((256, 256), Image.Resampling.BILINEAR))[16:240, 16:240]
        assert np.array_equal(bring_to_size(images[k : k + 1], 224)[0].permute(1, 2, 0).numpy(), view)
        expected = (torch.from_numpy(view).permute(2, 0, 1) / 255 - 0.5) / 0.25
        assert torch.allclose(sized.normalize(images[k : k + 1])[0], expected, atol=1e-6)
    seen = []
    logits_of(lambda x: seen.append(tuple(x.shape)) or x.mean((2, 3)), test, sized, batch_size=2)
    assert seen == [(2, 3, 224, 224), (2, 3, 224, 224), (1, 3, 224, 224)]
    with pytest.raises(ValueError, match="images: expected bytes"):
        sized.normalize(images.float() / 255)
    assert (resize_for(224), resize_for(64), resize_for(32)) == (256, 73, 37)


# Precision and compilation ----------------------------------------------------------------------------------------

STEPS = {
    "baseline": Scheme("baseline"),
    "nfm": Scheme("nfm", alpha=1.0, layers="eligible", add_noise=0.4, mult_noise=0.2),
    "noisymix": Scheme(
        "noisymix", alpha=1.0, layers="eligible", add_noise=0.4, mult_noise=0.4, sparsity=0.65, view_noise=(1, 2, 3),
        jsd=12.0,
    ),
    "cutmix": Scheme("cutmix", alpha=1.0, patch="cutmix"),
    "puzzlemix": Scheme("puzzlemix", alpha=1.0, patch="puzzlemix"),
    "adversarial": Scheme("adversarial", radius=8 / 255, replays=2),
}  # fmt: skip


def trained_on_noise(scheme, runs, execution=QUIET, **changes):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    source = MemorySource(images, rng.integers(0, 10, 24), (0.5,) * 3, (0.25,) * 3)
    settings = {
        "model": "preactresnet18", "model_options": (("width", WIDTH),), "epochs": scheme.replays, "batch_size": 8,
        "learning_rate": 0.05,
    }  # fmt: skip
    training = Training("cifar10", scheme=scheme, **(settings | changes))
    return train(training, source, classes=10, seed=0, runs=runs, execution=execution)


@pytest.mark.parametrize("name", STEPS)
def test_bfloat16_computes_coarsely_and_keeps_exact_weights(tmp_path, monkeypatch, name):
    monkeypatch.setattr("experiments.precision.has_bfloat16", lambda device: True)
    exact = trained_on_noise(STEPS[name], tmp_path, batch_size=24)
    coarse = trained_on_noise(STEPS[name], tmp_path, batch_size=24, precision="bfloat16")
    losses = [found.record["final_loss"] for found in (exact, coarse)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=5e-2)
    assert {p.dtype for p in coarse.model.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in coarse.model.parameters())


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # by the tracer's own look at it
@pytest.mark.parametrize("name", STEPS)
def test_a_compiled_training_is_the_same_training(tmp_path, name):
    # A network of few modules, because it is compiled again for every stage that is mixed
    small = {"model": "fast_cnn", "model_options": (("widths", (WIDTH,) * 3), ("stem", WIDTH))}
    plain = trained_on_noise(STEPS[name], tmp_path / "plain", **small)
    compiled = replace(QUIET, compile=True, compile_backend="eager")
    found = trained_on_noise(STEPS[name], tmp_path / "compiled", compiled, **small)
    assert found.record["final_loss"] == pytest.approx(plain.record["final_loss"], rel=1e-5)
    for (key, value), other in zip(plain.model.state_dict().items(), found.model.state_dict().values(), strict=True):
        torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-5, msg=key)
