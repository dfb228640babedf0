"""`python -m fleetnas.agent`: the same as `fleetnas-agent`, but the current folder is first on the import path.

Start agents with the console script: a file such as `numpy.py` in the folder where `python -m` is started is executed.
"""

from fleetnas.agent.cli.main import main

if __name__ == "__main__":
    main()
