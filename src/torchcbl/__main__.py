"""`python -m torchcbl` is `torchcbl`."""

import sys

if __name__ == "__main__":
    from torchcbl.lab.cli import main

    sys.exit(main())
