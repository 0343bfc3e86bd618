"""The private servers of `acgsperf.testing`, for what people run."""

from acgsperf.testing.embedded import Servers, embedded_servers

__all__ = ["Servers", "embedded_servers"]
