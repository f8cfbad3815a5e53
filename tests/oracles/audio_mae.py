"""AudioMAE in PyTorch, from the equations: ViT encoder, and either decoder.

Names of modules are those of the released checkpoints, so that the state dict has their keys. Positions are buffers
that whoever builds the module fills.
"""

import itertools

import torch
from torch import nn


class Attention(nn.Module):
    """Multi-head self-attention, query, key and value in one product."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def attend(self, query: torch.Tensor, key: torch.Tensor, head: int) -> torch.Tensor:
        """Scores of one head."""
        return query @ key.mT / query.shape[-1] ** 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x -> W_o softmax(scores) v, head by head."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        size = query.shape[-1] // self.num_heads
        heads = []
        for i in range(self.num_heads):
            q, k, v = (part[..., i * size : (i + 1) * size] for part in (query, key, value))
            heads.append(torch.softmax(self.attend(q, k, i), dim=-1) @ v)
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
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, width: int, num_heads: int, mlp_dim: int, eps: float) -> None:
        super().__init__()
        self.attn = Attention(width, num_heads)
        self.mlp = Mlp(width, mlp_dim)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both halves."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MetaMlp(nn.Module):
    """The network of the bias."""

    def __init__(self, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(2, hidden), nn.Linear(hidden, num_heads)

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """Log distances [... 2] to a number a head."""
        return self.fc2(torch.relu(self.fc1(distance)))


class WindowAttention(Attention):
    """Cosine attention of a set of patches at (time, frequency) ``places`` of the window."""

    def __init__(self, width: int, num_heads: int, hidden: int, places: list[tuple[int, int]]) -> None:
        super().__init__(width, num_heads)
        self.tau = nn.Parameter(torch.ones(num_heads))
        self.meta_mlp = MetaMlp(hidden, num_heads)
        self.places = torch.tensor(places, dtype=torch.float64)
        self.allowed: torch.Tensor | None = None

    def attend(self, query: torch.Tensor, key: torch.Tensor, head: int) -> torch.Tensor:
        """cos(q, k) / max(tau, 0.01) + bias - 100 where a pair may not meet."""
        norms = query.norm(dim=-1)[..., :, None] * key.norm(dim=-1)[..., None, :]
        scores = query @ key.mT / norms.clamp(min=1e-6) / self.tau[head].clamp(min=0.01)
        offset = self.places[:, None] - self.places[None, :]
        distance = torch.sign(offset) * torch.log(1 + offset.abs())
        scores = scores + self.meta_mlp(distance.to(query.dtype))[..., head]
        return scores if self.allowed is None else scores - 100.0 * ~self.allowed


class SwinBlock(nn.Module):
    """x + norm1(attn(x)), then x + norm2(mlp(x)); every window by itself, its patches looked up by place."""

    def __init__(self, config, grid: tuple[int, int], *, shifted: bool) -> None:
        super().__init__()
        rows, columns = grid
        high, wide = min(rows, config.window_size), min(columns, config.window_size)
        self.grid, self.window = grid, (high, wide)
        self.shift = high // 2 if shifted and rows > high else 0
        places = list(itertools.product(range(high), range(wide)))
        self.attn = WindowAttention(config.width, config.num_heads, config.bias_dim, places)
        self.mlp = Mlp(config.width, config.mlp_dim)
        eps = config.layer_norm_eps
        self.norm1, self.norm2 = nn.LayerNorm(config.width, eps), nn.LayerNorm(config.width, eps)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        """Attention of each window; patch (r, c) of a window that reaches over the end comes from the beginning."""
        (rows, columns), (high, wide) = self.grid, self.window
        mixed = torch.zeros_like(x)
        for top, left in itertools.product(range(0, rows, high), range(0, columns, wide)):
            times = [top + self.shift + i for i in range(high)]
            ids, wrapped = [], []
            for time, band in itertools.product(times, range(left, left + wide)):
                ids.append(time % rows * columns + band)
                wrapped.append(time >= rows)
            beyond = torch.tensor(wrapped)
            self.attn.allowed = beyond[:, None] == beyond[None, :]
            mixed[:, ids] = self.attn(x[:, ids])
        return mixed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both halves."""
        x = x + self.norm1(self.mix(x))
        return x + self.norm2(self.mlp(x))


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, patch_size, patch_size)


class AudioMae(nn.Module):
    """Encoder of the visible patches and decoder of all; ``is_local`` says which."""

    def __init__(self, config, encoder_positions, decoder_positions, *, is_local: bool) -> None:
        super().__init__()
        encoder, decoder = config.encoder, config.decoder
        self.patch_embed = PatchEmbed(encoder.width, encoder.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, encoder.width))
        sizes = encoder.width, encoder.num_heads, encoder.mlp_dim, encoder.layer_norm_eps
        self.blocks = nn.ModuleList([Block(*sizes) for _ in range(encoder.num_layers)])
        self.norm = nn.LayerNorm(encoder.width, encoder.layer_norm_eps)
        self.decoder_embed = nn.Linear(encoder.width, decoder.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        self.is_local = is_local
        if is_local:
            blocks = [SwinBlock(decoder, config.grid, shifted=i % 2 == 1) for i in range(decoder.num_layers)]
        else:
            sizes = decoder.width, decoder.num_heads, decoder.mlp_dim, decoder.layer_norm_eps
            blocks = [Block(*sizes) for _ in range(decoder.num_layers)]
        self.decoder_blocks = nn.ModuleList(blocks)
        self.decoder_norm = nn.LayerNorm(decoder.width, decoder.layer_norm_eps)
        self.decoder_pred = nn.Linear(decoder.width, encoder.patch_size**2)
        # A row of zeros for the class token, as the archives have it.
        for name, positions in (("pos_embed", encoder_positions), ("decoder_pos_embed", decoder_positions)):
            padded = nn.functional.pad(torch.as_tensor(positions), (0, 0, 1, 0))
            self.register_buffer(name, padded[None])

    def forward(self, features: torch.Tensor, visible_ids: torch.Tensor) -> torch.Tensor:
        """Features [B T F] and the patches to be seen [B n] to the pixels of all patches [B N p^2]."""
        x = self.patch_embed.proj(features[:, None]).flatten(2).mT + self.pos_embed[:, 1:]
        seen = torch.stack([clip[ids] for clip, ids in zip(x, visible_ids, strict=True)])
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), seen], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        num_patches = self.pos_embed.shape[1] - 1
        patches = self.mask_token.expand(len(x), num_patches, -1).clone()
        for clip, states, ids in zip(patches, x[:, 1:], visible_ids, strict=True):
            clip[ids] = states
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        if self.is_local:
            x = x[:, 1:]
        for block in self.decoder_blocks:
            x = block(x)
        x = self.decoder_pred(self.decoder_norm(x))
        return x if self.is_local else x[:, 1:]
