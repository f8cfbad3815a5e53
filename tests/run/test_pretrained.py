"""The Python API of two towers and its two commands: one or many of everything, and what the wrong thing gets."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile
from tiny_towers import objective_config as objective_config
from tokenizers import Tokenizer, models, pre_tokenizers

import alm_jax
from alm_jax.cli.main import dispatch
from alm_jax.errors import DataError
from alm_jax.models import two_towers
from alm_jax.run import embed
from alm_jax.run.pretrained import PretrainedTwoTowers

RATE_HZ = 8000
CLIP_SAMPLES = 4000


@pytest.fixture(scope="module")
def model(objective_config):
    config = objective_config.model
    variables = two_towers.TWO_TOWERS.init(config, jax.random.key(0))
    vocabulary = {
        word: index for index, word in enumerate(["<pad>", "a", "dog", "rain", "this", "is", "sound", "of"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>")
    return PretrainedTwoTowers(config, variables, tokenizer)


@pytest.fixture
def files(tmp_path, rng):
    """Recordings of mixed lengths, shorter than a clip and longer, one in stereo at another rate."""
    paths = []
    for number, samples in enumerate((900, 4000, 5000, 9000, 13_000)):
        paths.append(tmp_path / f"{number}.wav")
        soundfile.write(paths[-1], rng.normal(size=samples) / 10, RATE_HZ)
    paths.append(tmp_path / "stereo.wav")
    soundfile.write(paths[-1], rng.normal(size=(8000, 2)) / 10, 2 * RATE_HZ)
    return paths


def test_many_files_get_the_vectors_that_each_gets_alone(model, files):
    together = model.embed_audio(files, batch_size=2)
    assert together.shape == (len(files), model.config.embed_dim)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    alone = np.stack([model.embed_audio(file) for file in files])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    assert np.abs(together - together[:1])[1:].max(axis=1).min() > 1e-3


def test_a_file_its_array_and_its_pair_are_one_recording(model, files):
    samples, rate_hz = soundfile.read(files[-1], dtype="float32")
    expected = model.embed_audio(files[-1])
    assert expected.shape == (model.config.embed_dim,)
    for same in ((samples.T, rate_hz), (samples.mean(axis=1), rate_hz)):
        np.testing.assert_allclose(model.embed_audio(same), expected, atol=1e-5)
    given = model.embed_audio([samples.T, (samples.T, rate_hz), str(files[-1])], sample_rate_hz=rate_hz)
    np.testing.assert_allclose(given, np.stack([expected] * 3), atol=1e-5)


def test_one_text_is_one_row_and_none_is_no_row(model):
    one = model.embed_text("a dog")
    assert one.shape == (model.config.embed_dim,)
    np.testing.assert_allclose(model.embed_text(("rain", "a dog"), batch_size=1)[1], one, atol=1e-6)
    assert model.embed_text([]).shape == model.embed_audio([]).shape == (0, model.config.embed_dim)


def test_similarity_and_classes_are_the_formulas(model, files):
    audio = model.embed_audio(files)
    np.testing.assert_allclose(
        model.similarity(files, ["dog", "rain"]), audio @ model.embed_text(["dog", "rain"]).T, atol=1e-6
    )
    prompts = model.embed_text(["this is dog", "sound of dog", "this is rain", "sound of rain"]).astype(
        np.float64
    )
    classes = prompts.reshape(2, 2, -1).mean(axis=1)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    odds = np.exp(model.logit_scale * audio.astype(np.float64) @ classes.T)
    shares = model.classify(files, ["dog", "rain"], templates=["this is {}", "sound of {}"])
    np.testing.assert_allclose(shares, odds / odds.sum(axis=1, keepdims=True), rtol=1e-4)
    one = model.classify(files[0], ["dog", "rain"], templates=["this is {}", "sound of {}"])
    np.testing.assert_allclose(one, shares[0], rtol=1e-4)


WRONG = {
    "embed_audio(3)": "recordings are a int; expected a list",
    "embed_audio(None)": "recordings are a NoneType; expected a list",
    "embed_audio({'a': 1})": "recordings are a dict; expected a list",
    "embed_audio([3])": "a recording is a int; expected a path",
    "embed_audio(np.zeros((400, 2), 'f4'))": "transpose an array",
    "embed_audio(np.zeros(100, 'i2'))": "divide int16 samples by 32768",
    "embed_audio(np.zeros((1, 2, 100), 'f4'))": "expected a path",
    "embed_audio(np.zeros(100, 'f4'))": "came without its sample rate",
    "embed_audio((np.zeros(100, 'f4'), 0))": "must be at least 1",
    "embed_audio('a.wav', batch_size=0)": "batch_size is 0",
    "embed_text(3)": "texts are a int; expected a list",
    "embed_text(None)": "texts are a NoneType; expected a list",
    "embed_text(['a', None])": "a text is a NoneType",
    "embed_text(['a'], batch_size=0)": "batch_size is 0",
    "classify('a.wav', 'dog')": "labels are a str; expected a list",
    "classify('a.wav', [])": "expected at least one",
    "classify('a.wav', [1])": "expected at least one",
}
CALLS = """
import json, sys
import numpy as np
from alm_jax.errors import UserError
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.encoders.audio import htsat
from alm_jax.encoders.text import bert
from alm_jax.ops.frontends import ClapSpec, ClipSpec
from alm_jax.run.pretrained import PretrainedTwoTowers
frontend = ClapSpec(num_mels=htsat.NANO.num_mels, clip=ClipSpec(clip_sec=1.0))
config = TwoTowersConfig(frontend=frontend, audio=htsat.NANO, text=bert.NANO)
model = PretrainedTwoTowers(config, {}, None)
found = {}
for call in json.loads(sys.argv[1]):
    try:
        found[call] = repr(eval("model." + call))
    except UserError as error:
        found[call] = str(error)
print(json.dumps(found))
"""


def test_the_wrong_thing_gets_a_message_that_says_what_was_expected():
    """In a process of its own: here a type checker would refuse the arguments first."""
    found = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(list(WRONG))], capture_output=True, text=True, check=True
    )
    messages = json.loads(found.stdout)
    assert {call: message for call, message in messages.items() if WRONG[call] not in message} == {}


@pytest.mark.parametrize("samples", [[], [0.0, np.nan], [np.inf]], ids=["empty", "NaN", "infinite"])
def test_unusable_samples_are_bad_data(model, samples):
    with pytest.raises(DataError, match="empty or holds NaN or infinite"):
        model.embed_audio(np.asarray(samples, np.float32), sample_rate_hz=RATE_HZ)


def test_an_unusable_file_is_named(model, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    for path in (tmp_path / "missing.wav", tmp_path / "text.wav"):
        with pytest.raises(DataError, match=path.name):
            model.embed_audio([path])


def test_the_model_says_what_it_is_and_the_package_what_it_has(model):
    assert "htsat + bert" in repr(model)
    assert "clips of 0.5 s at 8000 Hz" in repr(model)
    assert set(alm_jax.__all__) <= set(dir(alm_jax))
    with pytest.raises(AttributeError, match="it has __version__"):
        _ = alm_jax.nothing
    for name in alm_jax.__all__:
        assert getattr(alm_jax, name)


def test_the_commands_write_and_print_what_the_api_gives(model, files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embed, "load_towers", lambda source: model)
    monkeypatch.setattr(embed, "FILES_AT_ONCE", 4)
    expected = model.embed_audio(sorted(files))
    for name in ("x.npz", "x.parquet"):
        out = tmp_path / name
        assert dispatch(["embed", "model", str(tmp_path), "--out", str(out)]) == 0
        assert "6 embeddings of" in capsys.readouterr().out
        if name.endswith("npz"):
            with np.load(out) as found:
                names, vectors = found["path"].tolist(), found["embedding"]
        else:
            import pyarrow.parquet as pq

            table = pq.read_table(out).to_pydict()
            names, vectors = table["path"], np.asarray(table["embedding"])
        assert names == [str(file) for file in sorted(files)]
        np.testing.assert_allclose(vectors, expected, atol=2e-6)
    assert dispatch(["classify", "model", str(files[0]), "--labels", "dog, rain", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    shares = model.classify(files[0], ["dog", "rain"])
    assert found["labels"] == pytest.approx(dict(zip(["dog", "rain"], shares.tolist(), strict=True)))
    assert list(found["labels"].values()) == sorted(found["labels"].values(), reverse=True)
    assert dispatch(["classify", "model", str(files[0]), "--labels", "dog,rain", "--top", "1"]) == 0
    assert capsys.readouterr().out.count("%") == 1


def test_the_commands_refuse_what_they_cannot_do(model, files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embed, "load_towers", lambda source: model)
    (tmp_path / "empty").mkdir()
    for args, message in (
        (["embed", "m", str(files[0]), "--out", "x.csv"], "ending in .npz or .parquet"),
        (["embed", "m", str(files[0]), "--out", str(tmp_path / "no" / "x.npz")], "there is no folder"),
        (["embed", "m", str(tmp_path / "gone.wav"), "--out", str(tmp_path / "x.npz")], "there is no"),
        (["embed", "m", str(tmp_path / "empty"), "--out", str(tmp_path / "x.npz")], "holds no recording"),
        (["classify", "m", str(files[0]), "--labels", ","], "at least one"),
    ):
        assert dispatch(args) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()
