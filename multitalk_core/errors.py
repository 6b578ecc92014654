"""Errors of the method, each a sentence a user can act on.

MultiTalkError
+-- InputError     a photo, voice, mask or setting that cannot be used
+-- WeightsError   a weights file that is not what the place it stands in needs
"""

from __future__ import annotations


class MultiTalkError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(MultiTalkError, ValueError):
    """A photo, voice, mask or setting cannot be used; the message says what to change."""


class WeightsError(MultiTalkError, ValueError):
    """A weights file does not fit; the message names the file and the one that is needed."""
