"""CNN14 in PyTorch, from table 1 of Kong et al. 2020 (arXiv 1912.10211) and the names of PANNs' archives."""

import torch
from torch import nn


class ConvBlock(nn.Module):
    """3 x 3 convolutions without bias, each with BatchNorm and ReLU, and the mean of squares of ``pool``."""

    def __init__(self, inputs: int, outputs: int, pool: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pool = pool

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return nn.functional.avg_pool2d(x, self.pool)


class Cnn14(nn.Module):
    """Without the front-end and the noise of training."""

    def __init__(self, num_mels: int, channels: tuple[int, ...], num_classes: int | None):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(num_mels)
        self.num_blocks = len(channels)
        for i, (inputs, outputs) in enumerate(zip((1, *channels), channels, strict=False)):
            is_last = i == self.num_blocks - 1
            setattr(self, f"conv_block{i + 1}", ConvBlock(inputs, outputs, 1 if is_last else 2))
        self.fc1 = nn.Linear(channels[-1], channels[-1])
        if num_classes is not None:
            self.fc_audioset = nn.Linear(channels[-1], num_classes)

    def forward(self, features):  # [B T F]
        x = features[:, None]
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        for i in range(self.num_blocks):
            x = getattr(self, f"conv_block{i + 1}")(x)
        states = x.mean(dim=3)  # [B D T']
        pooled = states.max(dim=2).values + states.mean(dim=2)
        clip = torch.relu(self.fc1(pooled))
        outputs = {"tokens": states.transpose(1, 2), "clip": clip}
        if hasattr(self, "fc_audioset"):
            outputs["logits"] = self.fc_audioset(clip)
        return outputs


def build(config) -> Cnn14:
    """In evaluation mode, with running statistics as of decibels and of a network's inside."""
    module = Cnn14(config.num_mels, config.channels, config.num_classes).eval()
    generator = torch.Generator().manual_seed(2)
    for name, buffer in module.named_buffers():
        if name == "bn0.running_mean":
            buffer.normal_(-40.0, 10.0, generator=generator)
        elif name == "bn0.running_var":
            buffer.uniform_(50.0, 400.0, generator=generator)
        elif name.endswith("running_mean"):
            buffer.normal_(0.0, 0.5, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return module
