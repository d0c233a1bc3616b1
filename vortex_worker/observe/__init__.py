"""What a fabric does, for the systems that watch services: ``metrics`` (Prometheus) and ``tracing`` (OpenTelemetry).

Both are extras, off until you call their ``instrument(fabric)``, and hang on ``Fabric.observe``.
"""
