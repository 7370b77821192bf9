"""`python -m trl_r1zero COMMAND ...`, which is `trl-r1zero COMMAND ...`."""

import sys

from trl_r1zero.cli import main

if __name__ == "__main__":
    sys.exit(main())
