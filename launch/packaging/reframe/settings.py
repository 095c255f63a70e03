# A system of one machine for ReFrame 4: reframe -C settings.py -c moe_run_check.py -r
# A centre has settings of its own; then only moe_run_check.py is needed.
site_configuration = {
    "systems": [{
        "name": "machine",
        "descr": "this machine, with mpirun",
        "hostnames": [".*"],
        "partitions": [{"name": "cores", "scheduler": "local", "launcher": "mpirun", "environs": ["default"]}],
    }],
    "environments": [{"name": "default"}],
    "logging": [{"handlers": [{"type": "stream", "name": "stdout", "level": "info", "format": "%(message)s"}]}],
}
