# SPDX-License-Identifier: MIT
from tests.golden_files import assert_equals_golden, parameters
from tests.models.contract import ModelContract


class TestPSPNet(ModelContract):
    name = "pspnet"
    one_image_trains = False


def test_equals_the_published_network():
    assert_equals_golden("pspnet_r101", ("aux", "main"), name="pspnet")


def test_parameters():
    assert parameters(name="pspnet") == 70_437_350
