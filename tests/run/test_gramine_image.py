"""The image that enclaves run in: which Gramine it gets, and what it says about that."""

from dataclasses import replace

import pytest

from checkout import WORKLOAD
from cnnbench.base.errors import UsageError
from cnnbench.cases.workload import load_workload
from cnnbench.run.images import ImageOptions, bill_of_materials, plan_images


def gramine_argument(role, **options):
    return plan_images(WORKLOAD, load_workload(WORKLOAD), ImageOptions(**options))[role].arguments.get("GRAMINE")


def gramine_in_bill(**options):
    return bill_of_materials(load_workload(WORKLOAD), ImageOptions(**options)).debian.get("gramine")


def test_only_the_image_for_enclaves_is_told_the_version():
    assert gramine_argument("sgx", gramine="1.6.2") == "1.6.2"
    assert gramine_argument("sgx") == "none"
    assert gramine_argument("real", gramine="1.6.2") is None


def test_the_bill_of_materials_has_gramine_when_the_image_has_it():
    assert gramine_in_bill(gramine="1.6.2") == "1.6.2"
    assert gramine_in_bill() is None


@pytest.mark.parametrize("version", ["None", "yes", "latest", "1.7 --force", "1.7;reboot", "-1", "v1.7"])
def test_what_is_no_version_is_refused(version):
    options = replace(ImageOptions(), gramine=version)
    with pytest.raises(
        UsageError, match=r"^GRAMINE=.*: must be the version of a Debian package, such as 1\.7, or none$"
    ):
        options.check()


@pytest.mark.parametrize("version", ["1.7", "1.8~rc2", "1.3.1-1~ubuntu0.18.04"])
def test_versions_as_debian_has_them(version):
    ImageOptions(gramine=version).check()
