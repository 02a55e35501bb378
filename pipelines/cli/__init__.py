"""The command line. Importing it is fast, because commands import what they need when they run."""


def main() -> None:
    """Run the command line."""
    from pipelines.cli.app import main as run

    run()
