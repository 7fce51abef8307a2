"""Properties of the decoder that need no outside oracle."""

import torch

from recipes.model import Decoder, ModelConfig, batched_attend, dense_attend, init_weights


def tiny(**more) -> ModelConfig:
    shape = {
        "family": "llama",
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "max_positions": 64,
    }
    return ModelConfig(**(shape | more))


def random_decoder(config: ModelConfig, seed: int = 0) -> Decoder:
    decoder = Decoder(config)
    init_weights(decoder, torch.Generator().manual_seed(seed), std=0.2)
    return decoder


def logits_of(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    attend = dense_attend(decoder.config, torch.tensor([0, len(tokens)], dtype=torch.int32))
    return decoder.logits(decoder(tokens, torch.arange(len(tokens)), attend))


def test_a_later_token_changes_no_earlier_logit(seeded):
    decoder = random_decoder(tiny())
    tokens = torch.randint(97, (12,), generator=seeded)
    changed = tokens.clone()
    changed[7] = (changed[7] + 1) % 97
    with torch.inference_mode():
        before, after = logits_of(decoder, tokens), logits_of(decoder, changed)
    torch.testing.assert_close(before[:7], after[:7])
    assert (before[7:] - after[7:]).abs().amax(1).min() > 1e-3


def test_packed_and_batched_sequences_do_not_see_one_another(seeded):
    decoder = random_decoder(tiny())
    tokens = torch.randint(97, (3, 8), generator=seeded)
    positions = torch.arange(8).repeat(3)
    bounds = torch.tensor([0, 8, 16, 24], dtype=torch.int32)
    with torch.inference_mode():
        alone = torch.cat([logits_of(decoder, row) for row in tokens])
        for attend in (dense_attend(decoder.config, bounds), batched_attend(decoder.config, 8)):
            packed = decoder.logits(decoder(tokens.flatten(), positions, attend))
            torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


def test_every_parameter_receives_a_gradient(seeded):
    for config in (tiny(), tiny(tie_embeddings=True, qkv_bias=True, qk_norm=True)):
        decoder = random_decoder(config)
        tokens = torch.randint(97, (16,), generator=seeded)
        hidden = decoder(tokens, torch.arange(16), batched_attend(config, 16))
        decoder.logits(hidden).log_softmax(-1).square().mean().backward()
        for name, parameter in decoder.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_same_seed_gives_the_same_weights():
    one, two = (random_decoder(tiny(), seed=3) for _ in range(2))
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_autocast_trains_and_keeps_the_residual_stream_in_float32(seeded):
    decoder = random_decoder(tiny(tie_embeddings=True))
    tokens, positions = torch.randint(97, (16,), generator=seeded), torch.arange(16)
    attend = batched_attend(decoder.config, 16)
    plain = decoder.logits(decoder(tokens, positions, attend))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = decoder(tokens, positions, attend)
        logits = decoder.logits(hidden)
    assert hidden.dtype == torch.float32
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - plain).abs().mean() < 0.1 * plain.std()
    logits.float().square().mean().backward()
    assert all(p.grad is not None for p in decoder.parameters())
