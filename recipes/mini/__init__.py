"""The recipe of polyvec-mini, the bundled model. `__main__.py` lists its phases."""
