"""The counters of a connection pool under their former names."""

from dataclasses import dataclass

__all__ = ["ConnectionMetrics"]


@dataclass
class ConnectionMetrics:
    """The counters of a pool. Times are in seconds. They include failed acquisitions."""

    total_acquisitions: int = 0
    successful_acquisitions: int = 0
    failed_acquisitions: int = 0
    total_acquisition_time: float = 0.0
    peak_connections: int = 0
    current_connections: int = 0
    health_check_failures: int = 0
    connection_recycling_count: int = 0

    def get_avg_acquisition_time_ms(self) -> float:
        """Return the average wait for a connection in milliseconds; 0.0 without acquisitions."""
        count = self.total_acquisitions
        return self.total_acquisition_time / count * 1e3 if count else 0.0

    def get_success_rate(self) -> float:
        """Return successful acquisitions / all acquisitions, between 0 and 1; 1.0 without acquisitions."""
        return self.successful_acquisitions / self.total_acquisitions if self.total_acquisitions else 1.0
