"""ClapCap's and Pengi's TransformerMapper in PyTorch, from its equations and the names in released archives.

Deshmukh et al. 2023 (arXiv 2305.11834, section 3); Elizalde et al. 2023 (arXiv 2309.05767).
"""

import torch
from torch import nn


class Attention(nn.Module):
    """Queries without a bias, keys and values in one matrix without one, a projection with one."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, x):
        rows, length, width = x.shape
        queries = self.to_queries(x).reshape(rows, length, self.num_heads, -1)
        keys, values = self.to_keys_values(x).reshape(rows, length, 2, self.num_heads, -1).unbind(2)
        scores = torch.einsum("bnhd,bmhd->bnmh", queries, keys) * (width // self.num_heads) ** -0.5
        out = torch.einsum("bnmh,bmhd->bnhd", scores.softmax(dim=2), values)
        return self.project(out.reshape(rows, length, width))


class Layer(nn.Module):
    def __init__(self, width, num_heads, mlp_dim):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, num_heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, mlp_dim), "fc2": nn.Linear(mlp_dim, width)})

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](torch.relu(self.mlp["fc1"](self.norm2(x))))


class TransformerMapper(nn.Module):
    """A clip's vector to a prefix: the states of the learned vectors that stand behind it."""

    def __init__(self, input_width, width, num_inputs, num_vectors, num_layers, num_heads, mlp_dim):
        super().__init__()
        self.num_inputs = num_inputs
        self.linear = nn.Linear(input_width, num_inputs * width)
        self.prefix_const = nn.Parameter(torch.randn(num_vectors, width))
        self.layers = nn.ModuleList(Layer(width, num_heads, mlp_dim) for _ in range(num_layers))

    def forward(self, x):
        x = x / x.norm(2, -1, keepdim=True)
        x = self.linear(x).view(len(x), self.num_inputs, -1)
        x = torch.cat([x, self.prefix_const[None].expand(len(x), -1, -1)], dim=1)
        for layer in self.layers:
            x = layer(x)
        return x[:, self.num_inputs :]
