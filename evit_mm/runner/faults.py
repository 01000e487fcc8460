"""Deaths and full disks in one sentence."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

from ..errors import DataError, EvitError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# what gloo and NCCL say when the process at the other end is gone
LOST_PEER = re.compile(
    'Connection (closed|reset) by peer|Connection closed|NCCL.*(remote process exited|'
    'communicator was aborted)|Socket Timeout|Broken pipe',
    re.IGNORECASE | re.DOTALL,
)


@contextmanager
def named_faults() -> Iterator[None]:
    """Turn what a machine does to a training into one clear sentence.

    Raises:
        EvitError: A worker or another process has died, the disk is full, or an image that a
            worker was to read cannot be read.
    """
    try:
        yield
    except DataError as error:
        raise DataError(_own_words(error)) from None
    except EvitError:
        raise
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise EvitError(
            f"'{error.filename or 'a file'}' could not be written ({error.strerror}); checkpoints "
            'are whole. Make room and go on with --resume'
        ) from error
    except cv2.error as error:  # does not name the image
        raise DataError(
            'an image is empty and cannot be decoded; tools/doctor.py CONFIG --all-images names it'
        ) from error
    except AssertionError as error:
        image = re.search('failed to load image: (.+)', str(error))
        if image is None:
            raise
        raise DataError(f"'{image[1]}' cannot be decoded; mend it, or take it out") from None
    except RuntimeError as error:
        text = str(error)
        if 'DataLoader worker' in text and ('killed' in text or 'exited' in text):
            reason = text.strip().splitlines()[0].rstrip('. ')
            raise EvitError(
                f'{reason}. A worker that is killed was mostly out of memory: fewer '
                'train_dataloader.num_workers or a larger /dev/shm help; go on with --resume'
            ) from error
        if LOST_PEER.search(text):
            raise EvitError(
                'another process of this training has ended; why, it says itself above or in its '
                f'log. Go on with --resume ({text.strip().splitlines()[0][:200]})'
            ) from error
        raise


def _own_words(error: DataError) -> str:
    """Return the message without the worker's traceback that torch puts before it."""
    text = str(error)
    if 'DataLoader worker' not in text:
        return text
    return text.strip().rpartition(f'{type(error).__name__}: ')[2]
