"""What libraries say at each start that helps nobody."""

import logging

__all__ = ["quiet_libraries"]

# Logger -> the beginning of what it says. Of an accelerator, `doctor` and our own checks say more;
# of spaces, the text is what it should be.
_SAID = {
    "DeepSpeed": "Setting accelerator to CPU",
    "transformers.tokenization_utils_tokenizers": "Ignoring clean_up_tokenization_spaces=True",
}


def quiet_libraries() -> None:
    """From now on; before they are imported, which is when some say it."""
    for name, said in _SAID.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Said) for one in logger.filters):
            logger.addFilter(_Said(said))


class _Said(logging.Filter):
    def __init__(self, said: str) -> None:
        super().__init__()
        self._said = said

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._said)
