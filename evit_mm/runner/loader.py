"""Training data loader that can start at any batch and that handles unreadable images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmengine.dist import get_dist_info
from torch.utils.data import DataLoader, Dataset

from ..data.images import IMAGE_SUFFIXES, is_cut_short
from ..data.pipeline import dataset_reader, innermost_pipelines
from ..errors import DataError
from .faults import is_undecodable
from .seeding import SAMPLE, derive_seed, seed_generators

CORRUPT_POLICIES = ('raise', 'replace')
REPLACED = 'replaced_images'  # key of a batch: one string per sample, one error per line
MAX_REPLACEMENTS = 10  # per sample; more in a row indicate a systematic error


class Seeded(NamedTuple):
    """The index of a sample and the seed of its augmentation."""

    index: Any
    seed: int


class ExactBatchSampler:
    """Yield the batches of another batch sampler from batch ``start`` on, with a seed per sample.

    Earlier samples are never decoded. The seed of a sample depends on its position in the epoch,
    counted over all processes. With mmengine's ``DefaultSampler``, the augmentation of an image is
    therefore the same for any number of processes.
    """

    def __init__(self, batch_sampler: Any, seed: int) -> None:
        self.batch_sampler, self.seed = batch_sampler, seed
        # mmengine's DistSamplerSeedHook and torch's DataLoader read these attributes
        self.sampler = batch_sampler.sampler
        self.batch_size = getattr(batch_sampler, 'batch_size', None)
        self.drop_last = getattr(batch_sampler, 'drop_last', False)
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[Seeded]]:
        rank, processes = get_dist_info()
        done = 0
        for number, batch in enumerate(self.batch_sampler):
            if number >= self.start:
                places = ((done + k) * processes + rank for k in range(len(batch)))
                seeds = (derive_seed(self.seed, SAMPLE, self.epoch, place) for place in places)
                yield [Seeded(*pair) for pair in zip(batch, seeds, strict=True)]
            done += len(batch)


class GuardedDataset(Dataset):
    """Wrap a data set with seeded augmentation and a policy for unreadable images.

    All attributes are those of the wrapped data set.

    Args:
        dataset: Data set to wrap.
        corrupt_images: ``'raise'`` reports an unreadable image as an error. ``'replace'`` replaces
            it with another image, chosen with the seed of the sample, and records its name in the
            sample under :data:`REPLACED`.
    """

    def __init__(self, dataset: Any, corrupt_images: str) -> None:
        vars(self).update(dataset=dataset, corrupt_images=corrupt_images)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # not set yet during unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)  # mmdet's hooks replace the pipeline

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        """Return a sample. An index without a seed is passed to the wrapped data set.

        If the image or too many replacements in a row cannot be read, a ``DataError`` is returned
        in place of the sample. If a worker raised the error, torch would hide it in a traceback.
        """
        if not isinstance(key, Seeded):
            return self.dataset[key]
        seed_generators(key.seed)
        index: Any = key.index
        replaced: list[str] = []
        while len(replaced) <= MAX_REPLACEMENTS:
            try:
                sample = self._read(index)
            except DataError as error:
                if self.corrupt_images == 'raise':
                    return error
                replaced.append(str(error))
                index = np.random.randint(len(self.dataset))
                continue
            if self.corrupt_images == 'replace':
                sample[REPLACED] = '\n'.join(replaced)
            return sample
        return DataError(f'{len(replaced)} images in a row cannot be read. First: {replaced[0]}')

    def _read(self, index: Any) -> Any:
        name = _image_name(self.dataset, index)
        if name and is_cut_short(name):
            raise DataError(f"image '{name}' is truncated; {_FIX}")
        try:
            return self.dataset[index]
        except DataError:  # the data set itself names the image
            raise
        except Exception as error:  # the transform of a user that loads images can raise anything
            reason = self._reason(error, name)
            if reason is None:
                raise
            raise DataError(f"image '{name or index}' cannot be read: {reason}; {_FIX}") from None

    def _reason(self, error: Exception, name: str) -> str | None:
        """Return why an image cannot be read, or None if the error is about something else."""
        # if a sample combines several images, the error can refer to another image
        if isinstance(error, (cv2.error, AssertionError)) and is_undecodable(error):
            return 'it cannot be decoded'
        if isinstance(error, OSError):
            opened = str(error.filename or '')
            other = opened if opened.lower().endswith(IMAGE_SUFFIXES) else ''
            remote = not name or '://' in name
            is_of_image = remote or self._unreadable(name) or self._unreadable(other)
            return str(error) if is_of_image else None
        return self._unreadable(name) if innermost_pipelines(self.dataset) else None

    def _unreadable(self, name: str) -> str | None:
        """Return why the steps of the pipeline that load an image cannot read a file."""
        if not name:
            return None
        try:
            dataset_reader(self.dataset).load(name)
        except DataError as error:
            return str(error)
        return None


_FIX = (
    'replace it, remove it from the annotations, or use --cfg-options '
    'train_cfg.corrupt_images=replace to train on another image instead'
)


def exact_loader(loader: DataLoader, seed: int, corrupt_images: str) -> DataLoader:
    """Return a loader of the same samples that can start at any batch.

    The loader can return a ``DataError`` in place of a batch.
    """
    return DataLoader(
        GuardedDataset(loader.dataset, corrupt_images),
        batch_sampler=ExactBatchSampler(loader.batch_sampler, seed),
        num_workers=loader.num_workers,
        collate_fn=partial(_collate, loader.collate_fn),
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def _collate(collate: Callable[[Any], Any], samples: Sequence[Any]) -> Any:
    """Collate samples to a batch, or return the first DataError among them."""
    faults = (sample for sample in samples if isinstance(sample, DataError))
    return next(faults, None) or collate(samples)


def _image_name(dataset: Any, index: Any) -> str:
    get_info = getattr(dataset, 'get_data_info', None)
    info = get_info(index) if get_info is not None else {}
    return str(info.get('img_path') or '')
