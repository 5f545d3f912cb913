"""Training and testing: command line, configs, runner, hooks, optimizers."""
