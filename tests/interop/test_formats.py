"""Every checkpoint layout: what `save_pretrained` writes goes in and out bit for bit, and nothing is left out."""

import dataclasses
import functools
import itertools
import json
import math
from typing import Any

import jax
import numpy as np
import pytest
import transformers

from alm_jax.errors import UserError
from alm_jax.interop.format import Format, arrays_to_variables, variables_to_arrays
from alm_jax.interop.formats import (
    FORMATS,
    PARITY,
    format_named,
    format_of_architecture,
    formats_of,
)
from alm_jax.interop.safetensors_io import read_weights
from alm_jax.models.catalogue import FAMILIES

# What only training uses, and no config.json of transformers holds.
TRAINING_ALONE = ("kernel_init", "drop_path_rate", "dropout")
CLASSES = [layout for layout in FORMATS.values() if layout.architectures and not layout.ignored]


def small_config(layout: Format) -> Any:
    """The config that the format's comparison uses, or that of another layout of the same model."""
    own = [case.config for case in PARITY if case.layout is layout]
    kin = [case.config for case in PARITY if isinstance(case.config, layout.config_type)]
    assert own or kin, f"{layout.name} has no comparison"
    return (own or kin)[0]


def build(layout: Format) -> Any:
    """The class of transformers with random weights."""
    config = small_config(layout)
    for case in PARITY:
        if case.layout is layout:
            return case.oracle(config)
    fields = dict(layout.write_config(config))
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    return getattr(transformers, layout.architectures[0])(theirs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Format to the folder that `save_pretrained` wrote in several files, with its weights; random, made once."""
    made: dict[str, Any] = {}

    def save(layout: Format) -> Any:
        if layout.name not in made:
            folder = tmp_path_factory.mktemp(layout.name)
            build(layout).save_pretrained(folder, max_shard_size="100KB")
            made[layout.name] = folder, read_weights(folder)
        return made[layout.name]

    return save


@pytest.mark.parametrize("layout", CLASSES, ids=lambda layout: layout.name)
def test_export_of_an_import_is_the_saved_model_bit_for_bit(layout, saved):
    folder, arrays = saved(layout)
    assert len(list(folder.glob("*.safetensors"))) > 1
    config = layout.read_config(read_fields(folder))
    back = variables_to_arrays(layout, config, arrays_to_variables(layout, config, arrays))
    assert back.keys() == arrays.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(back[key], value, strict=True, err_msg=key)


@pytest.mark.parametrize("layout", CLASSES, ids=lambda layout: layout.name)
def test_config_json_says_the_whole_config(layout, saved):
    """Ours -> config.json -> transformers -> its config.json -> ours."""
    config = small_config(layout)
    folder, _ = saved(layout)
    fields = read_fields(folder)
    assert fields["architectures"] == [layout.architectures[0]]
    assert without_training(layout.read_config(fields)) == without_training(config)
    written = dict(layout.write_config(config)) | {"architectures": [layout.architectures[0]]}
    again = layout.read_config(written | {"preprocessor_config": fields.get("preprocessor_config", {})})
    assert without_training(again) == without_training(config)


@pytest.mark.parametrize("layout", CLASSES, ids=lambda layout: layout.name)
def test_wrong_keys_are_refused_by_name(layout, saved):
    folder, arrays = saved(layout)
    config = layout.read_config(read_fields(folder))
    keys = [entry.key for entry in layout.entries(config) if entry.key in arrays]
    first, last = keys[0], keys[-1]
    wrong = {key: value for key, value in arrays.items() if key != first} | {"stranger.weight": np.ones(3)}
    wrong[last] = arrays[last][..., None]
    with pytest.raises(UserError) as raised:
        arrays_to_variables(layout, config, wrong)
    for expected in (f"missing {first}", "unknown stranger.weight", f"{last} has shape"):
        assert expected in str(raised.value)


def cases() -> list[Any]:
    return [
        pytest.param(layout, variant, id=f"{layout.name}-{name}")
        for layout in FORMATS.values()
        for family in FAMILIES.values()
        if family.config_type is layout.config_type
        for name, variant in family.variants.items()
    ]


@functools.cache
def find_shapes(config: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of each of our arrays, by path."""
    leaves = jax.tree.leaves_with_path(formats_of(config)[0].abstract(config))
    return {tuple(step.key for step in path): leaf.shape for path, leaf in leaves}


def is_for(layout: Format, config: Any) -> bool:
    """Whether the layout is one of a model with these parts: a classifier's needs a classifier."""
    return find_shapes(config).keys() == {entry.path for entry in layout.entries(config)}


@pytest.mark.parametrize(("layout", "config"), cases())
def test_every_element_of_every_variant_is_written_exactly_once(layout, config):
    """Without memory: each entry is a box in one of our arrays; boxes do not meet, and fill the arrays."""
    if not is_for(layout, config):
        # Then it is for the same model with another head.
        assert any(is_for(other, config) for other in formats_of(config))
        pytest.skip("the variant has other parts than this layout")
    shapes = find_shapes(config)
    entries = list(layout.entries(config))
    keys = [entry.key for entry in entries]
    assert len(set(keys)) == len(keys)
    assert set(layout.copies(config).values()) <= set(keys)
    assert not (set(layout.buffers(config)) | set(layout.copies(config))) & set(keys)
    entries.sort(key=lambda entry: entry.path)
    for path, own in itertools.groupby(entries, key=lambda entry: entry.path):
        boxes = []
        for entry in own:
            box = find_box(entry.index, shapes[path])
            assert math.prod(stop - start for start, stop in box) == math.prod(entry.shape), entry.key
            boxes.append(box)
        assert sum(math.prod(b - a for a, b in box) for box in boxes) == math.prod(shapes[path]), path
        assert not meet(np.array(boxes).reshape(len(boxes), -1, 2)), path


def find_box(index: Any, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Start and stop along each axis of the part that ``index`` names."""
    box = []
    for axis, size in enumerate(shape):
        at = index[axis] if axis < len(index) else slice(None)
        start, stop, step = at.indices(size) if isinstance(at, slice) else (at, at + 1, 1)
        assert 0 <= start < stop <= size
        assert step == 1
        box.append((start, stop))
    return box


def meet(boxes: np.ndarray) -> bool:
    """Whether two of the boxes [n axes 2] have an element in common."""
    if len(boxes) == 1:
        return False
    start, stop = boxes[..., 0], boxes[..., 1]
    common = (start[:, None] < stop[None]) & (start[None] < stop[:, None])
    return bool(common.all(axis=-1).sum() > len(boxes))


def test_every_family_with_a_class_has_a_format_for_every_variant():
    for family in FAMILIES.values():
        for variant in family.variants.values():
            layouts = formats_of(variant)
            assert not layouts or any(is_for(layout, variant) for layout in layouts), family.name


def test_a_format_is_found_by_name_and_by_class():
    assert format_named("roberta") is FORMATS["roberta"]
    assert format_of_architecture("BertModel") is FORMATS["bert"]
    with pytest.raises(UserError, match=r"no format 'rob'.*roberta"):
        format_named("rob")
    with pytest.raises(UserError, match="'PerceiverModel' is no class"):
        format_of_architecture("PerceiverModel")


def test_names_and_classes_are_apart():
    classes = [kind for layout in CLASSES for kind in layout.architectures]
    assert len(set(classes)) == len(classes)
    assert all(name == layout.name for name, layout in FORMATS.items())


def read_fields(folder: Any) -> dict[str, Any]:
    """config.json; a ClapModel's spectrogram stands in another file, which a ClapProcessor writes."""
    fields = json.loads((folder / "config.json").read_text())
    if fields["model_type"] == "clap":
        from alm_jax.interop.clap_config import frontend_to_preprocessor

        frontend = small_config(format_of_architecture(fields["architectures"][0])).frontend
        fields["preprocessor_config"] = frontend_to_preprocessor(frontend)
    return fields


def without_training(config: Any) -> Any:
    """The config with what only training uses at its default."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = without_training(value)
        elif field.name in TRAINING_ALONE or field.name.startswith("spec_augment"):
            changes[field.name] = field.default
    return dataclasses.replace(config, **changes)
