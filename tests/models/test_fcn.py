# SPDX-License-Identifier: MIT
from tests.golden_files import assert_equals_golden, parameters
from tests.models.contract import ModelContract


class TestFCN(ModelContract):
    name = "fcn"


def test_equals_the_published_network():
    assert_equals_golden("fcn_r101", ("aux", "main"), name="fcn")


def test_parameters():
    assert parameters(name="fcn") == 56_802_240
