"""How many replicas there are: a fixed number, as many as an autoscaler wants, or an instance for each request.

`Autoscaled` is the rule of Kubernetes' HorizontalPodAutoscaler on the requests in progress a replica, which Ray Serve
(``target_ongoing_requests``) and Knative (concurrency) count, too. It scales to zero and back as KEDA does.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

FIXED, AUTOSCALED, SERVERLESS, BEST = "fixed", "autoscaled", "serverless", "best"
POLICIES = (FIXED, AUTOSCALED, SERVERLESS)
NEARLY = 1e-9


@dataclass(frozen=True)
class Fixed:
    """So many replicas, always."""

    replicas: int


@dataclass(frozen=True)
class Autoscaled:
    """The rule of Kubernetes' HorizontalPodAutoscaler, with its defaults.

    Attributes:
        target: requests in progress (waiting or served) for each replica.
        min_replicas: 0 lets the service go to zero, as KEDA does with a Deployment.
        max_replicas: the most.
        sync_s: from decision to decision; the metric is the mean since the last one.
        tolerance: no change while the metric over its target is this near to 1.
        up_window_s, down_window_s: stabilization windows: scaling up takes the lowest, scaling down the highest number
            wanted within them.
        cooldown_s: the last replica goes after so long without a request (KEDA's ``cooldownPeriod``).
        poll_s: a request is noticed at the next multiple of it while there is no replica (KEDA's ``pollingInterval``);
            0 is at once, as Knative's activator does.
    """

    target: float
    min_replicas: int
    max_replicas: int
    sync_s: float = 15.0
    tolerance: float = 0.1
    up_window_s: float = 0.0
    down_window_s: float = 300.0
    cooldown_s: float = 300.0
    poll_s: float = 30.0


Policy = Fixed | Autoscaled


def desired_replicas(current: int, in_progress: float, target: float, tolerance: float) -> int:
    """``ceil(current * metric / target)`` with ``metric = in_progress / current``; ``current`` within the tolerance."""
    ratio = in_progress / (current * target)
    return current if abs(ratio - 1) <= tolerance else math.ceil(current * ratio - NEARLY)


class Scaler:
    """Turns wanted numbers of replicas into numbers of replicas, decision by decision."""

    def __init__(self, policy: Autoscaled):
        self.policy = policy
        self._wanted: deque[tuple[float, int]] = deque()

    def decide(self, now: float, current: int, in_progress: float) -> int:
        """The number of replicas from now on.

        Args:
            now: seconds; later than at the call before.
            current: replicas that run or start, at least 1.
            in_progress: requests waiting or served, on average since the last decision.
        """
        rule = self.policy
        wanted = desired_replicas(current, in_progress, rule.target, rule.tolerance)
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - max(rule.up_window_s, rule.down_window_s):
            self._wanted.popleft()
        up = min(n for time, n in self._wanted if time >= now - rule.up_window_s)
        down = max(n for time, n in self._wanted if time >= now - rule.down_window_s)
        stable = min(max(current, up), down)
        at_most = max(2 * current, current + 4)  # the default policies of scaling up, in 15 s
        return max(1, rule.min_replicas, min(stable, at_most, rule.max_replicas))
