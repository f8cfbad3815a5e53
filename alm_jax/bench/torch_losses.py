"""The losses of other projects, in PyTorch, on the same inputs: forward and backward."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from alm_jax.bench.open_clip import load_loss_module
from alm_jax.errors import UserError

COMPILED = "+compile"
"""Suffix of a peer's name that runs it through ``torch.compile``."""


def _open_clip_infonce() -> Callable[..., Any]:
    loss = load_loss_module().ClipLoss()
    return lambda audio_emb, text_emb, scale: loss(audio_emb, text_emb, scale)


def _open_clip_sigmoid() -> Callable[..., Any]:
    loss = load_loss_module().SigLipLoss()
    return lambda audio_emb, text_emb, scale, bias: loss(audio_emb, text_emb, scale, bias)


def _transformers_infonce() -> Callable[..., Any]:
    # CLIP's, not CLAP's: ClapModel transposes the second matrix twice and so takes the loss of one direction for both.
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    return lambda audio_emb, text_emb, scale: image_text_contrastive_loss(text_emb @ audio_emb.t() * scale)


def _pytorch_lm() -> Callable[..., Any]:
    import torch.nn.functional as F

    def loss(hidden: Any, kernel: Any, labels: Any) -> Any:
        return F.cross_entropy((hidden @ kernel).float(), labels.long())

    return loss


PEERS: dict[tuple[str, str], Callable[[], Callable[..., Any]]] = {
    ("infonce", "open_clip"): _open_clip_infonce,
    ("infonce", "transformers"): _transformers_infonce,
    ("sigmoid", "open_clip"): _open_clip_sigmoid,
    ("lm", "pytorch"): _pytorch_lm,
}
"""Makers of a peer's function of a loss's inputs, by (loss, peer)."""


def has_peer(loss: str, peer: str) -> bool:
    """Whether ``peer`` has that loss. Raises UserError for an unknown peer."""
    name = peer.removesuffix(COMPILED)
    known = sorted({other for _, other in PEERS})
    if name not in known:
        raise UserError(
            f"there is no peer {peer!r}: known are {', '.join(known)}, each also as NAME{COMPILED}"
        )
    return (loss, name) in PEERS


def torch_pass(
    loss: str,
    peer: str,
    differentiable: Mapping[str, np.ndarray],
    fixed: Mapping[str, np.ndarray],
    *,
    dtype: str,
    device: str,
) -> Callable[[], float]:
    """One forward and backward pass of ``peer``'s form of ``loss``, which returns the loss.

    Args:
        loss, peer: a key of ``PEERS``, the peer with ``+compile`` behind it to compile it.
        differentiable: inputs that get gradients, float32; matrices are rounded to ``dtype``.
        fixed: labels and the like.
        dtype: of the matrices, ``float32`` or ``bfloat16``.
        device: ``cpu`` or ``cuda``.
    """
    import torch

    function = PEERS[loss, peer.removesuffix(COMPILED)]()
    if peer.endswith(COMPILED):
        function = torch.compile(function)
    leaves = {
        name: torch.tensor(value, device=device)
        .to(getattr(torch, dtype) if value.ndim else torch.float32)
        .requires_grad_()
        for name, value in differentiable.items()
    }
    constants = {name: torch.tensor(value, device=device) for name, value in fixed.items()}

    def run() -> float:
        for leaf in leaves.values():
            leaf.grad = None
        total = function(**leaves, **constants)
        total.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return float(total.detach())

    return run


def peak_cuda_bytes(run: Callable[[], float]) -> int:
    """Peak of a card's memory that PyTorch held during ``run``, bytes, inputs included."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated()
