"""Run the Daraja simulator: `python -m payments.mpesa.simulator --help`."""

import sys

from payments.mpesa.simulator.server import main

if __name__ == "__main__":
    sys.exit(main())
