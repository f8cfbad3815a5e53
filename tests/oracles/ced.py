"""CED in PyTorch, from Dinkel et al. 2023 (arXiv 2308.11957) and the names of its archives.

Its blocks are those of ViT (Dosovitskiy et al. 2020, arXiv 2010.11929, equations 1 to 4, appendix A).
"""

import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.width
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=config.layer_norm_eps) for _ in range(2))
        self.attn = Attention(width, config.num_heads)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, config.mlp_dim), nn.Linear(config.mlp_dim, width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


class Ced(nn.Module):
    """Without patch dropout; tokens are those of all chunks of a recording, one after the other."""

    def __init__(self, config):
        super().__init__()
        width, size = config.width, config.patch_size
        self.chunk_frames = config.chunk_frames
        self.init_bn = nn.Sequential(
            nn.Identity(), nn.BatchNorm2d(config.num_mels, momentum=0.01), nn.Identity()
        )
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(1, width, size, size)
        self.time_pos_embed = nn.Parameter(torch.randn(1, width, 1, config.chunk_frames // size) * 0.02)
        self.freq_pos_embed = nn.Parameter(torch.randn(1, width, config.num_mels // size, 1) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        if config.num_classes is not None:
            self.outputlayer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.num_classes))

    def encode(self, chunk):  # [B F T]
        x = self.patch_embed.proj(chunk[:, None])
        x = x + self.time_pos_embed[..., : x.shape[-1]] + self.freq_pos_embed
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, features):  # [B T F]
        x = self.init_bn(features.transpose(1, 2)[..., None])[..., 0]
        chunks = list(x.split(self.chunk_frames, dim=-1))
        if len(chunks) > 1:
            chunks[-1] = nn.functional.pad(chunks[-1], (0, self.chunk_frames - chunks[-1].shape[-1]))
        parts = [self.encode(chunk) for chunk in chunks]
        tokens = torch.cat(parts, dim=1)
        outputs = {"tokens": tokens}
        if hasattr(self, "outputlayer"):
            probabilities = torch.stack([self.outputlayer(part.mean(1)).sigmoid() for part in parts])
            outputs["logits"] = probabilities.mean(0).logit()
        return outputs


def build(config) -> Ced:
    """In evaluation mode, with running statistics as of decibels."""
    module = Ced(config).eval()
    generator = torch.Generator().manual_seed(2)
    module.init_bn[1].running_mean.normal_(-20.0, 10.0, generator=generator)
    module.init_bn[1].running_var.uniform_(50.0, 400.0, generator=generator)
    return module
