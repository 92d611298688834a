import pytest

from cnnbench.base.errors import UsageError
from cnnbench.cases.platforms import check_platform, detect_platform, load_platforms
from cnnbench.machine.host import CpuInfo

INTEL, AMD = "GenuineIntel", "AuthenticAMD"


def test_the_table_lists_the_platforms_in_their_order():
    codes = " ".join(platform.code for platform in load_platforms())
    assert codes == "GNR SPR EMR ICX SRF GENOA TURIN BERGAMO MILAN ROME CLX SKX GENERIC"


@pytest.mark.parametrize(
    ("vendor", "family", "model", "stepping", "code"),
    [
        (INTEL, 6, 173, 1, "GNR"),
        (INTEL, 6, 174, 0, "GNR"),
        (INTEL, 6, 143, 8, "SPR"),
        (INTEL, 6, 207, 2, "EMR"),
        (INTEL, 6, 106, 6, "ICX"),
        (INTEL, 6, 108, 1, "ICX"),
        (INTEL, 6, 107, 1, "GENERIC"),
        (INTEL, 6, 175, 3, "SRF"),
        (INTEL, 6, 85, 4, "SKX"),
        (INTEL, 6, 85, 7, "CLX"),
        (INTEL, 6, 85, 11, "GENERIC"),  # Cooper Lake
        (INTEL, 6, 167, 1, "GENERIC"),
        (AMD, 25, 1, 1, "MILAN"),
        (AMD, 25, 17, 1, "GENOA"),
        (AMD, 25, 33, 0, "GENERIC"),  # Ryzen 5000
        (AMD, 25, 160, 2, "BERGAMO"),
        (AMD, 23, 49, 0, "ROME"),
        (AMD, 23, 1, 2, "GENERIC"),  # Naples
        (AMD, 26, 2, 1, "TURIN"),
        (AMD, 26, 17, 0, "TURIN"),  # dense
        (AMD, 6, 143, 8, "GENERIC"),
        (None, None, None, None, "GENERIC"),  # an Arm /proc/cpuinfo
    ],
)
def test_the_cpu_names_the_platform(vendor, family, model, stepping, code):
    assert detect_platform(CpuInfo(vendor, family, model, stepping)) == code


def test_a_table_without_a_match_is_generic(tmp_path):
    path = tmp_path / "platforms"
    path.write_text("SPR GenuineIntel 6 143 * Sapphire Rapids  # a comment\n\n")
    table = load_platforms(path)
    assert table[0].description == "Sapphire Rapids"
    assert detect_platform(CpuInfo(AMD, 25, 17, 1), table) == "GENERIC"


def test_platform_names_are_normalised():
    assert check_platform("spr") == "SPR"
    assert check_platform("GENERIC") == "GENERIC"


@pytest.mark.parametrize("name", ["XYZ", "", "SPR "])
def test_an_unknown_platform_lists_the_known(name):
    with pytest.raises(UsageError, match=rf"^PLATFORM={name}: must be one of GNR, SPR, .*, GENERIC$"):
        check_platform(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SPR GenuineIntel 6 143 *", r"platforms:1: 5 columns"),
        ("# table\nSPR GenuineIntel 6 14x * text", r"platforms:2: .*14x"),
        ("ICX GenuineIntel 6 106 * a\nICX GenuineIntel 6 108 * b", r"platforms:2: ICX is listed twice"),
    ],
)
def test_a_malformed_table_names_the_line(tmp_path, text, message):
    (tmp_path / "platforms").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_platforms(tmp_path / "platforms")


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere: not found"):
        load_platforms(tmp_path / "nowhere")
