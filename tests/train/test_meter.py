import dataclasses

import torch

from recipes.model import Decoder
from recipes.train import tiny
from recipes.train.meter import measured_peak, step_flops
from recipes.train.model import model_config
from recipes.train.tokenizer import train_tokenizer


def test_a_step_is_six_operations_a_weight_and_token_and_its_attention():
    config = dataclasses.replace(tiny(), tie_embeddings=False)
    model = model_config(config, train_tokenizer(["some text"], 300))
    decoder = Decoder(model, device="meta")
    products = sum(p.numel() for name, p in decoder.named_parameters() if p.ndim == 2)
    products -= decoder.embed.weight.numel()  # looked up, not multiplied
    rows, length = 3, 64
    pairs = rows * length * (length + 1) // 2
    attention = 14 * pairs * model.num_heads * model.head_dim * model.num_layers
    assert step_flops(model, rows, length) == 6 * products * rows * length + attention


def test_a_window_hides_what_is_not_counted():
    tokenizer = train_tokenizer(["some text"], 300)
    full, narrow = (
        step_flops(model_config(dataclasses.replace(tiny(), window=w), tokenizer), 1, 64)
        for w in (None, 8)
    )
    assert narrow < full


def test_the_peak_is_measured_once():
    peak = measured_peak("cpu", torch.float32, 1)
    assert peak > 1e8
    assert measured_peak("cpu", torch.float32, 1) == peak
