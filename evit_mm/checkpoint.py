"""Reading checkpoints: safely, and by name.

Pure functions from files and dicts to dicts, so that the backbone itself can
take the authors' files wherever it is built. Nothing here ever unpickles arbitrary objects.

Names follow the authors' files; h heads, w window side.
"""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import huggingface_hub
import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import HistoryBuffer, print_log
from safetensors import SafetensorError
from torch import Tensor, nn

from .errors import CheckpointError


def _history_method(owner: Any, name: str) -> Any:
    """Stand in for ``getattr`` in mmengine's pickles, which name HistoryBuffer's statistics so.

    Allowing ``getattr`` itself would let a file reach attributes of anything.

    Raises:
        pickle.UnpicklingError: Anything else is asked for.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'Unsupported getattr of {name!r}')
    return getattr(owner, name)


# What mmengine's CheckpointHook writes beside tensors: its scalar histories, which are numpy
# arrays. The dtypes are those of the numbers that it logs.
MMENGINE_TYPES = [
    HistoryBuffer,
    np.ndarray,
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
    np.dtypes.Int32DType,
    np._core.multiarray._reconstruct,
    np._core.multiarray.scalar,
    # numpy 1's names of the two, in files written with it
    (np._core.multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),
    (np._core.multiarray.scalar, 'numpy.core.multiarray.scalar'),
    (_history_method, 'builtins.getattr'),
    (_history_method, '__builtin__.getattr'),  # its name in pickle protocol 2
]
# The authors' ImageNet files keep their command line beside the weights.
AUTHORS_TYPES = [argparse.Namespace]
TIMM_PREFIX = 'timm://'
POINT_AT_FILE = (
    ', or point the config at the file: --cfg-options model.backbone.init_cfg.checkpoint=FILE '
    '(model.backbone.init_cfg=None trains from scratch)'
)
# Entries that follow from the architecture and are made anew when it is built.
DERIVED = ('attention_bias_idxs', 'num_batches_tracked')


def allow_mmengine_types() -> None:
    """Let ``torch.load(weights_only=True)`` read what mmengine itself saves, and no more.

    From torch 2.6 on, mmengine's own ``torch.load`` calls are weights-only; without this, testing
    and resuming from its training checkpoints fail.
    """
    torch.serialization.add_safe_globals(MMENGINE_TYPES)


def read_checkpoint(source: str | Path) -> Any:
    """Read a ``.pth`` or ``.safetensors`` file without ever running code in it.

    Args:
        source: Path, http(s) URL (downloaded once into torch hub's cache), or ``timm://NAME`` for
            timm's weights on the Hugging Face hub (in the hub's own cache).

    Returns:
        What the file holds, tensors on the CPU.

    Raises:
        CheckpointError: The file is missing, cannot be fetched, is truncated or no checkpoint, or
            holds types other than tensors, plain Python values and those listed in this module.
    """
    path = _local_path(str(source))
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint '{path}' does not exist; give the path of a .pth or .safetensors file"
        )
    if path.suffix == '.safetensors':
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from None
    allow_mmengine_types()
    # leaving safe_globals forbids what it was given, even what somebody had allowed before
    extra = [t for t in AUTHORS_TYPES if t not in torch.serialization.get_safe_globals()]
    try:
        with torch.serialization.safe_globals(extra):
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        if any(sign in str(error) for sign in ('GLOBAL', 'getattr of', 'call reduce')):
            reason = str(error).replace('WeightsUnpickler error: ', '')
            kinds = [
                line.strip()
                for line in reason.splitlines()
                if 'GLOBAL' in line or 'getattr of' in line
            ]
            raise CheckpointError(
                f"checkpoint '{path}' was refused, nothing in it was run: it holds more than "
                f'weights ({(kinds or [reason])[0][:200]}); save it again with its state dict alone'
            ) from None
        raise _unreadable(path, error) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise _unreadable(path, error) from None


def extract_state_dict(
    checkpoint: Any, prefix: str | None = None, name: str = 'checkpoint'
) -> dict[str, Tensor]:
    """Return the backbone's tensors out of whatever wraps them.

    Takes files with ``model`` or ``state_dict`` and bare ones, names that begin with ``module.``
    and whole detectors, from which the ``backbone.`` part is taken.

    Args:
        checkpoint: What :func:`read_checkpoint` returned.
        prefix: Take only names with this prefix and cut it off, instead of looking for
            ``backbone.``.
        name: The file's name, for messages.

    Returns:
        Tensors by name, without the entries in :data:`DERIVED`.

    Raises:
        CheckpointError: There are no tensors, or none with the prefix.
    """
    for key in ('model', 'state_dict'):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, Mapping) or not any(map(torch.is_tensor, checkpoint.values())):
        raise CheckpointError(
            f"'{name}' holds no weights: expected tensors by name, alone or under 'model' or "
            "'state_dict'"
        )
    state = {str(key): value for key, value in checkpoint.items() if torch.is_tensor(value)}
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    if prefix is None:
        prefix = 'backbone' if any(key.startswith('backbone.') for key in state) else ''
    dotted = prefix.rstrip('.') + '.' if prefix else ''
    found = {key[len(dotted) :]: v for key, v in state.items() if key.startswith(dotted)}
    if not found:
        raise CheckpointError(
            f"'{name}' has no entry that begins with '{dotted}'; its first is '{next(iter(state))}'"
        )
    return {key: v for key, v in found.items() if not key.endswith(DERIVED)}


def resize_attention_biases(biases: Tensor, window_size: int) -> Tensor:
    """Resize relative position biases to another window, bicubic on the grid of offsets.

    Source: the authors' detection code (bicubic, no corner alignment).

    Args:
        biases: ``(h, w0 * w0)`` over offsets ``(|dy|, |dx|)``, row-major.
        window_size: The new window side w.

    Returns:
        ``(h, w * w)``.

    Raises:
        ValueError: The biases are not over a square grid.
    """
    side = round(biases.shape[-1] ** 0.5)
    if biases.ndim != 2 or side * side != biases.shape[1]:
        raise ValueError(f'attention biases must be (heads, w * w), got {tuple(biases.shape)}')
    if side == window_size:
        return biases
    grid = biases.reshape(1, -1, side, side).float()
    size = (window_size, window_size)
    grid = F.interpolate(grid, size, mode='bicubic', align_corners=False)
    return grid.reshape(-1, window_size**2).to(biases.dtype)


def fit_state_dict(
    state: Mapping[str, Tensor],
    model: nn.Module,
    name: str = 'checkpoint',
    unused: Sequence[str] = ('head', 'blocks1', 'blocks2', 'blocks3'),
) -> dict[str, Tensor]:
    """Fit tensors to a model by name and shape; only what is known to differ may differ.

    A classifier and the stages that ``model`` does not build are left out, and attention biases of
    another window size are resized.

    Args:
        state: What :func:`extract_state_dict` returned.
        model: The module to load into.
        name: The file's name, for messages.
        unused: Beginnings of the names that may be left out, wherever ``model`` has none like it.

    Returns:
        Exactly the entries of ``model.state_dict()`` (less the counters of BatchNorm), in shape.

    Raises:
        CheckpointError: An entry is missing, unexpected, mis-shaped or not finite; all are named.
    """
    wanted = {k: v for k, v in model.state_dict().items() if not k.endswith(DERIVED)}
    parts = tuple(f'{part}.' for part in unused)
    absent = tuple(part for part in parts if not any(key.startswith(part) for key in wanted))
    fitted, faults = {}, []
    for key, value in state.items():
        if key not in wanted:
            if not key.startswith(absent):
                faults.append(f'unexpected: {key}')
            continue
        shape = tuple(wanted[key].shape)
        if key.endswith('attention_biases') and value.ndim == 2 and value.shape[0] == shape[0]:
            with suppress(ValueError):  # reported as mis-shaped below
                value = resize_attention_biases(value, round(shape[1] ** 0.5))
        fitted[key] = value
    _report(faults + _differences(fitted, wanted), type(model).__name__, name)
    return fitted


def check_state_dict(
    state: Mapping[str, Tensor], model: nn.Module, name: str = 'checkpoint'
) -> None:
    """Check that a checkpoint holds exactly a model's entries.

    Args:
        state: What :func:`extract_state_dict` returned.
        model: The module, perhaps wrapped for several processes.
        name: The file's name, for messages.

    Raises:
        CheckpointError: As :func:`fit_state_dict`, with nothing allowed to differ.
    """
    wanted = {k.removeprefix('module.'): v for k, v in model.state_dict().items()}
    wanted = {k: v for k, v in wanted.items() if not k.endswith(DERIVED)}
    _report(_differences(state, wanted), type(model).__name__, name)


def load_pretrained(
    model: nn.Module,
    source: str | Path,
    prefix: str | None = None,
    unused: Sequence[str] = ('head', 'blocks1', 'blocks2', 'blocks3'),
) -> None:
    """Load ImageNet weights, or a detector's backbone, into a backbone.

    Args:
        model: The backbone; changed in place, and only if everything fits.
        source: As in :func:`read_checkpoint`.
        prefix: See :func:`extract_state_dict`.
        unused: See :func:`fit_state_dict`.

    Raises:
        CheckpointError: The file cannot be read or does not fit.
    """
    state = extract_state_dict(read_checkpoint(source), prefix, name=str(source))
    fitted = fit_state_dict(state, model, str(source), unused)
    resized = [k for k, v in fitted.items() if v.shape != state[k].shape]
    model.load_state_dict(fitted, strict=False)  # fit_state_dict has been strict
    note = f', resized {len(resized)} attention biases' if resized else ''
    print_log(f'loaded {len(fitted)} entries of {source}{note}', logger='current')


def _differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    faults = [f'unexpected: {key}' for key in found if key not in wanted]
    for key, tensor in wanted.items():
        if key not in found:
            faults.append(f'missing: {key}')
        elif found[key].shape != tensor.shape:
            shapes = f'{tuple(found[key].shape)} in the file, {tuple(tensor.shape)} in the model'
            faults.append(f'shape: {key} is {shapes}')
        elif not torch.isfinite(found[key]).all():
            faults.append(f'not finite: {key}')
    return faults


def _report(faults: list[str], model_name: str, name: str) -> None:
    if faults:
        shown = '\n  '.join(faults[:20])
        more = f'\n  ... and {len(faults) - 20} more' if len(faults) > 20 else ''
        raise CheckpointError(
            f"'{name}' does not fit {model_name}; is it of the same config and arch?\n"
            f'  {shown}{more}'
        )


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    size = path.stat().st_size
    return CheckpointError(
        f"'{path}' ({size} bytes) is not a readable checkpoint, truncated or of another kind; "
        f'fetch or save it again ({_first_line(error)})'
    )


def _local_path(source: str) -> Path:
    if source.startswith(('http://', 'https://')):
        return _fetch(source)
    if source.startswith(TIMM_PREFIX):
        return _fetch_timm(source)
    return Path(source).expanduser()


def _fetch_timm(source: str) -> Path:
    """Download timm's weights into the Hugging Face hub's cache, and return the file's path."""
    repo = f'timm/{source.removeprefix(TIMM_PREFIX)}'
    try:
        return Path(huggingface_hub.hf_hub_download(repo, 'model.safetensors'))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        url = f'https://huggingface.co/{repo}/resolve/main/model.safetensors'
        raise CheckpointError(
            f'cannot download {source} ({_first_line(error)}). Fetch {url} on a machine with '
            f'network{POINT_AT_FILE}'
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else repr(error)


def _fetch(url: str) -> Path:
    """Download into torch hub's cache, once per node, and return the file's path."""
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(url).path).name
    if get_local_rank() == 0 and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                torch.hub.download_url_to_file(url, str(path))
        except (URLError, OSError) as error:
            raise CheckpointError(
                f'cannot download {url} ({error}). Fetch it on a machine with network and save it '
                f"as '{path}'{POINT_AT_FILE}"
            ) from None
    barrier()
    return path
