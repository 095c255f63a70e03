"""The parts of launch/scaling: a study is a file of series (plan), each run by moe_run bench under launch/run (measure),
whose rows become points (points) with a bound (bound), curves and digests (judge), and files (write, extrap)."""
