"""The JSON files of a ClapModel folder, both ways: of the model, the preprocessor and the tokenizer."""

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from alm_jax.encoders.audio.htsat import HtsatConfig
from alm_jax.encoders.audio.htsat_fusion import HtsatFusionConfig
from alm_jax.encoders.text.bert import BertConfig
from alm_jax.errors import UserError
from alm_jax.interop.fields import Fields
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.nn.feature_fusion import REDUCTION
from alm_jax.ops.frontends import ClapSpec, ClipSpec, FusionSpec, TorchlibrosaSpec, TowerSpec
from alm_jax.ops.frontends.clip import Pad

_PAD_NAMES: dict[Pad, str] = {"repeat_pad": "repeatpad", "repeat": "repeat", "zero": "pad"}
_MOST_STAGES = 8
# RoBERTa's and BERT's names, in the order of roles below.
_ROLES = ("bos_token", "cls_token", "eos_token", "sep_token", "unk_token", "pad_token", "mask_token")
_ROBERTA_TOKENS = ("<s>", "<s>", "</s>", "</s>", "<unk>", "<pad>", "<mask>")
_BERT_TOKENS = ("[CLS]", "[CLS]", "[SEP]", "[SEP]", "[UNK]", "[PAD]", "[MASK]")


def config_to_clap(config: TwoTowersConfig, special_ids: Mapping[str, int]) -> dict[str, Any]:
    """config.json of the ClapModel that computes what ``config`` computes.

    Args:
        special_ids: token ids of "bos_token" and "eos_token".

    Raises:
      UserError: ClapModel has no counterpart of a tower, or of the text tower's positions or pooling.
    """
    audio, text = config.audio, config.text
    if not isinstance(audio, HtsatConfig) or not isinstance(text, BertConfig):
        raise UserError(
            f"the towers are of {type(audio).__name__} and {type(text).__name__}, and ClapModel knows only HtsatConfig "
            "and BertConfig"
        )
    if config.projection != "mlp":
        raise UserError(f"projection is {config.projection!r}, and ClapModel knows only 'mlp'")
    if text.pooling != "pooler":
        raise UserError(
            f"text.pooling is {text.pooling!r}, and ClapTextModel knows only 'pooler'; "
            "a model for this export needs a text tower of that style"
        )
    if text.positions != "roberta":
        raise UserError(
            f"text.positions is {text.positions!r}, and ClapTextModel knows only 'roberta'; "
            "a model for this export needs a text tower of that style"
        )
    joint = {"projection_dim": config.embed_dim, "projection_hidden_act": "relu"}
    return {
        "architectures": ["ClapModel"],
        "model_type": "clap",
        "dtype": "float32",
        **joint,
        "audio_config": {
            "model_type": "clap_audio_model",
            "spec_size": audio.spec_size,
            "patch_size": audio.patch_size,
            "patch_stride": [audio.patch_size, audio.patch_size],
            "num_mel_bins": audio.num_mels,
            "patch_embeds_hidden_size": audio.embed_dim,
            "depths": list(audio.depths),
            "num_attention_heads": list(audio.num_heads),
            "num_hidden_layers": len(audio.depths),
            "window_size": audio.window_size,
            "mlp_ratio": audio.mlp_ratio,
            "qkv_bias": audio.use_qkv_bias,
            "drop_path_rate": audio.drop_path_rate,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "hidden_size": audio.width,
            "layer_norm_eps": 1e-5,
            "hidden_act": "gelu",
            "enable_fusion": isinstance(audio, HtsatFusionConfig),
            "fusion_type": None,
            "aff_block_r": REDUCTION,
            "enable_patch_layer_norm": True,
            "patch_embed_input_channels": 1,
            **joint,
        },
        "text_config": {
            "model_type": "clap_text_model",
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "intermediate_size": text.mlp_dim,
            "max_position_embeddings": text.max_positions,
            "type_vocab_size": text.num_token_types,
            "layer_norm_eps": text.layer_norm_eps,
            "hidden_dropout_prob": text.dropout,
            "attention_probs_dropout_prob": text.dropout,
            "pad_token_id": text.pad_id,
            "bos_token_id": special_ids["bos_token"],
            "eos_token_id": special_ids["eos_token"],
            "hidden_act": "gelu",
            **joint,
        },
    }


def clap_to_config(clap: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> TwoTowersConfig:
    """The config of a published ClapModel from its config.json and preprocessor_config.json.

    Fields that the files leave out have transformers' defaults. What only training uses and the files do
    not hold (SpecAugment) has ours.

    Raises:
      UserError: the model uses what our towers do not have; lists it.
    """
    top = Fields.of(clap)
    audio, text = top.section("audio_config"), top.section("text_config")
    patch_size = _as_one(audio, "patch_size", 4)
    embed_dim = audio.size("patch_embeds_hidden_size", 96)
    depths = audio.sizes("depths", (2, 2, 6, 2))
    widths = [embed_dim * 2**stage for stage in range(min(len(depths), _MOST_STAGES))]
    if len(depths) > _MOST_STAGES:
        raise audio.error("depths", f"at most {_MOST_STAGES} stages")
    num_heads = audio.sizes("num_attention_heads", (4, 8, 16, 32), length=len(depths))
    if any(width % heads for width, heads in zip(widths, num_heads, strict=True)):
        raise audio.error("num_attention_heads", f"divisors of the stages' widths, {widths}", num_heads)
    _as_one(audio, "patch_stride", patch_size, expected=patch_size)
    audio.only(
        {
            "fusion_type": None,
            "aff_block_r": REDUCTION,
            "hidden_act": "gelu",
            "enable_patch_layer_norm": True,
            "patch_embed_input_channels": 1,
            "layer_norm_eps": 1e-5,
        },
        "our HTSAT",
    )
    if audio.size("hidden_size", 768) != widths[-1]:
        raise audio.error("hidden_size", f"{widths[-1]}, the width of the last stage")
    text.only({"hidden_act": "gelu", "position_embedding_type": "absolute"}, "our RoBERTa")
    top.only({"projection_hidden_act": "relu"}, "our projection")
    frontend, is_fused = preprocessor_to_frontend(preprocessor), audio.flag("enable_fusion", False)
    if isinstance(frontend, FusionSpec) != is_fused:
        raise UserError(
            f"{audio.place}: audio_config.enable_fusion is {is_fused} and preprocessor_config.truncation that of a "
            f"{type(frontend).__name__}; 'fusion' belongs to a model with feature fusion, 'rand_trunc' to one without"
        )
    text_width = text.size("hidden_size", 768)
    return TwoTowersConfig(
        frontend=frontend,
        audio=(HtsatFusionConfig if is_fused else HtsatConfig)(
            spec_size=audio.size("spec_size", 256),
            patch_size=patch_size,
            num_mels=audio.size("num_mel_bins", 64),
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=audio.size("window_size", 8),
            mlp_ratio=audio.number("mlp_ratio", 4.0, above=0.0),
            use_qkv_bias=audio.flag("qkv_bias", True),
            drop_path_rate=audio.rate("drop_path_rate", 0.0),
        ),
        text=BertConfig(
            vocab_size=text.size("vocab_size", 50265),
            width=text_width,
            num_layers=text.size("num_hidden_layers", 12),
            num_heads=text.divisor("num_attention_heads", 12, of=text_width),
            mlp_dim=text.size("intermediate_size", 3072),
            max_positions=text.size("max_position_embeddings", 514),
            num_token_types=text.size("type_vocab_size", 1),
            layer_norm_eps=text.number("layer_norm_eps", 1e-12, above=0.0),
            dropout=text.rate("hidden_dropout_prob", 0.1),
            pad_id=text.token_id("pad_token_id", 1),
        ),
        embed_dim=top.size("projection_dim", 512),
    )


def frontend_to_preprocessor(frontend: TowerSpec) -> dict[str, Any]:
    """preprocessor_config.json of the `ClapFeatureExtractor` that computes what ``frontend`` computes.

    A recording longer than a clip is cut at random there, at every call; cut it before, for one result. With feature
    fusion transformers chooses the parts at random, and marks one clip as longer where none is.

    Raises:
      UserError: no `ClapFeatureExtractor` computes these features.
    """
    problems = []
    match frontend:
        case TorchlibrosaSpec():
            if frontend.mel_sample_rate_hz not in (None, frontend.sample_rate_hz):
                problems.append(f"mel_sample_rate_hz is {frontend.mel_sample_rate_hz}")
            if frontend.int16_quantize:
                problems.append("int16_quantize is on")
        case FusionSpec():
            if frontend.int16_quantize:
                problems.append("int16_quantize is on")
        case ClapSpec():
            if frontend.mel_scale != "slaney":
                problems.append(
                    f"mel_scale is {frontend.mel_scale!r}, its bank for models with feature fusion"
                )
        case _:
            raise UserError(
                "ClapFeatureExtractor cannot make this front-end's features: "
                f"{type(frontend).__name__} is another family"
            )
    if not float(frontend.clip.clip_sec).is_integer():
        problems.append(f"clip.clip_sec is {frontend.clip.clip_sec:g}, and it takes whole seconds")
    if problems:
        raise UserError("ClapFeatureExtractor cannot make this front-end's features: " + "; ".join(problems))
    return {
        "feature_extractor_type": "ClapFeatureExtractor",
        "processor_class": "ClapProcessor",
        "feature_size": frontend.num_mels,
        "sampling_rate": frontend.sample_rate_hz,
        "hop_length": frontend.hop_samples,
        "max_length_s": int(frontend.clip.clip_sec),
        "fft_window_size": frontend.n_fft,
        "frequency_min": frontend.fmin_hz,
        "frequency_max": frontend.fmax_hz,
        "truncation": "fusion" if isinstance(frontend, FusionSpec) else "rand_trunc",
        "padding": _PAD_NAMES[frontend.clip.pad],
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "top_db": None,
    }


def preprocessor_to_frontend(preprocessor: Mapping[str, Any]) -> ClapSpec | FusionSpec:
    """The spec of a `ClapFeatureExtractor` from its preprocessor_config.json.

    Raises:
      UserError: it truncates or pads in an unknown way.
    """
    fields = Fields.of(preprocessor)
    truncation = fields.word("truncation", "fusion", among=("rand_trunc", "fusion"))
    pads = {theirs: ours for ours, theirs in _PAD_NAMES.items()}
    return (FusionSpec if truncation == "fusion" else ClapSpec)(
        sample_rate_hz=fields.size("sampling_rate", 48000),
        n_fft=fields.size("fft_window_size", 1024),
        hop_samples=fields.size("hop_length", 480),
        num_mels=fields.size("feature_size", 64),
        fmin_hz=fields.number("frequency_min", 0.0),
        fmax_hz=fields.number("frequency_max", 14000.0),
        clip=ClipSpec(
            clip_sec=fields.number("max_length_s", 10.0, above=0.0),
            pad=pads[fields.word("padding", "repeatpad", among=tuple(pads))],
        ),
    )


def special_tokens(tokenizer: Tokenizer, text: BertConfig) -> dict[str, str]:
    """The special token of each role that `transformers` wants named; "mask_token" only where there is one.

    Raises:
      UserError: the tokenizer has neither RoBERTa's nor BERT's special tokens, or does not fit the tower.
    """
    for names in (_ROBERTA_TOKENS, _BERT_TOKENS):
        ids = [tokenizer.token_to_id(name) for name in names]
        if None not in ids[:-1]:
            tokens = {role: name for role, name, i in zip(_ROLES, names, ids, strict=True) if i is not None}
            break
    else:
        raise UserError(
            f"the tokenizer has neither RoBERTa's special tokens {_ROBERTA_TOKENS[1:6]} nor BERT's "
            f"{_BERT_TOKENS[1:6]}; use one of these for an export to transformers"
        )
    pad_id = tokenizer.token_to_id(tokens["pad_token"])
    if pad_id != text.pad_id or tokenizer.get_vocab_size() > text.vocab_size:
        raise UserError(
            f"the tokenizer pads with id {pad_id} and has {tokenizer.get_vocab_size()} tokens; the tower "
            f"pads with {text.pad_id} and has {text.vocab_size}: they do not belong together"
        )
    return tokens


def tokenizer_to_transformers(tokens: Mapping[str, str], text: BertConfig) -> dict[str, Any]:
    """tokenizer_config.json for a tokenizer.json with the special ``tokens``."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "ClapProcessor",
        "model_max_length": text.max_length,
        **tokens,
    }


def _as_one(fields: Fields, name: str, default: int, *, expected: int | None = None) -> int:
    """Reads a size that may be written as one number or as a pair of two equal ones."""
    if isinstance(fields.get(name), list | tuple):
        first, second = fields.sizes(name, (default, default), length=2)
        size = first if first == second else 0
    else:
        size = fields.size(name, default)
    if not size or expected not in (None, size):
        raise fields.error(name, f"{expected or 'one size'}, for both axes")
    return size
