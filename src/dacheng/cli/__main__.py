"""python -m dacheng.cli: the same as `dacheng`."""

import sys

from dacheng.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
