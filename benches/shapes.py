"""Shapes of real models, named once; benches, figures and cost models take theirs from here."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """Sizes of one decoder, as one device sees them.

    name: the model, and how it is cut where it is.
    num_layers, hidden_size, intermediate_size, vocab_size: of the decoder.
    num_heads, num_kv_heads, head_dim: of its attention, on this device.
    window: sliding window of the layers that have one [tokens]; None without.
    softcap: soft cap of attention scores; None without.
    """

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    softcap: float | None = None

    @property
    def group_size(self) -> int:
        """Query heads that share a key head."""
        return self.num_heads // self.num_kv_heads


TINY = ModelShape("tiny", 2, 128, 352, 512, 4, 2, 32)
LLAMA_200M = ModelShape("llama200m", 16, 1024, 2816, 32000, 16, 4, 64)
LLAMA_8B = ModelShape("llama8b", 32, 4096, 14336, 128256, 32, 8, 128)
LLAMA_70B_TP8 = ModelShape("llama70b_tp8", 80, 8192, 3584, 128256, 8, 1, 128)
QWEN3_8B = ModelShape("qwen3", 36, 4096, 12288, 151936, 32, 8, 128)
GEMMA2_9B = ModelShape("gemma2", 42, 3584, 14336, 256000, 16, 8, 256, 4096, 50.0)

MODELS = {
    model.name: model for model in (TINY, LLAMA_200M, LLAMA_8B, LLAMA_70B_TP8, QWEN3_8B, GEMMA2_9B)
}
