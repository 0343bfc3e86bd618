"""Chooses one of several endpoints, such as the instances of a service, for each request."""

from acgsperf.balance.balancer import Balancer, BalancerStats, Choice
from acgsperf.balance.endpoint import EndpointStats
from acgsperf.balance.retry_budget import RetryBudget

__all__ = ["Balancer", "BalancerStats", "Choice", "EndpointStats", "RetryBudget"]
