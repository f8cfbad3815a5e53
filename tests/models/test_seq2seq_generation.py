"""Greedy decoding of models with an encoder against transformers' `generate`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders import family
from alm_jax.encoders.text import bart, t5
from alm_jax.interop import bart as bart_files
from alm_jax.interop import t5 as t5_files
from alm_jax.interop.format import Format, arrays_to_variables
from alm_jax.models.generation import generate_greedily

NEW = 10
MASK = np.arange(6)[None, :] < np.array([[6], [3]])
SIZES = {
    "vocab_size": 50,
    "width": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "mlp_dim": 48,
}


@pytest.mark.parametrize(
    ("layout", "own", "config", "start_id"),
    [
        (t5_files.T5, t5.FAMILY, t5.T5Config(head_dim=4, tied_head=False, mlp="gated_gelu", **SIZES), 0),
        pytest.param(
            bart_files.BART_LM,
            bart.FAMILY,
            bart.BartConfig(max_positions=32, **SIZES),
            2,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["t5", "bart"],
)
def test_greedy_decoding_equals_transformers(layout: Format, own, config, start_id):
    torch.manual_seed(0)
    theirs = (t5_files if own is t5.FAMILY else bart_files).build_oracle(layout, config)
    theirs.generation_config.forced_eos_token_id = None
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            # Positions drown tokens, and norms stay as they are, or a tied head writes one token for ever.
            if "norm" not in name:
                parameter.normal_(0, 5.0 if "embed_positions" in name else 1.0)
    saved = {key: value.numpy() for key, value in theirs.state_dict().items()}
    variables = jax.tree.map(jnp.asarray, arrays_to_variables(layout, config, saved))
    source = np.random.default_rng(0).integers(3, 50, MASK.shape)
    settings = transformers.GenerationConfig(
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        decoder_start_token_id=start_id,
    )
    written = theirs.generate(
        torch.tensor(source), attention_mask=torch.tensor(MASK).long(), generation_config=settings
    )

    @jax.jit
    def write(variables, ids, mask):
        states = family.apply(own, config, variables, ids, mask, method="encode")
        start = jnp.full((2, 1), start_id, jnp.int32), jnp.ones((2, 1), bool)
        read = {"method": "decode", "source": states, "source_mask": mask}
        return generate_greedily(own, config, variables, *start, num_new_tokens=NEW, end_id=-1, **read)

    ours = write(variables, jnp.asarray(source, jnp.int32), jnp.asarray(MASK))
    np.testing.assert_array_equal(ours.ids, written[:, 1:])
    assert len({tuple(row) for row in np.asarray(ours.ids)}) == 2
    assert min(len(set(row)) for row in ours.ids.tolist()) > 1
