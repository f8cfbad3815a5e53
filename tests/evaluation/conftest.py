"""Makes `fake_models` importable from every folder of these tests."""
