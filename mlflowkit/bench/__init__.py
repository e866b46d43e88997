"""The one honest latency measurement: `measure` takes the samples, `analysis` judges them, purely."""
