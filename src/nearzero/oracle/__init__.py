"""Exact denoisers: data whose best answer is known, so that what a network should say can be computed.

For data x0 and x_t = alpha x0 + sigma eps, the best estimates are the posterior means E[x0 | x_t] and E[eps | x_t], and
log p_t is a mixture of Gaussians. All of it is computed in float64 and cast to the dtype of x; nothing divides by sigma
or alpha except where a finite set of points is asked for its noise.
"""

from nearzero.oracle.base import Exact, ExactShared, Oracle
from nearzero.oracle.mixture import GaussianMixture
from nearzero.oracle.points import PointCloud

__all__ = ["Exact", "ExactShared", "GaussianMixture", "Oracle", "PointCloud"]
