"""What a monitoring system may ask of the server: is it alive, is it ready, and numbers. Served by the console.

One scrape gets all. What has to outlive a process is counted from the store, what a process uses is read from the
kernel, and what only the link knows it tells over the desk; so there is one port, and nothing to merge.
"""

from dure_server.watching.metrics import ServerMetrics
from dure_server.watching.readiness import Readiness, readiness

__all__ = ["Readiness", "ServerMetrics", "readiness"]
