"""The jobs: ingest, tokenise, train, evaluate, export, and the command line that runs them."""
