"""Deaths and full disks in one sentence."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

from ..errors import DataError, EvitError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def named_faults() -> Iterator[None]:
    """Turn what a machine does to a training into one clear sentence.

    Raises:
        EvitError: A worker has died, the disk is full, or an image cannot be read.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise EvitError(
            f"'{error.filename or 'a file'}' could not be written ({error.strerror}); the last "
            'checkpoint is whole. Make room and go on with --resume'
        ) from error
    except cv2.error as error:  # does not name the image
        raise DataError(
            'an image is empty and cannot be decoded; tools/doctor.py CONFIG --all-images names it'
        ) from error
    except AssertionError as error:  # mmcv has no type of its own for it
        image = re.search('failed to load image: (.+)', str(error))
        if image is None:
            raise
        raise DataError(f"'{image[1]}' cannot be decoded; mend it, or take it out") from error
    except RuntimeError as error:
        # torch's DataLoader has no type of its own for a dead worker
        if not str(error).startswith('DataLoader worker'):
            raise
        reason = str(error).strip().splitlines()[0].rstrip('. ')
        raise EvitError(
            f'{reason}. A worker that is killed was mostly out of memory: fewer '
            'train_dataloader.num_workers or a larger /dev/shm help; go on with --resume'
        ) from error
