# SPDX-License-Identifier: MIT
from tests.golden_files import parameters
from tests.models.contract import ModelContract


class TestHRNetV2(ModelContract):
    name = "hrnet"
    options = {"backbone": "hrnet_w18"}  # noqa: RUF012 - never changed
    stride = 4
    aux_weights = {}  # noqa: RUF012 - never changed


def test_parameters():
    assert parameters(name="hrnet", backbone="hrnet_w48") == 70_006_560


def test_the_form_of_its_authors():
    """1×1 with bias before the norm, where ours has 3×3 and no bias in the classifier."""
    ours = parameters(name="hrnet", backbone="hrnet_w48")
    theirs = parameters(name="hrnet", backbone="hrnet_w48", variant="hrnet")
    assert theirs == ours - 8 * 720 * 720 + 19
