"""HTSAT with LAION-CLAP's feature fusion, for recordings of any length.

Wu et al. 2022, https://arxiv.org/abs/2211.06687, section 2.3. Four log-mels of a recording [B 4 T F]
(`alm_jax/ops/frontends/fusion.py`): the whole, squeezed into a clip, and three parts of it. The whole goes through
HTSAT's patch embedding, each part through one with patches three times as wide; the three maps stand side by side, as
wide as the whole's, and `FeatureFusion` joins them. What is no longer than a clip takes its first map alone.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alm_jax.encoders.audio import htsat
from alm_jax.encoders.audio.htsat import Htsat, HtsatConfig
from alm_jax.encoders.family import Family
from alm_jax.errors import UserError
from alm_jax.nn.feature_fusion import FeatureFusion
from alm_jax.nn.norm import Moments
from alm_jax.nn.parameter import KERNEL_INITS
from alm_jax.ops.frontends import NUM_MAPS, ClipSpec, FusionSpec

NUM_PARTS = NUM_MAPS - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class HtsatFusionConfig(HtsatConfig):
    """Shape of an HTSAT with feature fusion; the fields are HTSAT's."""


VARIANTS = {
    name: HtsatFusionConfig(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    )
    for name, config in htsat.VARIANTS.items()
    if name != "large"
}
TINY, NANO = VARIANTS["tiny"], VARIANTS["nano"]


class HtsatFusion(Htsat):
    """Module from four log-mels of each recording to its vector [B D], in ``dtype``.

    Parameters: `Htsat`'s, ``part_embed`` and ``fusion``.
    """

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B 4 T F"],
        longer: Bool[Array, " B"] | None = None,
        *,
        train: bool = False,
        row_mask: Bool[Array, " B"] | None = None,
        moments: Moments | None = None,
    ) -> Float[Array, "B D"]:
        """Encodes recordings.

        Args:
            longer: True for recordings longer than a clip, whose parts are joined to the whole; None: none is.
            row_mask: True for real rows. In training the statistics of the fusion are those of the longer ones among
                them (as published), and where there is none the running ones stay (there, one row is called longer).
            moments: of the whole batch [B 4 T F], for ``feature_norm``; the fusion has its statistics from the rows
                at hand.
        """
        if features.shape[1] != NUM_MAPS:
            raise UserError(
                f"features have {features.shape[1]} maps a recording; feature fusion takes {NUM_MAPS}: use a FusionSpec"
            )
        longer = jnp.zeros(len(features), jnp.bool_) if longer is None else longer
        x = self.prepare(features, train, row_mask, moments)
        whole = self.embed("patch_embed", x[:, 0])
        parts = self.embed("part_embed", x[:, 1:].reshape(-1, *x.shape[2:]), NUM_PARTS)
        rows, columns, width = parts.shape[1:]
        parts = parts.reshape(-1, NUM_PARTS, rows, columns, width).swapaxes(1, 2)
        parts = parts.reshape(-1, rows, NUM_PARTS * columns, width)
        missing = whole.shape[2] - parts.shape[2]
        parts = jnp.pad(parts, ((0, 0), (0, 0), (0, missing), (0, 0)))
        fusion = FeatureFusion(self.dtype, KERNEL_INITS[self.config.kernel_init], name="fusion")
        real = longer if row_mask is None else longer & row_mask
        fused = fusion(whole, parts, train=train, mask=real)
        return self.transform(jnp.where(longer[:, None, None, None], fused, whole), train)


FAMILY = Family(
    name="htsat_fusion",
    kind="audio encoder",
    config_type=HtsatFusionConfig,
    build=HtsatFusion,
    variants=VARIANTS,
    normalises_inside=True,
    example=lambda config: (
        jax.ShapeDtypeStruct((2, NUM_MAPS, config.num_frames, config.num_mels), jnp.float32),
        jax.ShapeDtypeStruct((2,), jnp.bool_),
    ),
    # A FusionSpec: the interface of every front-end, with four maps a recording.
    frontend=FusionSpec(clip=ClipSpec(clip_sec=10.0)),
    takes=frozenset({"train", "row_mask", "moments", "longer"}),
    source="https://arxiv.org/abs/2211.06687",
)
