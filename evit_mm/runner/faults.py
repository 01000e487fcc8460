"""Convert errors of the machine, such as a full disk, to short error messages."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

from ..errors import DataError, EvitError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
IN_WORKER = f'Caught {DataError.__name__} in DataLoader worker'


def is_undecodable(error: cv2.error | AssertionError) -> bool:
    """Return whether OpenCV or mmcv could not decode an image; other transforms fail too."""
    return ('imdecode' if isinstance(error, cv2.error) else 'failed to load image') in str(error)


@contextmanager
def named_faults() -> Iterator[None]:
    """Convert known low-level errors to an EvitError.

    Raises:
        EvitError: The disk is full, or a data loader worker has died.
        DataError: An image cannot be decoded, or a data set has raised this error in a worker.
    """
    try:
        yield
    except DataError as error:
        if not str(error).startswith(IN_WORKER):
            raise
        # torch has put the traceback of the worker into the message
        last = str(error).rstrip().rpartition('\n')[2]
        raise DataError(last.partition(f'{DataError.__name__}: ')[2] or last) from error
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        file = f"'{error.filename}'" if error.filename else 'a file'
        raise EvitError(
            f'{file} cannot be written ({error.strerror}). The last '
            'checkpoint is intact; free disk space, then continue with --resume'
        ) from error
    except cv2.error as error:  # OpenCV's message does not contain the image name
        if not is_undecodable(error):
            raise
        raise DataError(
            'an image file is empty; run tools/doctor.py CONFIG --all-images to find it, then '
            'replace or remove it'
        ) from error
    except AssertionError as error:  # mmcv has no specific exception for unreadable images
        image = re.search('failed to load image: (.+)', str(error))
        if image is None:
            raise
        raise DataError(
            f"image '{image[1]}' cannot be decoded; replace it or remove it from the data set"
        ) from error
    except RuntimeError as error:
        # torch's DataLoader has no specific exception for a dead worker
        if not str(error).startswith('DataLoader worker'):
            raise
        reason = str(error).strip().splitlines()[0].rstrip('. ')
        raise EvitError(
            f'{reason}. The usual cause is a lack of memory; reduce train_dataloader.num_workers '
            'or enlarge /dev/shm, then continue with --resume'
        ) from error
