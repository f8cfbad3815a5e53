"""Rows of `alm bench encoder` and `alm bench frontend`: what is counted, and that they stand beside the same model."""

import dataclasses
import importlib.util

import jax
import pytest

from alm_jax.bench import encoder, frontend, resident
from alm_jax.bench.chips import chip_of
from alm_jax.bench.figures import UNMEASURED
from alm_jax.bench.topology import Topology, resolve
from alm_jax.errors import UserError
from alm_jax.training.mesh import MeshConfig, build_mesh

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra `aot`)"
)
# One forward pass over 8 tokens: four square projections and two of the feed-forward half a block, the scores and
# their sum of values, and the pooler on the first token.
BERT_NANO_FLOPS = 2 * (8 * (4 * 128 * 128 + 2 * 128 * 512) + 2 * 8 * 8 * 128) * 2 + 2 * 128 * 128


@pytest.fixture(autouse=True)
def no_process(monkeypatch):
    monkeypatch.setattr(resident, "growth_of", lambda target, **arguments: 1)


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(MeshConfig(), jax.devices()[:1])


def test_flops_are_those_of_the_shape(mesh):
    case = encoder.EncoderCase(name="bert/nano", batch=3, tokens=8)
    traced, _, figures = encoder._counted(case, mesh)
    assert figures["flops"] == 3 * BERT_NANO_FLOPS
    backward = dataclasses.replace(case, direction="backward")
    # The products with an activation on either side have two gradients each.
    assert encoder._counted(backward, mesh)[2]["flops"] == 3 * figures["flops"]
    remat = dataclasses.replace(backward, remat="block")
    traced, _, figures = encoder._counted(remat, mesh)
    assert figures["flops"] == 9 * BERT_NANO_FLOPS
    assert encoder.count_jaxpr(traced.jaxpr).flops > 11 * BERT_NANO_FLOPS


def test_a_form_of_attention_reaches_every_layer(mesh):
    """The programs of the forms differ, their FLOPs do not."""
    case = encoder.EncoderCase(name="bert/nano", batch=2, tokens=8)
    texts, flops = {}, set()
    for form in ("auto", "reference", "xla"):
        traced, _, figures = encoder._counted(dataclasses.replace(case, attention=form), mesh)
        texts[form] = str(traced.jaxpr)
        flops.add(figures["flops"])
    assert len(flops) == 1
    assert texts["auto"] == texts["reference"] != texts["xla"]
    assert encoder.describe(case, "transformers", 1, "cpu", None)["attention"] is None
    with pytest.raises(UserError, match="neither bias nor mask"):
        encoder.trace(dataclasses.replace(case, attention="cudnn", name="htsat/nano"), mesh)


def test_a_form_that_has_no_kernel_for_a_shape_is_a_row(monkeypatch):
    def refuse(case, mesh):
        raise NotImplementedError("Unsupported sequence length\nQ 513.")

    monkeypatch.setattr(encoder, "_counted", refuse)
    chip = chip_of("NVIDIA H100 80GB HBM3")
    assert chip is not None
    row = encoder.compile_row(
        encoder.EncoderCase(name="audio_mae/nano", batch=1, attention="cudnn"),
        Topology("h100:1", tuple(jax.devices()[:1]), chip),
    )
    assert row["error"] == "Unsupported sequence length Q 513."
    assert row["fits"] is row["flops"] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert/nano", "htsat/nano", "audio_mae/nano"])
def test_an_encoder_beside_its_peer(name):
    case = encoder.EncoderCase(name=name, batch=2, tokens=8)
    own, peer = encoder.run_rows(case, ["transformers"], repeats=1)
    assert set(UNMEASURED) < set(own) == set(peer)
    assert own["examples_per_s"] == pytest.approx(2e3 / own["step_ms"]["median"])
    assert peer["times_ours"]["median"] == pytest.approx(peer["step_ms"]["min"] / own["step_ms"]["min"])
    assert own["mfu"] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", encoder.names())
def test_every_encoder_has_the_parameters_of_its_peer(name, mesh):
    case = encoder.EncoderCase(name=name, batch=1)
    own = encoder._counted(case, mesh)[2]["parameters"]
    theirs = encoder.torch_pass(case, "transformers")[1]
    # ViT keeps its fixed positions among the parameters, one for each patch and for the class token.
    fixed = (case.config.num_patches + 1) * case.config.width if name.startswith("audio_mae") else 0
    assert own == theirs - fixed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "htsat/giant"}, "known are htsat/tiny"),
        ({"dtype": "int8"}, "expected one of float32"),
        ({"attention": "ring"}, "expected one of auto, reference"),
        ({"direction": "sideways"}, "expected one of forward"),
    ],
)
def test_mistakes(changes, message):
    case = encoder.EncoderCase(**({"name": "bert/nano", "batch": 1} | changes))
    with pytest.raises(UserError, match=message):
        list(encoder.run_rows(case, [], repeats=1))


def test_an_unknown_peer_or_front_end_is_told():
    with pytest.raises(UserError, match="known are transformers"):
        list(encoder.run_rows(encoder.EncoderCase(name="bert/nano", batch=1), ["fairseq"], repeats=1))
    with pytest.raises(UserError, match="known are torchlibrosa"):
        list(frontend.run_rows(frontend.FrontendCase(name="mfcc", batch=1), [], repeats=1))
    with pytest.raises(UserError, match="there is transformers"):
        list(frontend.run_rows(frontend.FrontendCase(name="clap", batch=1), ["librosa"], repeats=1))


def test_a_front_end_beside_its_peer():
    case = frontend.FrontendCase(name="clap", batch=2, clip_sec=1.0)
    own, peer = frontend.run_rows(case, ["transformers"], repeats=1)
    assert set(UNMEASURED) < set(own) == set(peer)
    assert own["seconds_per_s"] == pytest.approx(own["clips_per_s"])
    assert peer["times_ours"]["median"] > 0
    (alone,) = frontend.run_rows(dataclasses.replace(case, name="torchlibrosa"), ["transformers"], repeats=1)
    assert alone["impl"] == "alm_jax"


@pytest.mark.slow
@needs_libtpu
def test_compiled_for_devices_that_are_not_here():
    topology = resolve("v5e:2x2")
    rows = [
        encoder.compile_row(
            encoder.EncoderCase(name="bert/nano", batch=8, dtype="bfloat16", direction="backward"), topology
        ),
        frontend.compile_row(frontend.FrontendCase(name="clap", batch=4, clip_sec=1.0), topology),
    ]
    for row in rows:
        assert row["error"] is None
        assert row["fits"]
        assert 0 < row["estimated_mfu"] < 1
