"""A Lightning module, trained with NFM by a callback; its training step does not know of it."""

import lightning
import torch
import torch.nn.functional as F
from torch import nn

import nfm_theory as nt
from nfm_theory.integrations.lightning import MixupCallback


class Classifier(lightning.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)  # takes class indices and mixed labels
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("accuracy", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 3e-3)


def train(net: nn.Module, layers, train_loader, test_loader, num_classes, **options):
    """Returns the trainer, with the last values that were logged in `callback_metrics`."""
    mixup = nt.NoisyFeatureMixup(net, layers, nt.Law(add_noise=0.2, mult_noise=0.1), num_classes=num_classes)
    trainer = lightning.Trainer(callbacks=[MixupCallback(mixup, stop_epoch=3)], **options)
    trainer.fit(Classifier(net), train_loader, test_loader)
    return trainer
