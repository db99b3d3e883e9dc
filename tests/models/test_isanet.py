# SPDX-License-Identifier: MIT
from tests.golden_files import assert_equals_golden, parameters
from tests.models.contract import ModelContract


class TestISANet(ModelContract):
    name = "isanet"


def test_equals_the_published_network():
    assert_equals_golden("isanet_r101", ("aux", "main"), name="isanet")


def test_parameters():
    assert parameters(name="isanet") == 59_167_718
