"""What can be said about the fixed point: measured, certified, and made so by construction.

`torchcbl.contraction` and `torchcbl.make_contractive` are the two front doors.
"""

from torchcbl.theory.contraction import Contraction, posterior_bound
from torchcbl.theory.rates import Recommendation
from torchcbl.theory.regulariser import jacobian_penalty

__all__ = ["Contraction", "Recommendation", "jacobian_penalty", "posterior_bound"]
