from psgd_optim.forms.low_rank import Order
from tests.psgd_optim.forms import test_low_rank


class TestLowRankScaleLast(test_low_rank.TestLowRank):
    order = Order.SCALE_LAST
