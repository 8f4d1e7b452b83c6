"""The command line. The only folder that knows Hydra."""
