"""What the model of every objective can do, by its protocols, on the batches that its config asks for."""

import jax
import jax.numpy as jnp

from alm_jax.bench.step import abstract_batch
from alm_jax.models import capabilities
from alm_jax.models.capabilities import TextTokens
from alm_jax.objectives import build_objective

TOKENS = TextTokens((0,), (2,), 1)
PROTOCOLS = {
    "tiny_calm": {"EmbedsAudio", "EmbedsText", "Reconstructs"},
    "tiny_config": {"EmbedsAudio", "EmbedsText"},
    "tiny_ctal": {"EmbedsAudio", "Reconstructs"},
    "tiny_language_modeling": {"GeneratesText"},
    "tiny_masked_prediction": {"EmbedsAudio", "LabelsPatches"},
    "tiny_masked_spectrogram": {"EmbedsAudio", "Reconstructs"},
    "tiny_query_transformer": {"EmbedsAudio", "EmbedsText", "MatchesPairs"},
    "tiny_multi_task": {"EmbedsAudio", "EmbedsText", "GeneratesText", "Reconstructs"},
    "tiny_tokenizer_distillation": {"EmbedsAudio", "LabelsPatches"},
    "tiny_unit_language_modeling": {"GeneratesText", "EncodesUnits"},
}


def protocols_of(model):
    kinds = {name: kind for name, kind in vars(capabilities).items() if isinstance(kind, type)}
    return {
        name
        for name, kind in kinds.items()
        if getattr(kind, "_is_runtime_protocol", False) and isinstance(model, kind)
    }


def test_a_model_has_the_protocols_that_are_asked_of_it(tiny_name, load_tiny):
    config = load_tiny(tiny_name)
    objective = build_objective(config.objective)
    model = objective.capabilities(TOKENS)
    assert protocols_of(model) == PROTOCOLS[tiny_name]
    # A static argument of `jax.jit`: equal models share a compilation.
    again = build_objective(config.objective).capabilities(TOKENS)
    assert model == again
    assert hash(model) == hash(again)

    variables = jax.eval_shape(objective.init, jax.random.key(0))
    batch = abstract_batch(config)
    rows = batch["text_ids"].shape[0]
    ids, mask = batch["text_ids"], batch["text_mask"]

    def shapes(method, *args, **options):
        return jax.eval_shape(lambda *args: method(*args, **options), variables, *args)

    if isinstance(model, capabilities.EmbedsAudio):
        emb = shapes(model.embed_audio, batch)
        assert emb.shape[0] == rows
        assert emb.dtype == jnp.float32
        if isinstance(model, capabilities.EmbedsText):
            text = shapes(model.embed_text, ids, mask)
            assert text.shape == (rows, emb.shape[-1])
            assert text.dtype == jnp.float32
    if isinstance(model, capabilities.Reconstructs):
        features, hidden, drawn = shapes(model.reconstruct, batch)
        assert features.shape[0] == rows
        assert features.shape == hidden.shape == drawn.shape
        assert hidden.dtype == jnp.bool_
    if isinstance(model, capabilities.LabelsPatches):
        maps = shapes(model.label_patches, batch)
        assert {x.shape for x in maps[1:] if x is not None} == {maps.labels.shape}
        assert shapes(model.count_labels, batch).ndim == 1
    if isinstance(model, capabilities.MatchesPairs):
        logits = shapes(model.match, shapes(model.encode_states, batch), ids, mask)
        assert logits.shape == (rows,)
    if isinstance(model, capabilities.EncodesUnits):
        units, mask = shapes(model.encode_units, batch)
        assert units.shape == mask.shape
    if isinstance(model, capabilities.GeneratesText):
        written = jax.eval_shape(
            lambda variables, batch: model.generate_text(variables, batch, TOKENS, num_new_tokens=3),
            variables,
            batch,
        )
        assert written.ids.shape == written.mask.shape == (rows, 3)
