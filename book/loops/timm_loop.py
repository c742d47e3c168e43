"""A network of timm, trained as timm's own script trains it, with NFM instead of Mixup."""

import timm
import torch
from timm.loss import SoftTargetCrossEntropy

import nfm_theory as nt
from nfm_theory.integrations.timm import TimmMixup


def train(loader, num_classes, epochs=4, mixup_off_epoch=3):
    """Returns the network and the mean loss of each epoch."""
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=num_classes, img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2
    )
    mixup_fn = TimmMixup(
        model, ["", "blocks.0"], nt.Law(add_noise=0.2, mult_noise=0.1), prob=0.9, cutmix_alpha=1.0, switch_prob=0.3,
        mode="pair", num_classes=num_classes, label_smoothing=0.1,
    )  # fmt: skip
    loss_fn, optimizer = SoftTargetCrossEntropy(), torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for epoch in range(epochs):
        model.train()
        total = 0.0
        if epoch >= mixup_off_epoch:
            mixup_fn.mixup_enabled = False
        for input, target in loader:
            input, target = mixup_fn(input, target)
            with torch.autocast(input.device.type, torch.bfloat16):
                loss = loss_fn(model(input), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() / len(loader)
        losses.append(total)
    return model.eval(), losses
