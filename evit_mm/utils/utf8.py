"""Run a program in UTF-8, whatever the locale is. This module needs only the standard library."""

from __future__ import annotations

import locale
import os
import sys


def use_utf8() -> None:
    """Start this program again in Python's UTF-8 mode if the locale has another encoding.

    OpenMMLab's libraries and pycocotools open JSON, config and log files in the encoding of the
    locale, and class names or file names may contain any letter.
    """
    encoding = locale.getpreferredencoding(False).lower().replace('-', '')
    # on Windows, execv returns to the shell before the program ends
    if os.name != 'posix' or encoding == 'utf8' or os.environ.get('PYTHONUTF8') == '1':
        return
    os.environ['PYTHONUTF8'] = '1'  # also for the processes of the data loader
    os.execv(sys.executable, sys.orig_argv)
