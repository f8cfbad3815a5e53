"""The order of the data: permutations, independent of each other, and a golden list."""

import itertools

import numpy as np
import pytest

from data_pipelines.sampling import _hash, draw_order, draw_question, example_indices, example_rng
from data_pipelines.tensorflow_cpu import load_tensorflow


def indices_of(positions: np.ndarray, seed: int, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    indices, epochs = example_indices(positions, seed=seed, num_examples=num_examples)
    return indices.numpy(), epochs.numpy()


def orders_of(num_epochs: int, seed: int, num_examples: int) -> np.ndarray:
    indices, epochs = indices_of(np.arange(num_epochs * num_examples), seed, num_examples)
    assert np.array_equal(epochs, np.repeat(np.arange(num_epochs), num_examples))
    return indices.reshape(num_epochs, num_examples)


@pytest.mark.parametrize("num_examples", [1, 2, 7, 240, 1000])
def test_every_epoch_is_a_permutation(num_examples):
    orders = orders_of(3, 5, num_examples)
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(num_examples), (3, 1)))


def test_no_order_comes_again():
    orders = [orders_of(300, seed, 240) for seed in (0, 1, 256)]
    assert len({order.tobytes() for order in np.concatenate(orders)}) == 3 * 300


@pytest.mark.parametrize(("num_examples", "num_epochs"), [(240, 400), (4096, 50), (50_000, 10)])
def test_orders_are_as_independent_as_random_ones(num_examples, num_epochs):
    orders = orders_of(num_epochs, 0, num_examples).astype(np.float64)
    standard = (orders - orders.mean()) / orders.std()
    identity = (np.arange(num_examples) - (num_examples - 1) / 2) / orders.std()
    sigma = 1 / np.sqrt(num_examples)
    for correlation in (
        (standard[1:] * standard[:-1]).mean(axis=1),  # of neighbouring epochs
        (standard[:, 1:] * standard[:, :-1]).mean(axis=1),  # of neighbouring places
        (standard * identity).mean(axis=1),  # with the order on disk
    ):
        assert np.abs(correlation).max() < 5 * sigma
        assert abs(correlation.mean()) < 4 * sigma / np.sqrt(len(correlation))


def test_any_place_of_any_epoch_is_found_at_once():
    positions = np.array([3, 10**15, 10**15 + 1])
    num_examples = 400_000_000
    indices, epochs = indices_of(positions, 7, num_examples)
    assert epochs.tolist() == [0, 2_500_000, 2_500_000]
    assert ((indices >= 0) & (indices < num_examples)).all()
    assert np.array_equal(indices[1:], indices_of(positions[1:], 7, num_examples)[0])


def test_the_order_never_changes_silently():
    indices, _ = indices_of(np.arange(20), 0, 10)
    assert indices.tolist() == [5, 2, 9, 1, 8, 0, 7, 6, 3, 4, 4, 6, 8, 3, 5, 9, 2, 0, 7, 1]


def test_hash_is_splitmix64():
    # The first outputs of the generator with state 0, as in its authors' reference implementation.
    tf = load_tensorflow()
    states = np.array([0, 0x9E3779B97F4A7C15], np.uint64)
    assert _hash(tf.constant(states)).numpy().tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_draws_of_an_example_depend_on_seed_epoch_index_and_purpose():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    draws = [
        *(int(example_rng(*key).integers(1 << 60)) for key in keys),
        draw_question(*keys[0], 1 << 60),
        example_rng(*keys[0]).spawn(1)[0].integers(1 << 60),
    ]
    assert len(set(draws)) == len(draws)
    assert int(example_rng(*keys[0]).integers(1 << 60)) == draws[0]
    assert draw_question(*keys[0], 1) == 0


def test_orders_are_permutations_and_even():
    orders = [tuple(draw_order(3, 0, index, 3)) for index in range(3_000)]
    counts = np.array([orders.count(order) for order in itertools.permutations(range(3))])
    assert counts.sum() == 3_000
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)
