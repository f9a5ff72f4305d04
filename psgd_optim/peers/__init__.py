"""Second-order optimizers of other papers, for comparisons with `PSGD`.

K-BFGS, K-BFGS(L) and KFAC precondition every layer of a model by a Kronecker product; distributions
for KFAC's sampled targets are in `peers.likelihoods`.
"""

from psgd_optim.peers.kbfgs import KBFGS, KBFGSL
from psgd_optim.peers.kfac import KFAC

__all__ = ["KBFGS", "KBFGSL", "KFAC"]
