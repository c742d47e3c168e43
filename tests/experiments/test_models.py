"""The papers' networks: sizes counted by hand, blocks against plain functions, and the theory at every layer."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from problems import finish, generator, randn
from torch import nn
from torch.testing import assert_close

import nfm_theory as nt
from experiments.models import MODELS, build_model, eligible_layers
from experiments.models.fast import FastConvNet
from experiments.models.preactresnet import DigitsResNet, PreActBlock, PreActResNet18
from experiments.models.resnet50 import Bottleneck, ResNet50
from experiments.models.toy_networks import nfm_toy, noisymix_toy
from experiments.models.vit import Attention, Block, ViT
from experiments.models.wideresnet import WideBlock, WideResNet28

# Options that make each network small, and the shape of an input.
SMALL = {
    "preactresnet18": ({"width": 2}, (3, 16, 16)),
    "wideresnet18": ({"width": 4}, (3, 16, 16)),
    "wideresnet28": ({"widen": 1}, (3, 16, 16)),
    "resnet50": ({"width": 2}, (3, 64, 64)),
    "vit": ({"dim": 8, "heads": 2, "image_size": 16}, (3, 16, 16)),
    "fast_cnn": ({"widths": (4, 6, 8), "stem": 3}, (3, 16, 16)),
    "digits_resnet": ({"width": 4}, (1, 8, 8)),
    "nfm_toy": ({"width": 8}, (2,)),
    "noisymix_toy": ({"width": 8}, (2,)),
    "smooth_mlp": ({"width": 8}, (2,)),
    "series_cnn": ({"width": 4}, (2, 12)),
    "patch_network": ({"width": 4}, (4, 40)),
}
#: Networks with GELU, SiLU and a smoothed ReLU.
SMOOTH = ("vit", "smooth_mlp", "series_cnn", "patch_network")
LAYERS = [(name, layer) for name in MODELS for layer in eligible_layers(name)]
LAYER_IDS = [f"{name}:{layer or 'input'}" for name, layer in LAYERS]


def small(name, seed=0, batch=6):
    """A small network, inputs of its shape and labels of three classes."""
    options, shape = SMALL[name]
    x = torch.randn(batch, *shape, generator=generator(seed))
    return build_model(name, 3, seed=seed, **options), x, torch.arange(batch) % 3


def on_meta(build):
    with torch.device("meta"):
        return build()


def outputs_at(model, x, layers):
    """Outputs of some layers in one forward pass, copied when they are computed, and as they are afterwards."""
    then, kept = {}, {}
    handles = []
    for layer in layers:
        if layer:

            def hook(module, args, output, layer=layer):
                then[layer], kept[layer] = output.detach().clone(), output

            handles.append(model.get_submodule(layer).register_forward_hook(hook))
    out = model(x)
    for handle in handles:
        handle.remove()
    return then, kept, out


# Sizes ---------------------------------------------------------------------------------------------------------


def preact18_parameters(w, classes):
    """Convolutions by stage 36, 128, 512, 2048 w²; BN 8, 14, 28, 56 w; stem 27 w; head."""
    return 2724 * w**2 + 106 * w + 27 * w + 8 * w * classes + classes


def wrn28_parameters(k, classes, released):
    """Stages of 16k = a channels, k > 1: 63, 272, 1088 a² and 16 x 10 a; stem 432; BN 32 + 14, 30, 60, 8 a; head."""
    a = 16 * k
    biases = 16 + (9 + 18 + 36) * a if released else 0
    return 1423 * a**2 + 160 * a + 432 + 32 + 112 * a + 4 * a * classes + classes + biases


def resnet50_parameters(w, classes):
    """Stages 52, 296, 1728, 3648 w² and 44, 112, 320, 352 w; stem 147 w and its BN 2 w; head."""
    return 5724 * w**2 + 977 * w + 32 * w * classes + classes


def vit_parameters(d, depth, classes):
    """A block: 3 d² + d² + 4 d² and 3 + 1 + 3 + 4 d; patches 48 d + d; 64 positions; norm 2 d; head."""
    return depth * (8 * d**2 + 11 * d) + 49 * d + 64 * d + 2 * d + d * classes + classes


# The numbers are the published ones where there are any: 11.17 M, 1.47 M, 36.48 M, 25,557,032.
COUNTS = {
    "PreActResNet-18": (lambda: PreActResNet18(10), preact18_parameters(64, 10), 11_171_146),
    "PreActResNet-18, standard": (lambda: PreActResNet18(10, shortcut="standard"), None, 11_171_146),
    "Wide-ResNet-18": (lambda: MODELS["wideresnet18"].constructor(100), preact18_parameters(128, 100), 44_749_540),
    "WRN-28-2, standard": (
        lambda: WideResNet28(10, widen=2, released=False),
        wrn28_parameters(2, 10, False),
        1_467_610,
    ),
    "WRN-28-4, standard": (lambda: WideResNet28(10, released=False), wrn28_parameters(4, 10, False), 5_849_050),
    "WRN-28-10, standard": (
        *(lambda: WideResNet28(10, widen=10, released=False), wrn28_parameters(10, 10, False), 36_479_194),
    ),
    "WRN-28-4": (lambda: WideResNet28(10), wrn28_parameters(4, 10, True), 5_853_098),
    "ResNet-50": (ResNet50, resnet50_parameters(64, 1000), 25_557_032),
    "ResNet-50, narrow": (lambda: ResNet50(10, width=16), resnet50_parameters(16, 10), None),
    "ViT": (lambda: ViT(10), vit_parameters(256, 7, 10), 3_721_738),
    # w = 8: blocks 18 w² + 4 w, 56 w² + 6 w and 224 w² + 12 w, stem 9 w, head 4 w K + K
    "digits": (lambda: DigitsResNet(10), 298 * 64 + 22 * 8 + 72 + 4 * 8 * 10 + 10, None),
    # stem 12 x 24 + 24; convolutions a b + b² for a, b = 24, 48 and 48, 96 and 96, 128; BN 4 b; head 128 K
    "fast": (FastConvNet, 312 + 9 * (72 * 48 + 144 * 96 + 224 * 128) + 4 * 272 + 1280, 416_248),
    "NFM toy": (nfm_toy, (2 * 64 + 64) + 2 * (64 * 64 + 64) + (2 * 64 + 2), 8_642),
    "NoisyMix toy": (noisymix_toy, (2 * 128 + 128) + (2 * 128 + 2), 642),
}


@pytest.mark.parametrize("name", COUNTS)
def test_networks_have_the_parameters_counted_by_hand(name):
    build, *expected = COUNTS[name]
    found = sum(p.numel() for p in on_meta(build).parameters())
    assert {found} == set(expected) - {None}


# The protocol's table (section 1), and where our own networks may be mixed.
SHAPES = {
    "preactresnet18": [(3, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8)],
    "wideresnet18": [(3, 32, 32), (128, 32, 32), (256, 16, 16), (512, 8, 8)],
    "wideresnet28": [(3, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8)],
    "resnet50": [(3, 224, 224), (256, 56, 56), (512, 28, 28), (1024, 14, 14)],
    "vit": [(3, 32, 32), (64, 256), (64, 256), (64, 256)],
    "fast_cnn": [(3, 32, 32), (48, 8, 8), (96, 4, 4), (128, 2, 2)],
    "digits_resnet": [(1, 8, 8), (8, 8, 8), (16, 4, 4)],
    "nfm_toy": [(2,), (64,), (64,), (64,)],
    "noisymix_toy": [(2,), (128,)],
    "smooth_mlp": [(2,), (64,), (64,)],
    "series_cnn": [(2, 12), (33, 12), (33, 12)],
    "patch_network": [(4, 40)],
}


@pytest.mark.parametrize("name", MODELS)
def test_features_have_the_shapes_of_the_protocol(name):
    model = on_meta(lambda: MODELS[name].constructor(7))
    x = torch.empty(2, *SHAPES[name][0], device="meta")
    layers = eligible_layers(name)
    assert layers[0] == ""
    found, _, out = outputs_at(model, x, layers)
    assert [tuple(found[layer].shape[1:]) for layer in layers[1:]] == SHAPES[name][1:]
    assert out.shape == (2, 7)


def test_last_stages_have_the_published_size_and_no_norm_behind_them():
    for model, last, shape in [
        (on_meta(lambda: PreActResNet18(10)), "layer4", (1, 512, 4, 4)),
        (on_meta(lambda: WideResNet28(10, released=False)), "layer3", (1, 256, 8, 8)),
        (on_meta(lambda: DigitsResNet(10)), "layer3", (1, 32, 2, 2)),
    ]:
        channels = model.conv1.in_channels
        side = 8 if channels == 1 else 32
        assert outputs_at(model, torch.empty(1, channels, side, side, device="meta"), [last])[0][last].shape == shape
    # The head behind the last stage is the mean over the image and a linear map: nothing else.
    model, x, _ = small("preactresnet18")
    features, _, out = outputs_at(model.eval(), x, ["layer4"])
    assert_close(out, model.linear(features["layer4"].mean((2, 3))))


# Blocks against plain functions --------------------------------------------------------------------------------


def norm(x, bn):
    """BN in evaluation mode, written out."""
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return (x - bn.running_mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]


def active(x, bn):
    return norm(x, bn).clamp(min=0)


def conv(x, layer, stride=1, padding=1):
    return F.conv2d(x, layer.weight, layer.bias, stride, padding)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("planes", [3, 5])
@pytest.mark.parametrize("shortcut", ["released", "standard"])
def test_preactivation_block_is_its_formula(stride, planes, shortcut):
    block, x = finish(lambda: PreActBlock(3, planes, stride, shortcut=shortcut), 0), randn(1, 4, 3, 6, 6)
    a = active(x, block.bn1)
    residual = conv(active(conv(a, block.conv1, stride), block.bn2), block.conv2)
    kept = stride == 1 and planes == 3
    carried = (a if shortcut == "released" else x) if kept else conv(a, block.project, stride, 0)
    assert_close(block(x), residual + carried)


def test_shortcuts_differ_by_what_an_identity_carries_and_nowhere_else():
    x = randn(1, 4, 3, 6, 6)
    for planes, stride, differs in [(3, 1, True), (5, 1, False), (3, 2, False)]:
        size = (3, planes, stride)
        released, standard = (
            finish(lambda s=s, size=size: PreActBlock(*size, shortcut=s), 0) for s in ("released", "standard")
        )
        gap = released(x) - standard(x)
        assert_close(gap, active(x, released.bn1) - x if differs else torch.zeros_like(gap))
    plain = {s: PreActResNet18(10, width=4, shortcut=s) for s in ("released", "standard")}
    plain["standard"].load_state_dict(plain["released"].state_dict())
    images = torch.randn(2, 3, 16, 16, generator=generator(2))
    with torch.no_grad():
        found, expected = (plain[s].eval()(images) for s in ("released", "standard"))
    assert float((found - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize(("planes", "stride"), [(3, 1), (5, 1), (5, 2)])
def test_wide_block_is_its_formula(released, planes, stride):
    block, x = finish(lambda: WideBlock(3, planes, stride, released=released), 0), randn(1, 4, 3, 6, 6)
    first, second = (1, stride) if released else (stride, 1)
    a = active(x, block.bn1)
    residual = conv(active(conv(a, block.conv1, first), block.bn2), block.conv2, second)
    kept = stride == 1 and planes == 3
    carried = x if kept else conv(x if released else a, block.project, stride, 0)
    assert_close(block(x), residual + carried)
    assert {m.bias is not None for m in block.modules() if isinstance(m, nn.Conv2d)} == {released}


@pytest.mark.parametrize("released", [True, False])
def test_wide_network_has_its_momentum_and_dropout(released):
    model = WideResNet28(10, widen=1, dropout=0.25, released=released)
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert momenta[-1] == (0.9 if released else 0.1)  # the final one, defined last
    assert set(momenta[:-1]) == {0.1}
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25] * 12


@pytest.mark.parametrize("released", [True, False])
def test_wide_block_drops_where_it_should(released):
    block, seen = finish(lambda: WideBlock(3, 16, dropout=0.5, released=released), 0), {}
    block.dropout.train()
    block.conv1.register_forward_hook(lambda m, args, out: seen.update(conv1=out))
    for name in ("bn2", "conv2"):
        getattr(block, name).register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0]}))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        block(randn(1, 2, 3, 4, 4))
        behind = active(seen["bn2"], block.bn2)
    in_front_of_norm = seen["bn2"] / seen["conv1"]
    in_front_of_conv = (seen["conv2"] / behind)[behind > 0]
    dropped, kept = (in_front_of_norm, in_front_of_conv) if released else (in_front_of_conv, in_front_of_norm)
    assert_close(kept, torch.ones_like(kept))
    assert set(dropped.flatten().round(decimals=9).tolist()) == {0.0, 2.0}


def torchvision_names():
    """Keys of a state dict of torchvision's ResNet-50, from the layout."""
    bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["conv1.weight", *(f"bn1.{part}" for part in bn)]
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        for block in range(depth):
            head = f"layer{stage}.{block}"
            for k in (1, 2, 3):
                names += [f"{head}.conv{k}.weight", *(f"{head}.bn{k}.{part}" for part in bn)]
            if block == 0:
                names += [f"{head}.downsample.0.weight", *(f"{head}.downsample.1.{part}" for part in bn)]
    return [*names, "fc.weight", "fc.bias"]


def test_resnet50_has_the_names_and_shapes_of_torchvision():
    state = on_meta(ResNet50).state_dict()
    assert list(state) == torchvision_names()
    assert len(state) == 320
    spots = {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer3.5.bn3.running_var": (1024,),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "fc.weight": (1000, 2048),
    }
    assert {name: tuple(state[name].shape) for name in spots} == spots


@pytest.mark.parametrize(("channels", "stride"), [(12, 1), (8, 1), (12, 2)])
def test_bottleneck_is_its_formula(channels, stride):
    block, x = finish(lambda: Bottleneck(channels, 3, stride), 0), randn(1, 2, channels, 6, 6)
    h = active(conv(x, block.conv1, 1, 0), block.bn1)
    h = norm(conv(active(conv(h, block.conv2, stride), block.bn2), block.conv3, 1, 0), block.bn3)
    kept = (channels, stride) == (12, 1)
    carried = x if kept else norm(conv(x, block.downsample[0], stride, 0), block.downsample[1])
    assert_close(block(x), (h + carried).clamp(min=0))


def test_resnet50_is_initialised_by_fan_out():
    state = build_model("resnet50", 10, seed=3, width=16).state_dict()
    for name, fan_out in [
        ("layer4.0.conv2.weight", 128 * 9),
        ("layer4.1.conv3.weight", 512),
        ("conv1.weight", 16 * 49),
    ]:
        values = state[name]
        std, count = (2 / fan_out) ** 0.5, values.numel()
        assert abs(float(values.mean())) < 5 * std / count**0.5
        assert float(values.std()) == pytest.approx(std, rel=5 / (2 * count) ** 0.5)
    assert bool((state["layer1.0.bn3.weight"] == 1).all())


def test_attention_is_that_of_pytorch():
    ours, theirs = finish(lambda: Attention(8, 2), 0), nn.MultiheadAttention(8, 2, batch_first=True).double()
    names = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias"}
    names |= {"out_proj.weight": "out.weight", "out_proj.bias": "out.bias"}
    theirs.load_state_dict({theirs_: ours.state_dict()[name] for theirs_, name in names.items()})
    x = randn(1, 3, 5, 8)
    assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_transformer_block_is_that_of_pytorch():
    ours = finish(lambda: Block(8, 2, 2, 0.0), 0)
    theirs = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True).double()
    mine = ours.state_dict()
    state = {
        "self_attn.in_proj_": "attention.qkv.", "self_attn.out_proj.": "attention.out.",
        "linear1.": "mlp.0.", "linear2.": "mlp.2.", "norm1.": "norm1.", "norm2.": "norm2.",
    }  # fmt: skip
    theirs.load_state_dict({a + part: mine[b + part] for a, b in state.items() for part in ("weight", "bias")})
    x = randn(1, 3, 5, 8)
    assert_close(ours(x), theirs(x))


@torch.no_grad()
def test_vit_knows_patches_by_their_positions_only():
    model = finish(lambda: ViT(3, dim=8, depth=2, heads=2, image_size=8), 0)
    x = randn(1, 4, 3, 8, 8)
    swapped = torch.cat([x[..., 4:, :], x[..., :4, :]], -2)  # patches are 4 x 4: two halves change places
    assert float((model(x) - model(swapped)).abs().max()) > 1e-5
    model.positions.data.zero_()
    assert_close(model(x), model(swapped))


# Seeds, names and options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_gives_the_same_bits_and_the_global_generator_rests(name):
    options, _ = SMALL[name]
    state = torch.random.get_rng_state()
    first = build_model(name, 3, seed=1, **options).state_dict()
    with torch.device("meta"):  # a default device is not for these
        again = build_model(name, 3, seed=1, **options).state_dict()
    other = build_model(name, 3, seed=2, **options).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(first) == list(again)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: build_model("preactresnet", 10), r"model: expected one of .*did you mean 'preactresnet18'"),
        (lambda: eligible_layers("resnet5"), r"did you mean 'resnet50'"),
        (lambda: build_model("preactresnet18", 10, widht=2), r"preactresnet18: expected options .*mean 'width'"),
        (lambda: build_model("wideresnet18", 10, widen=2), r"wideresnet18: expected options .*'width'"),
        (lambda: build_model("nfm_toy", 0), r"num_classes: expected a whole number >= 1, got 0"),
        (lambda: build_model("preactresnet18", 10, width=1.5), r"width: expected a whole number"),
        (lambda: build_model("preactresnet18", 10, shortcut="identity"), r"shortcut: expected one of"),
        (lambda: build_model("wideresnet28", 10, dropout=1.0), r"dropout: expected a rate"),
        (lambda: build_model("vit", 10, heads=3), r"heads: expected a divisor of dim=256, got 3"),
        (lambda: build_model("vit", 10, patch=5), r"patch: expected a divisor of image_size=32"),
        (lambda: small("vit")[0](torch.zeros(1, 3, 4, 4)), r"x: expected images \(n, 3, 16, 16\)"),
    ],
)
def test_bad_requests_say_what_was_expected(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("name", MODELS)
def test_options_are_keyword_only_and_documented(name):
    constructor = MODELS[name].constructor
    target = getattr(constructor, "func", constructor)
    parameters = list(inspect.signature(target).parameters.values())
    assert parameters[0].name == "num_classes"
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[1:])
    assert all(f"{p.name}: " in target.__doc__ for p in parameters)


# With the theory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_networks_are_fixed_functions_of_one_sample_in_evaluation_mode(name):
    model, x, _ = small(name)
    model.double().eval()
    x = x.double()
    kept = x.clone()
    then, after, out = outputs_at(model, x, eligible_layers(name))
    assert torch.equal(x, kept)  # nothing is overwritten, neither inputs nor features
    assert all(torch.equal(then[layer], after[layer]) for layer in then)
    assert torch.equal(model(x), out)
    assert_close(torch.cat([model(row[None]) for row in x.flip(0)]).flip(0), out)
    assert len({tuple(row.tolist()) for row in out}) == len(x)


@pytest.mark.parametrize(("name", "layer"), LAYERS, ids=LAYER_IDS)
def test_a_step_of_noisy_feature_mixup_at_every_eligible_layer(name, layer):
    model, x, y = small(name)
    shape = x.shape if not layer else outputs_at(model, x, [layer])[0][layer].shape
    law = nt.Law.released(add_noise=0.4, mult_noise=0.2)
    mixer = nt.NoisyFeatureMixup(model, layer, law, num_classes=3, generator=generator(4))
    with mixer, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # dropout
        inputs, targets = mixer(x, y)
        F.cross_entropy(model(inputs), targets).backward()
    assert mixer.last.layer == layer
    assert mixer.last.draw.add.shape == mixer.last.draw.mult.shape == shape
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)
    assert any(bool(g.any()) for g in grads)


@pytest.mark.parametrize(("name", "layer"), LAYERS, ids=LAYER_IDS)
def test_the_taylor_penalty_at_every_eligible_layer(name, layer):
    model, x, y = small(name)
    penalty = nt.TaylorRegularizer(layer, nt.Law(add_noise=0.4, mult_noise=0.2), generator=generator(5))
    value = penalty(model, x, y)
    value.backward()
    assert penalty.engine == "tangent-adjoint"  # no fallback: every operation is known
    assert float(penalty.last["R2"]) > 0
    assert name in SMOOTH or float(penalty.last["R3"]) == 0  # ReLU networks are piecewise linear
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(g.isfinite().all()) for g in grads)
    assert any(bool(g.any()) for g in grads)
    assert model.training


@pytest.mark.parametrize(("name", "layer"), [pair for pair in LAYERS if pair[0] in ("vit", "wideresnet28")])
def test_the_head_behind_a_layer_is_what_the_network_does_there(name, layer):
    model, x, _ = small(name)
    cut = nt.split(model.eval(), x, layer=layer)
    assert_close(cut.head(cut.encode(x)), model(x))
