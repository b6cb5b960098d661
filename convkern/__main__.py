"""``python -m convkern`` is the command ``convkern``."""

import sys

from .cli import main

sys.exit(main())
