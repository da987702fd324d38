"""tiebeam: ready-made data pipelines on Apache Beam, with rows travelling as Arrow record batches."""

__version__ = "0.1.0"
