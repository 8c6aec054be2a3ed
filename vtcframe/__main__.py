"""`python -m vtcframe` is `vtcframe`."""

import sys

from vtcframe.cli import main

sys.exit(main())
