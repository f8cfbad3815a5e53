"""Contrastive losses: symmetric ones, each in a plain form and in forms for large batches and many devices, and L_atr.

All return (sum, weight), whose quotient is the loss, and share these arguments:

- ``audio_emb``, ``text_emb``: rows of L2-normalised embeddings, float32 or bfloat16; bfloat16 ones are multiplied
  as such in the tiled forms. Everything else is computed in float32.
- ``mask``: pairs where it is False are ignored, as rows and as negatives, whatever their embeddings hold.
- ``axis_name``: None for the global batch; inside ``shard_map`` or ``pmap`` the mapped axes. Then the arrays are
  the rows of one device, and so are the sum and the weight returned: the global ones are their sums over the
  devices. Under ``shard_map`` differentiate ``psum(sum)``; under ``pmap`` differentiate the local sum and ``psum``
  the gradients of parameters. Both are exact: the collectives carry the cross-device terms. The cotangent of
  the local sum must be the same on all devices.
- ``impl``, ``tile``: the form and its tiles (``plan``). Under ``jit`` in the scope of a mesh, a global batch is
  spread over the mesh's batch axes, and the loss runs there under ``shard_map``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from alm_jax.batch import BATCH_AXES
from alm_jax.losses.contrastive import onesided, reference, sigmoid, softmax
from alm_jax.losses.contrastive.plan import Impl, Plan, pick_plan
from alm_jax.losses.retrieval import in_batch_retrieval
from alm_jax.losses.sums import MASKED_LOGIT, AxisName, vary
from alm_jax.types import PyTree

__all__ = [
    "Impl",
    "Plan",
    "hard_negative_infonce",
    "multi_positive_infonce",
    "one_way_infonce",
    "pick_plan",
    "sigmoid_loss",
    "symmetric_infonce",
]

SumAndWeight = tuple[Float[Array, ""], Float[Array, ""]]


def symmetric_infonce(
    audio_emb: Float[Array, "b E"],
    text_emb: Float[Array, "b E"],
    logit_scale: Float[Array, ""],
    *,
    mask: Bool[Array, " b"] | None = None,
    axis_name: AxisName | None = None,
    impl: Impl = "auto",
    tile: int | None = None,
) -> SumAndWeight:
    """Sum over real pairs of (l_a + l_t) / 2, and their number: sum / weight = (1 / 2B) sum (l_a + l_t).

    l_a[i] = -log softmax_j(s a_i . t_j)[i] over the texts and l_t[i] = -log softmax_j(s a_j . t_i)[i] over the
    audios, s = ``logit_scale``, for L2-normalised embeddings (Radford et al. 2021, arXiv 2103.00020; the survey
    arXiv 2501.15177 writes tau = 1 / s). A batch of padding only gives (0, 0).
    """

    def body(rows: dict[str, Array], scalars: dict[str, Array], plan: Plan) -> Array:
        return _softmax_sum(plan, False, rows, scalars)

    rows = {"audio": audio_emb, "text": text_emb}
    return _spread(body, rows, {"scale": logit_scale}, mask, axis_name, impl, tile)


def multi_positive_infonce(
    audio_emb: Float[Array, "b E"],
    text_emb: Float[Array, "b E"],
    logit_scale: Float[Array, ""],
    group_ids: Int[Array, " b"],
    *,
    mask: Bool[Array, " b"] | None = None,
    axis_name: AxisName | None = None,
    impl: Impl = "auto",
    tile: int | None = None,
) -> SumAndWeight:
    """``symmetric_infonce`` where all pairs of a group are positives of each other, with equal weight.

    l_a[i] = -1 / |P(i)| sum_{p in P(i)} log softmax_j(s a_i . t_j)[p], P(i) the real rows with ``group_ids`` equal to
    that of i, i among them; l_t likewise. A row with a negative id is alone in its group.

    With the id of the recording, captions of one clip are no negatives of each other: the soft-target
    cross-entropy of WavCaps and ML-CLAP (arXiv 2303.17395, 2406.07012). With a class label it is supervised
    contrastive learning across two modalities: L_out of Khosla et al. 2020 (arXiv 2004.11362, eq. 2), UniCL (Yang et
    al. 2022, arXiv 2204.03610, eq. 2 to 4).
    """

    def body(rows: dict[str, Array], scalars: dict[str, Array], plan: Plan) -> Array:
        return _softmax_sum(plan, True, rows, scalars)

    rows = {"audio": audio_emb, "text": text_emb, "group": group_ids}
    return _spread(body, rows, {"scale": logit_scale}, mask, axis_name, impl, tile)


def hard_negative_infonce(
    audio_emb: Float[Array, "b E"],
    text_emb: Float[Array, "b E"],
    negative_emb: Float[Array, "b K E"],
    logit_scale: Float[Array, ""],
    *,
    negative_mask: Bool[Array, "b K"] | None = None,
    group_ids: Int[Array, " b"] | None = None,
    mask: Bool[Array, " b"] | None = None,
    axis_name: AxisName | None = None,
    impl: Impl = "auto",
    tile: int | None = None,
) -> SumAndWeight:
    """``symmetric_infonce`` with K wrong captions for each audio.

    The softmax of audio i runs over the texts of the batch and over ``negative_emb[i]`` where ``negative_mask[i]`` is
    True, and not over the negatives of others; that of a text runs over the audios, unchanged. With ``group_ids`` the
    positives are those of ``multi_positive_infonce``. CompA (Ghosh et al. 2023, arXiv 2310.08753, eq. 4 and 5), with
    an additive mask: the published code multiplies masked logits by -1e5, which makes large positives of negative
    ones.
    """

    def body(rows: dict[str, Array], scalars: dict[str, Array], plan: Plan) -> Array:
        audio = jnp.where(rows["mask"][:, None], rows["audio"], 0).astype(jnp.float32)
        keep = rows["negative_mask"] & rows["mask"][:, None]
        negatives = jnp.where(keep[:, :, None], rows["negative"], 0).astype(jnp.float32)
        logits = scalars["scale"] * jnp.einsum(
            "be,bke->bk", audio, negatives, precision=lax.Precision.HIGHEST
        )
        extra = jax.nn.logsumexp(jnp.where(keep, logits, MASKED_LOGIT), axis=1)
        return _softmax_sum(plan, "group" in rows, rows, scalars, extra)

    if negative_mask is None:
        negative_mask = jnp.ones(negative_emb.shape[:2], bool)
    rows = {"audio": audio_emb, "text": text_emb, "negative": negative_emb, "negative_mask": negative_mask}
    if group_ids is not None:
        rows["group"] = group_ids
    return _spread(body, rows, {"scale": logit_scale}, mask, axis_name, impl, tile)


def sigmoid_loss(
    audio_emb: Float[Array, "b E"],
    text_emb: Float[Array, "b E"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
    group_ids: Int[Array, " b"] | None = None,
    *,
    mask: Bool[Array, " b"] | None = None,
    axis_name: AxisName | None = None,
    impl: Impl = "auto",
    tile: int | None = None,
) -> SumAndWeight:
    """Sum over all real pairs (i, j) of -log sigmoid(y_ij (s a_i . t_j + b)), and the number of real rows.

    y_ij is 1 where i = j, or where their ``group_ids`` are equal and not negative, and -1 elsewhere. The quotient is
    eq. 1 of Zhai et al. 2023 (SigLIP, arXiv 2303.15343): a mean over rows of sums over columns, which grows with B.
    """

    def body(rows: dict[str, Array], scalars: dict[str, Array], plan: Plan) -> Array:
        audio, text, ids = _named(rows, plan.axis_name)
        scale, bias = (vary(scalars[name].astype(jnp.float32), audio) for name in ("scale", "bias"))
        if plan.impl == "reference":
            return reference.sigmoid_sum(audio, text, scale, bias, ids)
        if plan.impl == "onesided" and plan.axis_name is not None:
            return onesided.sigmoid_sum(audio, text, scale, bias, ids, axis_name=plan.axis_name)
        return sigmoid.sigmoid_sum(plan, audio, text, scale, bias, ids)

    rows = {"audio": audio_emb, "text": text_emb}
    if group_ids is not None:
        rows["group"] = group_ids
    return _spread(body, rows, {"scale": logit_scale, "bias": logit_bias}, mask, axis_name, impl, tile)


def one_way_infonce(
    query_emb: Float[Array, "b E"],
    candidate_emb: Float[Array, "b E"],
    logit_scale: Float[Array, ""],
    *,
    mask: Bool[Array, " b"] | None = None,
    axis_name: AxisName | None = None,
) -> SumAndWeight:
    """`in_batch_retrieval`: each query is to find its candidate among those of the batch, and not the other way round.

    It has one form, which holds 256 rows of scores at a time; on a mesh each device computes its own queries.
    """

    def body(rows: dict[str, Array], scalars: dict[str, Array], plan: Plan) -> Array:
        scale = vary(scalars["scale"].astype(jnp.float32), rows["audio"])
        return in_batch_retrieval(
            rows["audio"], rows["text"], scale, mask=rows["mask"], axis_name=plan.axis_name
        )[0]

    rows = {"audio": query_emb, "text": candidate_emb}
    return _spread(body, rows, {"scale": logit_scale}, mask, axis_name, "onesided", None)


def _softmax_sum(
    plan: Plan,
    grouped: bool,
    rows: dict[str, Array],
    scalars: dict[str, Array],
    extra_lse: Array | None = None,
) -> Array:
    """Computes the sum of a softmax loss in the form that ``plan`` names."""
    audio, text, ids = _named(rows, plan.axis_name)
    scale = vary(scalars["scale"].astype(jnp.float32), audio)
    if plan.impl == "reference":
        return reference.softmax_sum(audio, text, scale, ids, extra_lse)
    if plan.impl == "onesided" and plan.axis_name is not None:
        return onesided.softmax_sum(audio, text, scale, ids, extra_lse, axis_name=plan.axis_name)
    return softmax.softmax_sum(plan, grouped, audio, text, scale, ids, extra_lse)


def _named(rows: dict[str, Array], axis_name: AxisName | None) -> tuple[Array, Array, Array]:
    """Returns embeddings with padding set to zero, and ids: a row's group, or an id that no other row has; -1 is
    padding."""
    mask = rows["mask"]
    audio, text = (jnp.where(mask[:, None], rows[name], 0) for name in ("audio", "text"))
    index = jnp.arange(mask.shape[0], dtype=jnp.int32)
    if axis_name is not None:
        index = index + lax.axis_index(axis_name) * mask.shape[0]
    ids = index
    if "group" in rows:
        ids = jnp.where(rows["group"] >= 0, rows["group"], -2 - index)
    return audio, text, jnp.where(mask, ids, -1)


def _spread(
    body: Callable[[dict[str, Array], dict[str, Array], Plan], Array],
    rows: dict[str, Array],
    scalars: dict[str, Array],
    mask: Array | None,
    axis_name: AxisName | None,
    impl: Impl,
    tile: int | None,
) -> SumAndWeight:
    """Computes (sum, weight) of ``body``, which sees the rows of one device, whether the caller is mapped or not."""
    num_rows = rows["audio"].shape[0]
    rows = {**rows, "mask": jnp.ones(num_rows, bool) if mask is None else mask}
    weight = jnp.sum(rows["mask"], dtype=jnp.float32)
    if axis_name is not None:
        num_shards = lax.axis_size(axis_name)
        plan = pick_plan(
            # A device sees only its own rows, so the plain form is the one that gathers.
            "onesided" if impl == "reference" else impl,
            batch_size=num_rows * num_shards,
            num_shards=num_shards,
            platform=_platform(),
            tile=tile,
            axis_name=axis_name,
        )
        return body(rows, scalars, plan), weight

    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(
        name
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if name in BATCH_AXES and size > 1 and kind is not AxisType.Manual
    )
    num_shards = 1
    for name in axes:
        num_shards *= mesh.shape[name]
    plan = pick_plan(
        impl,
        batch_size=num_rows,
        num_shards=num_shards,
        platform=_platform(),
        tile=tile,
        axis_name=axes or None,
    )
    if plan.impl == "reference" or not axes:
        # The partitioner spreads the plain form: in the program there is no mapped axis.
        return body(rows, scalars, dataclasses.replace(plan, axis_name=None)), weight

    def on_device(rows: dict[str, Array], scalars: dict[str, Array]) -> Array:
        return lax.psum(body(rows, scalars, plan), axes)

    padding = -num_rows % num_shards
    if padding:
        rows = jax.tree.map(lambda x: jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1)), rows)
    specs: PyTree = jax.tree.map(lambda _: P(axes), rows), jax.tree.map(lambda _: P(), scalars)
    total: Any = jax.shard_map(on_device, in_specs=specs, out_specs=P())(rows, scalars)
    return total, weight


def _platform() -> str:
    """Returns the platform to compile for: that of the mesh in scope, else the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
