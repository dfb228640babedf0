"""`python -m agent`: the same as `fleetnas-agent`."""

from fleetnas.agent.cli.main import main

if __name__ == "__main__":
    main()
