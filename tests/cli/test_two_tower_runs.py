"""What a run of two towers refuses before anything is compiled."""

import pytest

from alm_jax.cli.two_towers import check_microbatches
from alm_jax.encoders.audio import cnn14, htsat, htsat_fusion
from alm_jax.errors import UserError


@pytest.mark.parametrize("audio", [cnn14.VARIANTS["nano"], htsat_fusion.VARIANTS["nano"]])
def test_inner_batch_norms_want_the_whole_batch(audio):
    check_microbatches(audio, 1)
    with pytest.raises(UserError, match="num_microbatches is 2"):
        check_microbatches(audio, 2)


def test_a_norm_of_features_takes_the_moments_of_the_whole_batch():
    check_microbatches(htsat.NANO, 2)
