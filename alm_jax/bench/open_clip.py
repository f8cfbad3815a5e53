"""open_clip's contrastive loss: its own PyTorch code, and its pattern over many devices written in JAX.

The package is not imported: importing it takes torchvision and timm, which its loss does not use and which must fit
the torch at hand. Only ``open_clip/loss.py`` of the installed distribution is run.
"""

import functools
import importlib.metadata
import importlib.util
import types

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from alm_jax.batch import BATCH_AXES
from alm_jax.errors import UserError

DISTRIBUTION = "open_clip_torch"


@functools.cache
def load_loss_module() -> types.ModuleType:
    """The module ``open_clip.loss``, with ``ClipLoss`` and ``SigLipLoss``.

    Raises UserError where open_clip_torch is not installed.
    """
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    path = next((file.locate() for file in files if file.as_posix() == "open_clip/loss.py"), None)
    if path is None:
        raise UserError(
            "the peer open_clip takes the package open_clip_torch, which is not installed; "
            "`pip install 'alm_jax[bench]'` brings it, `pip install --no-deps open_clip_torch` is enough"
        )
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def clip_loss_pattern(
    audio_emb: Float[Array, "B E"], text_emb: Float[Array, "B E"], logit_scale: Float[Array, ""]
) -> Float[Array, ""]:
    """What ``ClipLoss(local_loss=True, gather_with_grad=True)`` computes, on the batch axes of the mesh in scope.

    Every device gathers both sides and computes two matrices of logits, its audios by all texts and its texts by all
    audios: 12 B^2 E FLOPs over all devices, 4 B^2 / n numbers kept on each. For comparing what compilers make of it.
    """

    def body(audio: Array, text: Array, scale: Array) -> Array:
        labels = lax.axis_index(BATCH_AXES) * audio.shape[0] + jnp.arange(audio.shape[0])

        def cross_entropy(own: Array, others: Array) -> Array:
            everyone = lax.all_gather(others, BATCH_AXES, tiled=True)
            logits = scale * jnp.einsum("ie,je->ij", own, everyone, preferred_element_type=jnp.float32)
            return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))

        return lax.pmean((cross_entropy(audio, text) + cross_entropy(text, audio)) / 2, BATCH_AXES)

    rows = P(BATCH_AXES)
    return jax.shard_map(body, in_specs=(rows, rows, P()), out_specs=P())(audio_emb, text_emb, logit_scale)
