"""One file per probe; its name is the probe's name, its `METHOD` the probe at its defaults."""
