"""LTU's audio path in PyTorch, from the equations: CAV-MAE's audio branch, pooling, and the projection of the prompt.

Names of modules are those of the released checkpoints, so that the state dict has their keys. What the released code
adds 0.0 times of, the norms that a block does not use, is left out.
"""

import torch
from torch import nn


class Attention(nn.Module):
    """Multi-head self-attention, query, key and value in one product."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x -> W_o softmax(q k^T / sqrt(K)) v, head by head."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        size = query.shape[-1] // self.num_heads
        heads = []
        for i in range(self.num_heads):
            q, k, v = (part[..., i * size : (i + 1) * size] for part in (query, key, value))
            heads.append(torch.softmax(q @ k.mT / size**0.5, dim=-1) @ v)
        return self.proj(torch.cat(heads, dim=-1))


class Mlp(nn.Module):
    """Two linear layers and an exact GELU."""

    def __init__(self, width: int, mlp_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x -> W_2 gelu(W_1 x)."""
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)); in the shared block the norms are called norm1_a and norm2_a."""

    def __init__(self, width: int, num_heads: int, mlp_dim: int, suffix: str) -> None:
        super().__init__()
        self.suffix = suffix
        self.attn = Attention(width, num_heads)
        self.mlp = Mlp(width, mlp_dim)
        for name in ("norm1", "norm2"):
            setattr(self, name + suffix, nn.LayerNorm(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both halves."""
        x = x + self.attn(getattr(self, "norm1" + self.suffix)(x))
        return x + self.mlp(getattr(self, "norm2" + self.suffix)(x))


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, patch_size, patch_size)


class AudioEncoder(nn.Module):
    """CAV-MAE's audio branch: features [B T F] to patches [B rows*columns D], frequency-major."""

    def __init__(self, config) -> None:
        super().__init__()
        width, (rows, columns) = config.width, config.grid
        self.patch_embed_a = PatchEmbed(width, config.patch_size)
        self.modality_a = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed_a = nn.Parameter(torch.zeros(1, rows * columns, width))
        sizes = width, config.num_heads, config.mlp_dim
        self.blocks_a = nn.ModuleList([Block(*sizes, "") for _ in range(config.num_layers - 1)])
        self.blocks_u = nn.ModuleList([Block(*sizes, "_a")])
        self.norm_a = nn.LayerNorm(width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Patches, positions and modality, blocks, norm."""
        x = self.patch_embed_a.proj(features.mT[:, None]).flatten(2).mT
        x = x + self.pos_embed_a + self.modality_a
        for block in (*self.blocks_a, *self.blocks_u):
            x = block(x)
        return self.norm_a(x)


class Ltu(nn.Module):
    """Features to the prompt [B columns/2 P]: mean over frequency, of pairs of columns, / 50, norm, projection."""

    def __init__(self, config) -> None:
        super().__init__()
        self.grid = config.grid
        self.audio_encoder = AudioEncoder(config)
        norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.audio_proj = nn.Sequential(norm, nn.Linear(config.width, config.prompt_width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The prompt."""
        x = self.audio_encoder(features).unflatten(1, self.grid).mean(dim=1)
        return self.audio_proj((x[:, ::2] + x[:, 1::2]) / 2 / 50)
