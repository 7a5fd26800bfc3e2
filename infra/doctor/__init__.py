"""What this machine has and lacks for running packages: ``python -m infra.doctor``."""
