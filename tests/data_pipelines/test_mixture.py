"""Mixtures: exact shares, the epochs of each part, resuming, several hosts, classes, prompts, fingerprints."""

import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from alm_jax import batch as contract
from alm_jax.errors import UserError
from data_pipelines.config import DataConfig, MixtureConfig, MixturePart, PromptConfig, TokenizerConfig
from data_pipelines.datasets.esc50 import Esc50Config
from data_pipelines.datasets.fsdd import FsddConfig
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig
from data_pipelines.mixture import schedule, share_out
from data_pipelines.order import make_order
from data_pipelines.pipeline import eval_batches, train_batches
from data_pipelines.prepare import prepare
from data_pipelines.prepared import Prepared
from data_pipelines.prompts import encode_prompts

SMALL = SyntheticCaptionsConfig(num_train=40, num_validation=5, num_test=10, clip_sec=1.0)
WEIGHTS = [(1,), (1, 1), (1, 2), (4, 2, 2), (7, 3), (5, 1, 1), (1, 10, 100), (3, 3, 3, 2)]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 96])
def test_shares_are_exact(weights, num_rows):
    counts = share_out(weights, num_rows)
    period = sum(weights) // math.gcd(*weights)
    assert counts.shape == (period, len(weights))
    assert (counts.sum(axis=1) == num_rows).all()
    for part, weight in enumerate(weights):
        share = Fraction(num_rows * weight, sum(weights))
        assert set(counts[:, part].tolist()) <= {math.floor(share), math.ceil(share)}
        assert counts[:, part].sum() == share * period


@pytest.mark.parametrize("weights", WEIGHTS)
def test_what_does_not_divide_is_spread(weights):
    """From the start to any step, a part's rows are within two of its share."""
    counts = share_out(weights, 5)
    for part, weight in enumerate(weights):
        shares = 5 * weight / sum(weights) * np.arange(1, len(counts) + 1)
        assert np.abs(np.cumsum(counts[:, part]) - shares).max() < 2


@pytest.mark.parametrize("mode", ["rows", "turns"])
def test_positions_of_a_part_come_one_after_the_other(mode):
    plan = schedule((3, 1, 2), [7] * 3, mode)
    steps = range(4 * len(plan))
    seen: dict[int, list[int]] = {}
    for step in steps:
        period, place = divmod(step, len(plan))
        rows = slice(plan.first_row[place], plan.first_row[place + 1])
        assert mode == "rows" or len(set(plan.part[rows].tolist())) == 1
        counts = [len(seen.get(part, [])) for part in range(3)]
        assert plan.rows_before(step).tolist() == counts
        for part, offset in zip(plan.part[rows].tolist(), plan.offset[rows].tolist(), strict=True):
            seen.setdefault(part, []).append(period * int(plan.rows_per_period[part]) + offset)
    for part, positions in seen.items():
        assert sorted(positions) == list(range(len(positions)))
        assert len(positions) == Fraction((3, 1, 2)[part], 6) * 7 * len(steps)


def test_parts_are_mixed_within_a_batch():
    """Every quarter of a batch has its share of both."""
    quarters = schedule((3, 1), [16, 16], "rows").part.reshape(-1, 4, 4)
    assert (quarters.sum(axis=-1) == 1).all()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Synthetic clips three to one with a part of other ones, each asked in its own way."""
    other = dataclasses.replace(SMALL, num_train=15, seed=1)
    question = PromptConfig(template="plain", question=("What?", "Which sounds?"), max_length=10)
    parts = (
        MixturePart(
            name="many",
            dataset=SMALL,
            weight=3,
            eval_split="test+validation",
            prompt=PromptConfig(template="speechgpt", question="What is heard?", max_length=30),
        ),
        MixturePart(name="few", dataset=other, prompt=question),
    )
    return DataConfig(
        dataset=MixtureConfig(parts=parts),
        tokenizer=TokenizerConfig(vocab_size=500, max_length=24),
        source_sec=0.5,
        cache_dir=str(tmp_path_factory.mktemp("mixture")),
    )


@pytest.fixture(scope="module", params=["rows", "turns"])
def mixed(config: DataConfig, request: pytest.FixtureRequest) -> Prepared:
    dataset = dataclasses.replace(config.dataset, mode=request.param)
    return prepare(dataclasses.replace(config, dataset=dataset), 16_000)


def take(prepared: Prepared, count: int, split: str = "train", **options) -> list[dict[str, np.ndarray]]:
    batches = train_batches(prepared, split, **{"batch_size": 10, "seed": 3, **options})
    return list(itertools.islice(batches, count))


def assert_equal(one: list[dict[str, np.ndarray]], other: list[dict[str, np.ndarray]]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            np.testing.assert_array_equal(value, b[key], err_msg=key)


def test_splits_have_the_names_of_their_parts(mixed):
    assert sorted(mixed.splits) == [
        f"{part}/{split}" for part in ("few", "many") for split in ("test", "train", "validation")
    ]
    train, test = mixed.split("train"), mixed.split("test")
    assert (train.name, len(train)) == ("many/train+few/train", 55)
    assert (test.name, len(test)) == ("many/test+many/validation+few/test", 25)
    assert train.source.tolist() == [0] * 40 + [1] * 15
    assert train.ids == (*mixed.split("many/train").ids, *mixed.split("few/train").ids)
    for index in (0, 39, 40, 54):
        name, place = ("many/train", index) if index < 40 else ("few/train", index - 40)
        (pcm,), (expected,) = train.read_pcm([index]), mixed.split(name).read_pcm([place])
        np.testing.assert_array_equal(pcm, expected)
    assert len(mixed.folders) == 2


def test_each_part_gives_its_share_and_every_example_once_an_epoch(mixed):
    """In 16 steps 120 rows of the first, three epochs, and 40 of the second, which are not whole epochs."""
    batches = take(mixed, 16)
    for batch in batches:
        contract.validate(batch)
        count = int((batch["source"] == 0).sum())
        assert count in ((7, 8) if mixed.config.dataset.mode == "rows" else (0, 10))
        np.testing.assert_array_equal(batch["source"], mixed.split("train").source[batch["index"]])
    index, source = (np.concatenate([batch[key] for batch in batches]) for key in ("index", "source"))
    many, few = index[source == 0], index[source == 1]
    assert (len(many), len(few)) == (120, 40)
    # Within a batch the rows of a part are in the order of its stream, so epochs are cut out of it.
    for epoch in many.reshape(3, 40):
        assert sorted(epoch) == list(range(40))
    for epoch in (few[:15], few[15:30]):
        assert sorted(epoch) == list(range(40, 55))
    assert not np.array_equal(many[:40], many[40:80])
    assert not np.array_equal(few[:15], few[15:30])


def test_rows_are_those_of_their_example_and_of_its_prompt(mixed):
    split, tokenizer = mixed.split("train"), mixed.tokenizer
    asked = [
        encode_prompts(tokenizer, prompt.template, prompt.questions, 30) for prompt in mixed.config.prompts
    ]
    ends = [tokenizer.token_to_id("<eoa>"), tokenizer.token_to_id("</s>")]
    drawn: set[tuple[int, int]] = set()
    for batch in take(mixed, 4):
        assert batch["prompt_ids"].shape == (10, 30)
        for row, (index, part) in enumerate(zip(batch["index"], batch["source"], strict=True)):
            (pcm,) = split.read_pcm([int(index)])
            windows = np.lib.stride_tricks.sliding_window_view(pcm, 8_000)
            assert (windows == batch["audio"][row]).all(axis=1).any()
            tokens = batch["text_ids"][row][batch["text_mask"][row]].tolist()
            assert tokens[-1] == ends[part]
            assert tokenizer.decode(tokens[:-1]) in split.captions(int(index))
            ids, mask, position = asked[part]
            (which,) = np.flatnonzero((ids == batch["prompt_ids"][row]).all(axis=1))
            np.testing.assert_array_equal(batch["prompt_mask"][row], mask[which])
            assert batch["audio_position"][row] == position[which]
            drawn.add((int(part), int(which)))
    assert drawn == {(0, 0), (1, 0), (1, 1)}


@pytest.mark.parametrize("start_step", [1, 6, 41])
def test_resuming_is_one_integer(mixed, start_step):
    assert_equal(take(mixed, start_step + 3)[start_step:], take(mixed, 3, start_step=start_step))


def test_resuming_far_away_is_instant(mixed):
    (batch,) = take(mixed, 1, start_step=10**9)
    assert batch["mask"].all()


def test_the_rows_of_two_processes_are_the_global_batch(mixed):
    parts = [take(mixed, 5, start_step=2, process_index=index, process_count=2) for index in range(2)]
    joined = [
        {key: np.concatenate([one[key], two[key]]) for key in one} for one, two in zip(*parts, strict=True)
    ]
    assert_equal(joined, take(mixed, 5, start_step=2))


def test_one_part_alone_can_be_trained_on(mixed):
    batches = take(mixed, 3, split="few/train", batch_size=5)
    assert all((batch["source"] == 1).all() for batch in batches)
    assert sorted(np.concatenate([batch["index"] for batch in batches])) == list(range(15))


def test_evaluation_reads_any_split_of_any_part(mixed):
    for name in ("test", "few/validation", "few/test+many/test"):
        split = mixed.split(name)
        batches = list(eval_batches(mixed, name, batch_size=8))
        index, source, mask = (
            np.concatenate([batch[key] for batch in batches]) for key in ("index", "source", "mask")
        )
        assert index[mask].tolist() == list(range(len(split)))
        assert source[mask].tolist() == split.source.tolist()
        assert (source[~mask] == -1).all()
        for batch in batches:
            contract.validate(batch)


def test_orders_of_equal_parts_differ(config):
    twice = tuple(MixturePart(name=name, dataset=SMALL) for name in ("one", "two"))
    prepared = prepare(dataclasses.replace(config, dataset=MixtureConfig(parts=twice)), 16_000)
    (batch,) = take(prepared, 1, batch_size=80)
    assert "prompt_ids" not in batch
    one, two = (batch["index"][batch["source"] == part] for part in (0, 1))
    assert sorted(one) == [index - 40 for index in sorted(two)]
    assert not np.array_equal(one, two - 40)


def test_the_fingerprint_covers_the_mixture(config):
    dataset = config.dataset
    many, few = dataset.parts

    def with_parts(*parts: MixturePart) -> DataConfig:
        return dataclasses.replace(config, dataset=dataclasses.replace(dataset, parts=parts))

    variants = [
        config,
        dataclasses.replace(config, dataset=dataclasses.replace(dataset, mode="turns")),
        with_parts(many, dataclasses.replace(few, weight=2)),
        dataclasses.replace(config, dataset=dataclasses.replace(dataset, temperature=2.0)),
        with_parts(few, many),
        with_parts(many, dataclasses.replace(few, prompt=many.prompt)),
        with_parts(many, dataclasses.replace(few, name="fewer")),
        dataclasses.replace(config, train_split="few/train"),
        dataclasses.replace(config, train_split="few/train+many/train"),
    ]
    assert len({prepare(variant, 16_000).fingerprint for variant in variants}) == len(variants)
    assert prepare(config, 16_000).fingerprint == prepare(config, 16_000).fingerprint


@pytest.mark.parametrize("temperature", [1.0, 2.0, 1e9])
def test_a_temperature_shares_by_size(config, temperature):
    """40 and 15 recordings: shares in the proportion of their roots, to a part in a thousand; epochs say how often."""
    dataset = dataclasses.replace(config.dataset, temperature=temperature)
    prepared = prepare(dataclasses.replace(config, dataset=dataset), 16_000)
    order = make_order(prepared, prepared.split("train"), batch_size=10, seed=0)
    shares = np.array([40, 15]) ** (1 / temperature)
    rows = order.plan.rows_per_period
    np.testing.assert_allclose(rows / rows.sum(), shares / shares.sum(), atol=1e-3)
    period = len(order.plan)
    assert order.epochs(period) == {"many": rows[0] / 40, "few": rows[1] / 15}
    assert order.epochs(0) == {"many": 0.0, "few": 0.0}


def test_classes_of_the_same_name_are_one_class(make_esc, make_fsdd, tmp_path):
    """Two folds of ESC-50 as two parts, and digits; synthetic clips have no class."""
    esc = Esc50Config(root=str(make_esc(12)), templates=("{}",))
    parts = (
        MixturePart(name="clips", dataset=SMALL),
        MixturePart(name="sounds", dataset=esc, train_split="fold1", eval_split="fold2"),
        MixturePart(name="digits", dataset=FsddConfig(root=str(make_fsdd())), weight=2),
        MixturePart(name="more", dataset=esc, train_split="fold2", eval_split="fold1"),
    )
    config = DataConfig(
        dataset=MixtureConfig(parts=parts),
        tokenizer=TokenizerConfig(vocab_size=400),
        source_sec=0.5,
        cache_dir=str(tmp_path),
    )
    prepared = prepare(config, 16_000)
    names = {name for part in ("sounds", "more") for (name,) in prepared.split(f"{part}/fold1").all_captions}
    assert len(names) < 6
    assert len(prepared.class_names) == len(set(prepared.class_names))
    assert names < set(prepared.class_names)
    for name in ("sounds/fold1", "sounds/fold2", "digits/test", "more/fold1"):
        split = prepared.split(name)
        for index in range(len(split)):
            assert split.captions(index) == [prepared.class_names[split.labels[index]]]
    assert (prepared.split("clips/train").labels == -1).all()
    assert len(prepared.split("train")) == 40 + 6 + 10 + 6
    assert prepared.licences == {
        "SyntheticCaptions": "CC0-1.0 (40)",
        "Esc50": "CC-BY (12)",
        "Fsdd": "CC-BY-SA-4.0 (10)",
    }
    (batch,) = take(prepared, 1)
    assert np.bincount(batch["source"]).tolist() == [2, 2, 4, 2]
    np.testing.assert_array_equal(batch["label"], prepared.split("train").labels[batch["index"]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixturePart(name="a/b", dataset=SMALL), "the name of a mixture's part is 'a/b'"),
        (
            lambda: MixturePart(name="a", dataset=SMALL, weight=0),
            "weight of part 'a' is 0; it must be a whole",
        ),
        (
            lambda: MixturePart(name="a", dataset=SMALL, weight=0.5),
            "weight of part 'a' is 0.5; it must be a whole",
        ),
        (lambda: MixtureConfig(parts=()), "dataset.parts is (); it must be one data set or more"),
        (
            lambda: MixtureConfig(parts=(MixturePart(name="a", dataset=SMALL),) * 2),
            "dataset.parts is ['a', 'a']; it must be parts of different names",
        ),
        (
            lambda: DataConfig(
                dataset=MixtureConfig(
                    parts=(
                        MixturePart(name="a", dataset=SMALL, prompt=PromptConfig()),
                        MixturePart(name="b", dataset=SMALL),
                    )
                )
            ),
            "some parts of the mixture have a prompt and others have none; set data.prompt",
        ),
    ],
)
def test_settings_that_cannot_be_are_errors(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["many/nothing", "nothing", "few"])
def test_an_unknown_split_is_an_error_that_names_those_there_are(config, name):
    with pytest.raises(
        UserError, match=r"there is no split .*; the data set has test, train, few/test, few/"
    ):
        prepare(dataclasses.replace(config, eval_split=name), 16_000)


def test_a_split_that_a_joined_name_has_already_is_an_error(config):
    with pytest.raises(UserError, match="names a part twice"):
        prepare(dataclasses.replace(config, train_split="train+few/train"), 16_000)
