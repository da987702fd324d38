"""`python -m tiebeam` is the command `tiebeam`."""

import sys

from tiebeam.cli import main

sys.exit(main())
