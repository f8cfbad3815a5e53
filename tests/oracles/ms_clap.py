"""MS-CLAP in PyTorch, from Elizalde et al. (arXiv 2206.04769, 2309.05767) and the names of their archives.

The towers are transformers' classes, and CNN14 that of cnn14.py; HTSAT's weights are stored under its authors' names.
"""

import importlib.util
from pathlib import Path

import torch
import transformers
from torch import nn


class Projection(nn.Module):
    """LayerNorm(e + W2 gelu(e)), e = W1 x."""

    def __init__(self, width: int, embed_dim: int):
        super().__init__()
        self.linear1 = nn.Linear(width, embed_dim, bias=False)
        self.linear2 = nn.Linear(embed_dim, embed_dim, bias=False)
        self.layer_norm = nn.LayerNorm(embed_dim)

    def forward(self, x):
        embed1 = self.linear1(x)
        return self.layer_norm(embed1 + self.linear2(nn.functional.gelu(embed1)))


class Htsat(nn.Module):
    """HTSAT by `transformers.ClapAudioModel`; its state dict has the authors' names and their joint qkv."""

    def __init__(self, config):
        super().__init__()
        fields = {
            "spec_size": config.spec_size,
            "patch_size": config.patch_size,
            "patch_stride": [config.patch_size, config.patch_size],
            "num_mel_bins": config.num_mels,
            "patch_embeds_hidden_size": config.embed_dim,
            "depths": list(config.depths),
            "num_attention_heads": list(config.num_heads),
            "num_hidden_layers": len(config.depths),
            "window_size": config.window_size,
            "mlp_ratio": config.mlp_ratio,
            "hidden_size": config.width,
            "enable_fusion": False,
            "attn_implementation": "eager",
        }
        self.htsat = transformers.ClapAudioModel(transformers.ClapAudioConfig(**fields))
        self.register_state_dict_post_hook(rename_htsat)

    def forward(self, features):  # [B T F]
        return self.htsat(features[:, None]).pooler_output


def rename_htsat(module, state, prefix, _):
    """The inverse of transformers' convert_clap_original_pytorch_to_hf.py."""
    theirs = f"{prefix}htsat.audio_encoder."
    for key in [key for key in state if key.startswith(theirs)]:
        tensor = state.pop(key)
        if key.endswith((".key.weight", ".key.bias", ".value.weight", ".value.bias")):
            continue
        if ".query." in key:
            parts = (key.replace(".query.", f".{name}.") for name in ("query", "key", "value"))
            tensor = torch.cat([module.get_parameter(part.removeprefix(prefix)) for part in parts]).detach()
        key = key.removeprefix(theirs)
        for name, original in (
            (".query.", ".qkv."),
            ("batch_norm", "bn0"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("attention.output.dense", "attn.proj"),
            ("attention.self", "attn"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ):
            key = key.replace(name, original)
        state[f"{prefix}htsat.{key}"] = tensor


class Encoder(nn.Module):
    """A tower and its projection."""

    def __init__(self, base: nn.Module, width: int, embed_dim: int):
        super().__init__()
        self.base = base
        self.projection = Projection(width, embed_dim)


class MsClap(nn.Module):
    """Features and token ids to L2-normalised embeddings: those of the clips, then those of the captions."""

    def __init__(self, config):
        super().__init__()
        audio, text = config.audio, config.text
        audio_base = load_cnn14(audio) if hasattr(audio, "channels") else Htsat(audio)
        self.audio_encoder = Encoder(audio_base, audio.width, config.embed_dim)
        # "eager" casts its softmax to float32 in a model of any dtype.
        if hasattr(text, "compat"):
            text_base = transformers.GPT2Model(
                transformers.GPT2Config(
                    vocab_size=text.vocab_size,
                    n_embd=text.width,
                    n_layer=text.num_layers,
                    n_head=text.num_heads,
                    n_inner=text.mlp_dim,
                    n_positions=text.max_positions,
                    bos_token_id=0,
                    eos_token_id=0,
                    attn_implementation="sdpa",
                )
            )
        else:
            text_base = transformers.BertModel(
                transformers.BertConfig(
                    vocab_size=text.vocab_size,
                    hidden_size=text.width,
                    num_hidden_layers=text.num_layers,
                    num_attention_heads=text.num_heads,
                    intermediate_size=text.mlp_dim,
                    max_position_embeddings=text.max_positions,
                    type_vocab_size=text.num_token_types,
                    attn_implementation="sdpa",
                )
            )
        self.caption_encoder = Encoder(text_base, text.width, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, features, ids, mask):
        base = self.audio_encoder.base
        clip = base(features)
        clip = clip["clip"] if isinstance(clip, dict) else clip
        ids = ids.long()
        states = self.caption_encoder.base(input_ids=ids, attention_mask=mask.long())[0]
        is_gpt2 = isinstance(self.caption_encoder.base, transformers.GPT2Model)
        last = torch.ne(ids, 0).sum(-1) - 1 if is_gpt2 else torch.zeros(len(ids), dtype=torch.long)
        text = states[torch.arange(len(ids)), last]
        embeddings = torch.cat([self.audio_encoder.projection(clip), self.caption_encoder.projection(text)])
        return nn.functional.normalize(embeddings, dim=-1)


def load_cnn14(config):
    spec = importlib.util.spec_from_file_location("alm_oracle_cnn14", Path(__file__).with_name("cnn14.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build(config)


def build(config) -> MsClap:
    """In evaluation mode, with running statistics as of decibels."""
    module = MsClap(config).eval()
    if isinstance(module.audio_encoder.base, Htsat):
        batch_norm = module.audio_encoder.base.htsat.audio_encoder.batch_norm
        generator = torch.Generator().manual_seed(2)
        batch_norm.running_mean.normal_(-40.0, 10.0, generator=generator)
        batch_norm.running_var.uniform_(50.0, 400.0, generator=generator)
    return module
