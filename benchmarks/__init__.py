"""What the library costs, beside its peers: `python -m benchmarks`. `README.rst` here tells how to read it."""
