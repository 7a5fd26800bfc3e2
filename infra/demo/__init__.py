"""``make demo``: the whole chain on the real stack, through deployments."""
