"""``python -m alm_jax`` is ``alm``."""

from alm_jax.cli.main import main

main()
