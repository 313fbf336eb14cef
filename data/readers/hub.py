"""Which data sets of the Hugging Face hub are fetched by name: repository, commit and files.

VQA-Med-2019 and SilVar-Med are not among them: the one is not on the hub, of the other no list of
files is known to us.
"""

from collections import namedtuple

from data.readers.huatuo import HUB_NAME

TEST_OF_RAD = "eb520bdab1116dd4f420120da19049d2315389fa126d031f65ec42e153264ea7"
QUESTIONS_OF_HUATUO = "9ba3cdeb31dcfc084703db145802380e861d3a32f2c3500154284a754c8ad9cf"
PARTS_OF_PATH_VQA = """
    train-00000-of-00007-f2d0e9ef9f022d38 train-00001-of-00007-47d8e0220bf6c933
    train-00002-of-00007-7fb5037c4c5da7be train-00003-of-00007-74b9b7b81cc55f90
    train-00004-of-00007-77eea90af4a55dce train-00005-of-00007-5332ec423be520bd
    train-00006-of-00007-637a58c700b604af validation-00000-of-00003-90a5518d26493b67
    validation-00001-of-00003-cbfe947a3418595c validation-00002-of-00003-9ec816895bd3bc20
    test-00000-of-00003-e9adadb4799f44d3 test-00001-of-00003-7ea98873fc919813
    test-00002-of-00003-1628308435019820
"""


# A data set on the hub: `repo`, as OWNER/NAME@REVISION, and `files`, of which a zip is unpacked; a
# name may be a pattern.
# `files` may hold a file to its content by its sha256 (else ""), whatever the revision names
# today. A commit is enough: the hub gives each large file's hash itself.
HubData = namedtuple("HubData", ("repo", "files"))
HUB = {
    "omnimedvqa": HubData(
        "foreverbeliever/OmniMedVQA@1ba51c28fc0773bdf7efb8396e5bcfd4227e22da",
        {"OmniMedVQA.zip": "12245e0f99afbc7d6f70e4ca3c2e5a7979a01816cd8159ae34539f4aa76adee0"},
    ),
    # Which of its commits to pin is not known to us, nor the hash of its images. So the newest is
    # taken and written down, and the questions, which decide the splits, are held to their hash.
    "huatuo": HubData(
        "FreedomIntelligence/Medical_Multimodal_Evaluation_Data@main",
        {HUB_NAME: QUESTIONS_OF_HUATUO, "images.zip": ""},
    ),
    # Neither its commits nor the names of its files are known to us.
    "medvlthinker-eval": HubData("UCSC-VLAA/MedVLThinker-Eval@main", {"data/*.parquet": ""}),
    "vqa-rad": HubData(
        "flaviagiammarino/vqa-rad@bcf91e7654fb9d51c8ab6a5b82cacf3fafd2fae9",
        {
            "data/train-00000-of-00001-eb8844602202be60.parquet": "",
            "data/test-00000-of-00001-e5bc3d208bb4deeb.parquet": TEST_OF_RAD,
        },
    ),
    "slake": HubData(
        "BoKelvin/SLAKE@a9083ce6c34ac3ffb17671a605962924d8a8f9e9",
        dict.fromkeys(("train.json", "validation.json", "test.json", "imgs.zip"), ""),
    ),
    "path-vqa": HubData(
        "flaviagiammarino/path-vqa@7568940e604f3e911441b1f6c7aedb5f1c2866bd",  # adds its last file
        dict.fromkeys(map("data/{}.parquet".format, PARTS_OF_PATH_VQA.split()), ""),
    ),
    "pmc-vqa": HubData(  # version 2; the images of version 1 are 18.9 GB
        "xmcmic/PMC-VQA@ff2098cad195b86eed2b3e2f9f42eeae1dbc410a",
        dict.fromkeys(("train_2.csv", "test_2.csv", "images_2.zip"), ""),
    ),
}
