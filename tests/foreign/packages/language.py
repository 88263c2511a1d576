"""transformers: models with random weights in a LightningModule of the user's own, which calls them by keyword."""

import lightning as L
import torch
from torch.utils.data import DataLoader
from training import fitted
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

REQUIREMENTS = ["transformers"]


class Classifier(L.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **batch):
        return self.model(**batch)

    def training_step(self, batch, batch_idx):
        return self(**batch).loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self(**batch).loss)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def _texts(count=64, length=16):
    draw = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(count):
        ids = torch.randint(5, 100, (length,), generator=draw)
        used = int(torch.randint(length // 2, length + 1, (), generator=draw))
        mask = (torch.arange(length) < used).long()
        samples.append({"input_ids": ids * mask, "attention_mask": mask, "labels": (ids[0] > 50).long()})
    return samples


def _sentences(count=64, length=16):
    return [
        {"input_ids": one["input_ids"], "attention_mask": one["attention_mask"], "labels": one["input_ids"]}
        for one in _texts(count, length)
    ]


def _pictures(count=64):
    draw = torch.Generator().manual_seed(0)
    return [
        {"pixel_values": torch.randn(3, 32, 32, generator=draw) + label, "labels": torch.tensor(label)}
        for label in [0, 1] * (count // 2)
    ]


def _sounds(count=32):
    draw = torch.Generator().manual_seed(0)
    return [
        {"input_values": torch.randn(2000, generator=draw) * (1 + label), "labels": torch.tensor(label)}
        for label in [0, 1] * (count // 2)
    ]


def _fit(model, samples, callbacks, folder):
    loader = DataLoader(samples, batch_size=8)
    return fitted(Classifier(model), loader, loader, callbacks, folder)


HEADS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def bert(callbacks, folder):
    return _fit(BertForSequenceClassification(BertConfig(vocab_size=100, **HEADS)), _texts(), callbacks, folder)


def distilbert(callbacks, folder):
    config = DistilBertConfig(vocab_size=100, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    return _fit(DistilBertForSequenceClassification(config), _texts(), callbacks, folder)


def gpt2(callbacks, folder):
    config = GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    return _fit(GPT2LMHeadModel(config), _sentences(), callbacks, folder)


def t5(callbacks, folder):
    config = T5Config(vocab_size=100, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0)
    return _fit(T5ForConditionalGeneration(config), _sentences(), callbacks, folder)


def vit(callbacks, folder):
    config = ViTConfig(image_size=32, patch_size=8, **HEADS)
    return _fit(ViTForImageClassification(config), _pictures(), callbacks, folder)


def wav2vec2(callbacks, folder):
    config = Wav2Vec2Config(
        conv_dim=(16, 16, 16),
        conv_stride=(5, 2, 2),
        conv_kernel=(10, 3, 3),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        **HEADS,
    )
    return _fit(Wav2Vec2ForSequenceClassification(config), _sounds(), callbacks, folder)


MODELS = {"BERT": bert, "DistilBERT": distilbert, "GPT-2": gpt2, "T5": t5, "ViT": vit, "wav2vec2": wav2vec2}
