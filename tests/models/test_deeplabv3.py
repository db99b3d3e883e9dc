# SPDX-License-Identifier: MIT
from tests.golden_files import parameters
from tests.models.contract import ModelContract


class TestDeepLabV3(ModelContract):
    name = "deeplabv3"
    one_image_trains = False


def test_parameters():
    assert parameters(name="deeplabv3") == 62_893_798
