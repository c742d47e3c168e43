"""A classifier of Hugging Face, trained with NFM behind its embeddings."""

from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

import nfm_theory as nt
from nfm_theory.integrations.transformers import MixupTrainer


def train(train_set, test_set, num_classes, folder, **options):
    """Returns the trainer; `options` are arguments of the training, `bf16=True` for example."""
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_labels=num_classes,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    arguments = TrainingArguments(
        str(folder), num_train_epochs=4, learning_rate=3e-3, per_device_train_batch_size=16, report_to="none", **options
    )
    trainer = MixupTrainer(model=model, args=arguments, train_dataset=train_set, eval_dataset=test_set)
    law = nt.Law(add_noise=0.2, mult_noise=0.1)
    layers = ["bert.embeddings", "bert.encoder.layer.0"]
    trainer.regularize(nt.NoisyFeatureMixup(model, layers, law, num_classes=num_classes), stop_epoch=3)
    trainer.train()
    return trainer
