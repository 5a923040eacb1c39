"""Loading and saving of transformers models without its progress bars and retry messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Switch messages and progress bars of loading off inside the block, then restore them."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    verbosity = hub.get_verbosity()
    logging.disable_progress_bar()
    hub.set_verbosity_error()
    try:
        yield
    finally:
        hub.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
