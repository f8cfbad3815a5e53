"""BEATs in PyTorch, from Chen et al. 2022 (arXiv 2212.09058), its references, and the names of released archives."""

import math

import torch
from torch import nn


class Attention(nn.Module):
    """Queries, keys and values; a bias for each bucket of distances, and the gate that lets it through."""

    def __init__(self, config, table: nn.Embedding):
        super().__init__()
        width, self.num_heads = config.width, config.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.relative_attention_bias = table
        self.grep_linear = nn.Linear(width // self.num_heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, self.num_heads, 1, 1))
        self.max_distance = config.max_distance

    def buckets(self, length: int):
        one_way = self.relative_attention_bias.num_embeddings // 2
        exact = one_way // 2
        offset = torch.arange(length)[None, :] - torch.arange(length)[:, None]
        distance = offset.abs()
        ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (ratio * (one_way - exact)).long()).clamp(max=one_way - 1)
        return torch.where(distance < exact, distance, far) + one_way * (offset > 0)

    def forward(self, x, mask):
        batch, length, width = x.shape

        def split(layer):
            return layer(x).view(batch, length, self.num_heads, -1).transpose(1, 2)

        query, key, value = split(self.q_proj), split(self.k_proj), split(self.v_proj)
        bias = self.relative_attention_bias(self.buckets(length)).permute(2, 0, 1)[None]
        gates = self.grep_linear(query).view(batch, self.num_heads, length, 2, 4).sum(-1).sigmoid()
        a, b = gates[..., :1], gates[..., 1:]
        scores = query @ key.transpose(2, 3) / math.sqrt(width // self.num_heads)
        scores = scores + (a * (b * self.grep_a - 1) + 2) * bias
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
        return self.out_proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width))


class Layer(nn.Module):
    """DeepNorm around both halves (Wang et al. 2022, arXiv 2203.00555)."""

    def __init__(self, config, table: nn.Embedding):
        super().__init__()
        self.self_attn = Attention(config, table)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.width)
        self.final_layer_norm = nn.LayerNorm(config.width)
        self.alpha = math.pow(2 * config.num_layers, 1 / 4)

    def forward(self, x, mask):
        x = self.self_attn_layer_norm(self.alpha * x + self.self_attn(x, mask))
        return self.final_layer_norm(self.alpha * x + self.fc2(nn.functional.gelu(self.fc1(x))))


class PositionConv(nn.Module):
    """Weight norm over the taps (``dim=2``): gain g of a tap, direction v over all its channels."""

    def __init__(self, config):
        super().__init__()
        width, self.groups, window = config.width, config.position_groups, config.position_window
        self.weight_g = nn.Parameter(torch.ones(1, 1, window))
        self.weight_v = nn.Parameter(torch.randn(width, width // self.groups, window))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        norm = self.weight_v.pow(2).sum(dim=(0, 1), keepdim=True).sqrt()
        weight = self.weight_g * self.weight_v / norm
        window = weight.shape[-1]
        y = nn.functional.conv1d(x, weight, self.bias, padding=window // 2, groups=self.groups)
        return nn.functional.gelu(y[..., : x.shape[-1]])


class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.pos_conv = nn.Sequential(PositionConv(config))
        self.layer_norm = nn.LayerNorm(config.width)
        table = nn.Embedding(config.num_buckets, config.num_heads)
        self.layers = nn.ModuleList(Layer(config, table) for _ in range(config.num_layers))

    def forward(self, x, mask):
        if mask is not None:
            x = x * mask[..., None]
        x = self.layer_norm(x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2))
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Beats(nn.Module):
    """Frames of a mask belong to patches in reading order, a patch real where any of its frames is."""

    def __init__(self, config):
        super().__init__()
        self.patch_embedding = nn.Conv2d(
            1, config.patch_width, config.patch_size, config.patch_size, bias=False
        )
        self.layer_norm = nn.LayerNorm(config.patch_width)
        self.post_extract_proj = nn.Linear(config.patch_width, config.width)
        self.encoder = Encoder(config)
        if config.num_classes is not None:
            self.predictor = nn.Linear(config.width, config.num_classes)

    def forward(self, features, mask=None):  # [B T F], True for real frames
        x = self.patch_embedding(features[:, None]).flatten(2).transpose(1, 2)
        if mask is not None:
            extra = mask.shape[1] % x.shape[1]
            mask = mask[:, : mask.shape[1] - extra].reshape(len(x), x.shape[1], -1).any(-1)
        x = self.encoder(self.post_extract_proj(self.layer_norm(x)), mask)
        outputs = {"tokens": x}
        if hasattr(self, "predictor"):
            weights = torch.ones_like(x[..., 0]) if mask is None else mask.to(x.dtype)
            logits = self.predictor(x) * weights[..., None]
            outputs["logits"] = logits.sum(1) / weights.sum(1, keepdim=True)
        return outputs


def build(config) -> Beats:
    """In evaluation mode."""
    return Beats(config).eval()
