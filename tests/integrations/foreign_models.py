"""Networks of timm and Hugging Face, small, with random weights, in float64 and evaluation mode."""

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import transformers
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

CLASSES = 3


@dataclass(frozen=True)
class Foreign:
    """How to build a network, its inputs, and the layer at which it is tested.

    Attributes:
        build: makes the network.
        x: inputs, `(n, *input)`.
        layer: layer whose output is perturbed.
        output: where the logits are in what the network returns.
        kinks: True if the head has kinks behind the layer.
        steep: True for a smooth head that bends so fast along some draws that a fit cannot tell it from one with kinks.
    """

    build: Callable[[], nn.Module]
    x: torch.Tensor
    layer: str
    output: str | None = None
    kinks: bool = False
    steep: bool = False

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build().double()
            for value in model.parameters():  # norms that are not the identity
                if value.ndim == 1:
                    value.data.add_(0.1 * torch.randn_like(value))
            norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            if norms:  # running statistics that fit the features, which would vanish otherwise
                for norm in norms:
                    norm.momentum = 1.0
                model.train()(torch.randn(16, *self.x.shape[1:], dtype=self.x.dtype))
        return model.eval()


def images(size):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tokens(vocabulary):
    return torch.randint(3, vocabulary, (3, 5), generator=torch.Generator().manual_seed(1))


def float64_norms(model):
    """Llama's own norm computes in float32, whatever the precision of the model; this one does not."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LlamaRMSNorm):
                setattr(parent, name, nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon))
    return model


def of_timm(name, size, layer, kinks=False, steep=False, **options):
    def build():
        return timm.create_model(name, num_classes=CLASSES, **options)

    return Foreign(build, images(size), layer, kinks=kinks, steep=steep)


def of_transformers(kind, x, layer, kinks=False, **options):
    def build():
        head = getattr(transformers, f"{kind}ForSequenceClassification", None)
        head = head or getattr(transformers, f"{kind}ForImageClassification")
        config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **options)
        return float64_norms(head(config))

    return Foreign(build, x, layer, output="logits", kinks=kinks)


VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
TEXT = {"vocab_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}

MODELS = {
    "timm ViT": of_timm("vit_tiny_patch16_224", 16, "blocks.0", **VIT),
    "timm Swin": of_timm(
        "swin_tiny_patch4_window7_224", 16, "layers.0", img_size=16, patch_size=4, window_size=2, embed_dim=8,
        depths=(1, 1), num_heads=(1, 2),
    ),
    "timm ConvNeXt": of_timm("convnext_atto", 32, "stages.1", depths=(1, 1, 1, 1), dims=(4, 4, 8, 8)),
    "timm ResNet": of_timm("resnet18", 32, "layer2", kinks=True, layers=(1, 1, 1, 1), channels=(4, 4, 8, 8)),
    "timm RegNet": of_timm("regnetx_002", 32, "s3", kinks=True),
    "timm EfficientNet": of_timm("efficientnet_b0", 32, "blocks.5", steep=True),
    "timm MobileNetV3": of_timm("mobilenetv3_small_050", 32, "blocks.4", kinks=True),
    "Hugging Face ViT": of_transformers(
        "ViT", images(16), "vit.embeddings", image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=24,
    ),
    "Hugging Face BERT": of_transformers("Bert", tokens(32), "bert.embeddings", **TEXT),
    "Hugging Face DistilBERT": of_transformers(
        "DistilBert", tokens(32), "distilbert.embeddings", kinks=True, vocab_size=32, dim=16, n_layers=2, n_heads=2,
        hidden_dim=24,
    ),
    "Hugging Face GPT-2": of_transformers(
        "GPT2", tokens(32), "transformer.drop", vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=8,
        pad_token_id=0,
    ),
    "Hugging Face Llama": of_transformers("Llama", tokens(32), "model.embed_tokens", num_key_value_heads=1,
                                          pad_token_id=0, **TEXT),
}  # fmt: skip
