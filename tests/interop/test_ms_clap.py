"""MS-CLAP's archives: written by torch.save, imported by `alm import`, and then embedding real clips and texts.

That the embeddings are the oracle's in float32 and float64 is in tests/interop/test_parity.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import alm_jax
from alm_jax.cli import import_
from alm_jax.encoders.audio.cnn14 import Cnn14Config
from alm_jax.encoders.audio.htsat import HtsatConfig
from alm_jax.encoders.text.bert import BertConfig
from alm_jax.encoders.text.gpt2 import Gpt2Config
from alm_jax.errors import UserError
from alm_jax.interop import ms_clap
from alm_jax.interop.clap_config import config_to_clap
from alm_jax.interop.folder import import_model
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.parity import load_oracle, randomise
from alm_jax.models.two_towers import TwoTowersConfig, encode_text
from alm_jax.ops.frontends import compute_features
from alm_jax.run.config_json import from_json, to_json

BERT = BertConfig(
    vocab_size=300, width=64, num_layers=2, num_heads=1, mlp_dim=96, max_positions=40, positions="bert",
    num_token_types=2, pad_id=0, layer_norm_eps=1e-12, pooling="first",
)  # fmt: skip
GPT2 = Gpt2Config(
    vocab_size=300, width=64, num_layers=2, num_heads=1, mlp_dim=96, max_positions=40, compat=True
)
CONFIGS = {
    "2022": TwoTowersConfig(
        frontend=ms_clap.FRONTENDS["2022"],
        audio=Cnn14Config(channels=(4, 8, 16)),
        text=BERT,
        embed_dim=32,
        projection="residual",
    ),
    "2023": TwoTowersConfig(
        frontend=ms_clap.FRONTENDS["2023"],
        audio=HtsatConfig(embed_dim=16, depths=(1, 2), num_heads=(2, 4)),
        text=GPT2,
        embed_dim=32,
        projection="residual",
    ),
}
LAYOUTS = {"2022": ms_clap.MS_CLAP_2022, "2023": ms_clap.MS_CLAP_2023}
# What the authors' models have besides.
OTHERS = {
    "2022": (
        "audio_encoder.base.spectrogram_extractor.stft.conv_real.weight",
        "audio_encoder.base.logmel_extractor.melW",
        "audio_encoder.base.fc_audioset.bias",
        "caption_encoder.base.embeddings.position_ids",
    ),
    "2023": (
        "audio_encoder.base.htsat.logmel_extractor.melW",
        "audio_encoder.base.htsat.tscam_conv.weight",
        "audio_encoder.base.htsat.layers.1.blocks.1.attn_mask",
        "caption_encoder.base.h.0.attn.bias",
        "caption_encoder.base.h.1.attn.masked_bias",
    ),
}


@pytest.fixture(scope="module", params=["2022", "2023"])
def published(request, tmp_path_factory):
    """Year, oracle, and the archive of its weights."""
    torch.manual_seed(0)
    module = load_oracle("ms_clap").build(CONFIGS[request.param])
    randomise(module)
    state = module.state_dict() | {key: torch.ones(2) for key in OTHERS[request.param]}
    path = tmp_path_factory.mktemp("ms_clap") / f"CLAP_weights_{request.param}.pth"
    torch.save({"epoch": 1, "model": state}, path)
    return request.param, module, path


def test_an_archive_says_its_config_and_holds_every_weight(published):
    year, module, path = published
    found = import_model(path)
    assert found.layout is LAYOUTS[year]
    assert found.config == CONFIGS[year]
    back = variables_to_arrays(found.layout, found.config, found.variables)
    state = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    parameters = {name for name, _ in module.named_parameters() if ".htsat." not in name}
    assert {key for key in parameters if ".pooler." not in key} <= back.keys()
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, y, strict=True),
        back,
        {key: state[key] for key in back},
    )


def test_a_published_model_embeds_clips_and_texts(published, read_clips, captions, tmp_path):
    """Through ``alm import`` and `from_pretrained`, with the tokenizer put beside the weights."""
    year, module, path = published
    import_.run([str(path), "--out", str(tmp_path / "model")])
    with pytest.raises(UserError, match=r"has no tokenizer.json"):
        alm_jax.from_pretrained(tmp_path / "model")
    tokenizer = build_tokenizer(captions, is_gpt2=year == "2023")
    tokenizer.save(str(tmp_path / "model" / "original" / "tokenizer.json"))
    model = alm_jax.from_pretrained(tmp_path / "model")

    texts = [text for text in captions[:40] if len(text.split()) < 8][:3]
    clip, other = (clip[: 3 * 44100] for clip in read_clips(44100)[:2])
    audio_emb = model.embed_audio([clip, other], sample_rate_hz=44100)
    text_emb = model.embed_text(texts)

    spec = CONFIGS[year].frontend
    # Three seconds are repeated up to the end.
    fitted = np.stack([np.resize(waveform, spec.clip_samples) for waveform in (clip, other)])
    features = np.array(compute_features(jnp.asarray(fitted), spec))
    encodings = tokenizer.encode_batch(texts)
    width = max(len(encoding.ids) for encoding in encodings)
    ids, mask = np.zeros((3, width), np.int64), np.zeros((3, width), bool)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)], mask[row, : len(encoding.ids)] = encoding.ids, True
    with torch.no_grad():
        expected = module(*map(torch.as_tensor, (features, ids, mask))).numpy()
    np.testing.assert_allclose(audio_emb, expected[:2], atol=1e-4)
    np.testing.assert_allclose(text_emb, expected[2:], atol=1e-4)
    assert np.max(np.abs(audio_emb[0] - audio_emb[1])) > 0.01
    assert np.max(np.abs(text_emb[0] - text_emb[1])) > 0.01


def build_tokenizer(captions: list[str], *, is_gpt2: bool) -> Tokenizer:
    """As published: BERT's [CLS] X [SEP] padded with [PAD], or GPT-2's X, a space, the end, padded with "!"."""
    if is_gpt2:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=299, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(captions, trainer)
        tokenizer.add_special_tokens(["<|endoftext|>"])
        end, space = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("Ġ")
        assert tokenizer.token_to_id("!") == 0
        plain = tokenizer.encode("a dog <|endoftext|>").ids
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A Ġ <|endoftext|>", special_tokens=[("Ġ", space), ("<|endoftext|>", end)]
        )
        assert tokenizer.encode("a dog").ids == plain
        tokenizer.enable_padding(pad_id=0, pad_token="!")
        return tokenizer
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


@pytest.mark.slow
def test_the_published_sizes():
    """1024 x (2048 + 1024) and 1024 x (768 + 1024), and twice 1024 of the norms: all that is not a tower."""
    counts = {}
    for year, audio in (("2022", Cnn14Config()), ("2023", HtsatConfig())):
        text = ms_clap.BERT_BASE if year == "2022" else ms_clap.GPT2_SMALL
        config = dataclasses.replace(CONFIGS[year], audio=audio, text=text, embed_dim=1024)
        params = LAYOUTS[year].abstract(config)["params"]
        sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
        assert sizes["text_projection"] == 1024 * (768 + 1024) + 2 * 1024
        assert sizes["audio_projection"] == 1024 * (audio.width + 1024) + 2 * 1024
        counts[year] = sizes["text"]
    # transformers' BertModel without its pooler, and GPT2Model.
    assert counts == {"2022": 109_482_240 - 768 * 769, "2023": 124_439_808}


@pytest.mark.parametrize("published", ["2022"], indirect=True)
def test_training_drops_half_of_the_residual_branch(published):
    """With gelu(e) = 0 but in one place, the branch is a column of W2, of which about half is kept, twice as large."""
    found = import_model(published[2])
    config = dataclasses.replace(found.config, text=dataclasses.replace(BERT, dropout=0.0), embed_dim=400)
    rng = np.random.default_rng(0)
    first, second = np.zeros((64, 400), np.float32), np.zeros((400, 400), np.float32)
    second[0] = rng.choice([-1.0, 1.0], 400)
    first[:, 0] = rng.normal(size=64)
    projection = {
        "linear": {"kernel": first},
        "residual": {"kernel": second},
        "norm": {"scale": np.ones(400, np.float32), "bias": np.zeros(400, np.float32)},
    }
    params = {"text": found.variables["params"]["text"], "text_projection": projection}
    variables = jax.tree.map(jnp.asarray, {"params": params})
    ids, mask = jnp.arange(1, 9)[None], jnp.ones((1, 8), jnp.bool_)
    encode = jax.jit(lambda key: encode_text(config, variables, ids, mask, train=True, key=key))
    one, same, other = (np.asarray(encode(jax.random.key(seed)))[0, 1:] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.max(np.abs(one - other)) > 1e-3
    # Kept or dropped: three values, minus, nothing, plus, and the norm's mean below them all.
    values, counts = np.unique(np.round(one, 5), return_counts=True)
    assert len(values) == 3
    assert 150 < counts[1] < 250
    np.testing.assert_allclose(values[2] - values[1], values[1] - values[0], atol=2e-5)


def test_a_config_without_a_projection_is_laions():
    fields = to_json(CONFIGS["2022"])
    assert from_json(fields, TwoTowersConfig) == CONFIGS["2022"]
    del fields["projection"]
    assert from_json(fields, TwoTowersConfig).projection == "mlp"


def test_clap_model_has_no_such_projection():
    config = dataclasses.replace(CONFIGS["2023"], text=BertConfig())
    with pytest.raises(UserError, match="projection is 'residual'"):
        config_to_clap(config, {"bos_token": 0, "eos_token": 2})


def test_a_missing_projection_is_refused_by_name(published):
    year, module, _ = published
    state = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    del state["audio_encoder.projection.linear2.weight"]
    with pytest.raises(UserError, match=r"missing audio_encoder\.projection\.linear2\.weight"):
        arrays_to_variables(LAYOUTS[year], CONFIGS[year], state)
