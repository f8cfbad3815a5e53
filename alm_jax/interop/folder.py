"""Models of other projects, wherever they are stored: a folder with config.json, an archive of torch.save, or a Hub
id."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alm_jax.errors import UserError, as_user_error
from alm_jax.interop import hub
from alm_jax.interop.fields import Fields, show
from alm_jax.interop.format import Format, arrays_to_variables, variables_to_arrays
from alm_jax.interop.formats import FORMATS, format_of_architecture
from alm_jax.interop.model_files import CONFIG, PREPROCESSOR, find_file, find_files, read_fields
from alm_jax.interop.safetensors_io import INDEX, WEIGHTS, Arrays, cast_floats, read_weights, write_weights
from alm_jax.interop.sentence_bert import SENTENCE_BERT, import_sentence_bert
from alm_jax.interop.shapes import Shapes
from alm_jax.interop.torch_archive import ArchiveTensor, find_tensors, read_tensors, read_torch_archive
from alm_jax.interop.written_whole import written_whole
from alm_jax.types import PyTree

PICKLED_WEIGHTS = "pytorch_model.bin"
_STATE_DICTS: tuple[tuple[str, ...], ...] = ((), ("model",), ("state_dict",), ("model_state_dict",))
"""Keys under which trainers store a state dict."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """A model of another project, converted to ours."""

    layout: Format
    """Format that it was stored in."""
    config: Any
    """Our config."""
    variables: PyTree
    """NumPy arrays, in their stored or the requested dtypes."""
    files: Mapping[str, Path]
    """Other files of the folder, by name: config.json, the tokenizer's and preprocessor's files, the model card."""


def import_model(
    source: str | Path, *, dtype: str | None = None, layout: Format | None = None
) -> ImportedModel:
    """Reads a model.

    Args:
        source: a folder, a file of `torch.save` (.pt, .pth, .ckpt), or a Hub id "owner/name".
        dtype: dtype of every float array ("float32"); None: as stored.
        layout: format of the model, where it cannot be detected.

    Raises:
        UserError: the model does not exist, has an unknown format, or a key is unknown, missing or misshapen.
    """
    path = Path(source)
    if path.is_dir():
        return _import_folder(path, dtype, layout)
    if path.is_file():
        return _import_archive(path, dtype, layout)
    if hub.is_hub_id(str(source)):
        return _import_folder(hub.fetch_folder(str(source)), dtype, layout)
    raise UserError(
        f"{source}: no such folder or file; expected a folder with {CONFIG}, an archive of torch.save, or a Hub id "
        "(owner/name)"
    )


def _import_folder(folder: Path, dtype: str | None, layout: Format | None) -> ImportedModel:
    files = {
        name: path
        for name, path in find_files(folder, hub.FILES).items()
        if path.suffix != ".safetensors" and not name.endswith(".index.json")
    }
    if layout is None and "modules.json" in files:
        layout = SENTENCE_BERT
    if layout is SENTENCE_BERT:
        with _naming(folder):
            config, variables, _ = import_sentence_bert(folder)
        return ImportedModel(layout=layout, config=config, variables=variables, files=files)
    fields = read_fields(folder)
    if layout is None:
        layout = _find_layout(folder, fields)
    if layout.read_config is None:
        raise UserError(f"{folder}: the format {layout.name} is one of archives, not of folders")
    with _naming(folder):
        with as_user_error(f"{folder / CONFIG}: its sizes do not belong together"):
            config = layout.read_config(fields)
        arrays = _read_arrays(folder)
        config = layout.with_keys(config, arrays.keys())
        if dtype is not None:
            arrays = cast_floats(arrays, dtype)
        variables = arrays_to_variables(layout, config, arrays)
    return ImportedModel(layout=layout, config=config, variables=variables, files=files)


def _find_layout(folder: Path, fields: Fields) -> Format:
    architectures = fields.words("architectures")
    if len(architectures) != 1:
        raise UserError(
            f"{folder / CONFIG} names the architectures {show(architectures)}, expected one; say which format it is: "
            f"{', '.join(name for name, layout in FORMATS.items() if layout.architectures)}"
        )
    return format_of_architecture(architectures[0])


def _read_arrays(folder: Path) -> Arrays:
    """Reads the weights of a folder, safetensors before pickled ones."""
    pickled = find_file(folder, PICKLED_WEIGHTS)
    if pickled is None or any(find_file(folder, name) for name in (WEIGHTS, INDEX)):
        return read_weights(folder)
    with _naming(pickled):
        return read_tensors(find_tensors(read_torch_archive(pickled)))


def _state_dicts(archive: Any, kind: Format) -> Iterator[dict[str, ArchiveTensor]]:
    """Yields what may be the state dict of a format: under its authors' key, at the top, or under other trainers'
    keys.

    Each comes with its keys' prefix and without: "module." depends on the number of devices.
    """
    for entry in dict.fromkeys((kind.archive_entry, *_STATE_DICTS)):
        for prefix in dict.fromkeys((kind.key_prefix, "", "module.")):
            yield find_tensors(archive, entry, prefix)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Context whose errors name ``path``, where they name no file in it themselves."""
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from error


def _import_archive(path: Path, dtype: str | None, layout: Format | None) -> ImportedModel:
    archive = read_torch_archive(path)
    kinds = [kind for kind in FORMATS.values() if kind.infer_config is not None]
    found = (
        (kind, tensors)
        for kind in (kinds if layout is None else [layout])
        for tensors in _state_dicts(archive, kind)
        if kind.signature in tensors or (layout is not None and tensors)
    )
    kind, tensors = next(found, (None, {}))
    if kind is None:
        raise UserError(
            f"{path}: the state dict of no model that alm_jax knows; it reads archives of "
            f"{', '.join(kind.name for kind in kinds)}"
        )
    if kind.infer_config is None:
        raise UserError(f"{path}: the format {kind.name} is one of folders, not of archives")
    shapes = Shapes({key: tensor.shape for key, tensor in tensors.items()})
    with _naming(path):
        with shapes.read_as(kind.name):
            config = kind.infer_config(shapes)
        arrays = read_tensors(tensors)
        if dtype is not None:
            arrays = cast_floats(arrays, dtype)
        variables = arrays_to_variables(kind, config, arrays)
    return ImportedModel(layout=kind, config=config, variables=variables, files={})


def export_model(
    folder: str | Path,
    config: Any,
    variables: PyTree,
    layout: Format,
    original: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json and the weights of a model as its class of transformers saves them.

    Args:
        folder: created if missing, and replaced if it is an older export.
        original: the config.json that the model came with; kept unchanged where it describes the same model.

    Raises:
        UserError: the format is not one of transformers, or holds only a part of a model.
    """
    if layout.read_config is None or layout.write_config is None or layout.ignored:
        raise UserError(
            f"the format {layout.name} can be read and not written; "
            f"{type(config).__name__} is written as {', '.join(writable(config)) or 'nothing'}"
        )
    arrays = variables_to_arrays(layout, config, variables)
    if original is None or layout.with_keys(layout.read_config(original), arrays.keys()) != config:
        fields = {"architectures": [layout.architectures[0]], **layout.write_config(config)}
    else:
        fields = {key: value for key, value in original.items() if key != PREPROCESSOR}
    floats = {str(array.dtype) for array in arrays.values() if array.dtype.kind not in "iub"}
    if len(floats) == 1:
        fields.pop("torch_dtype", None)  # the name of this field before transformers 5
        fields["dtype"] = floats.pop()
    with written_whole(folder) as new:
        (new / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        write_weights(new, arrays)


def writable(config: Any) -> list[str]:
    """Returns the names of the formats that hold such a model completely and can be written."""
    return [
        layout.name
        for layout in FORMATS.values()
        if layout.config_type is type(config) and layout.write_config is not None and not layout.ignored
    ]
