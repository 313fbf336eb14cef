"""The tables of the three papers as arms that `python -m grpo.reproduce` runs, and their numbers.

A paper's number is quoted with its source: "verified" (against the project's own sources or the
abstract), "summary" (a third party's), or "unverified" (recalled, not read). The full texts were
not at hand.
"""

from dataclasses import dataclass, field

# At phantom scale there is no expert model: a rule that knows the true findings replaces it.
EXPERT = {"semantic": "findings", "reasoning": "findings", "correctness": "accuracy"}


@dataclass(frozen=True)
class Arm:
    """A row: the flags of its run besides the table's, and the paper's result in that row."""

    name: str
    flags: str = ""
    paper: str = "-"
    minutes: float = 6.5  # about, of one run and its evaluation at phantom scale on 2 CPU cores
    after: str = ""  # the arm whose adapter it starts from


@dataclass(frozen=True)
class Table:
    """One paper: its arms, the flags they share, and the data they are tested on at each scale."""

    about: str
    paper: str  # what is known of its result as a whole
    arms: tuple[Arm, ...]
    evaluation: str  # flags of evaluate.py
    downloads: str  # at 2B scale
    flags: dict[str, str] = field(default_factory=dict)  # scale -> flags of all arms
    unseen: dict[str, tuple[str, ...]] = field(default_factory=dict)  # scale -> never trained on


MODEL = "Qwen/Qwen2-VL-2B-Instruct, 4.4 GB"
SFT = "--method sft"
SFT_REASONS = f"{SFT} --sft-target reasoning"
REASONING = "--reward format=1,correctness=1,reasoning=1"

TABLES = {
    "medvlm-r1": Table(
        about="MedVLM-R1 (arXiv 2502.19634): GRPO on MRI, tested on MRI, CT and X-ray",
        paper="base 55.11 and GRPO 78.22 on average, GRPO over SFT +16 CT, +35 X-ray (verified); "
        "base 61.67 / 50.67 / 53.00 (unverified). Of the SFT row one cell or its average is wrong",
        arms=(
            Arm("SFT", SFT, "94.00 / 54.33 / 34.00 (unverified)", minutes=2.0),
            Arm("GRPO", "", "95.33 / 70.33 / 69.00 (unverified)", minutes=3.0),
            Arm("GRPO, no thinking", "--prompt direct", "none; Med-R1 (2503.13939) prefers it", 3),
            Arm("GRPO, shuffled answers", "--shuffle-answers", "none, a control", minutes=3.0),
            Arm("GRPO, blind", "--blind", "none, a control", minutes=3.0),
            Arm("GRPO, format only", "--reward format", "none, a control", minutes=3.0),
        ),
        evaluation="--controls none",
        downloads=f"{MODEL}; its 600 + 900 questions within Medical_Multimodal_Evaluation_Data",
    ),
    "rarl": Table(
        about="RARL (arXiv 2506.06600): rewards for answer and reasoning, diversity prompting",
        paper="on unseen sets about +27 % over SFT and +4 % over plain RL (verified); on "
        "SilVar-Med reasoning accuracy by human evaluation 57.08 after SFT, 64.86 after RARL "
        "(summary; +7.78 verified); the gains of diversity prompting are in accuracy by GPT-4o "
        "mini. SilVar-Med is made of SLAKE's images, so SLAKE is not wholly unseen",
        arms=(
            Arm("SFT, answers", SFT, minutes=5.0),
            Arm("SFT, reasoning (privileged)", SFT_REASONS, "57.08, human evaluation (summary)", 5),
            Arm("GRPO", "--reward format=1,correctness=1"),
            Arm("+ reasoning reward", REASONING),
            Arm(
                "+ diversity prompting",
                f"{REASONING} --diversity explain,direct,open",
                "64.86; VQA-RAD +4.17, SLAKE +9.18, PathVQA +4.41 (summary)",
            ),
        ),
        flags={"phantom": "--lora-r 8 --lora-alpha 16", "2b": "--diversity none"},
        evaluation="--controls none --prompt reason,direct",
        unseen={"phantom": ("phantom:new-kind",), "2b": ("vqa-rad", "slake", "path-vqa")},
        downloads=f"{MODEL}; VQA-RAD 35 MB, SLAKE, PathVQA. By hand: SilVar-Med, for "
        "--data silvar-med:FOLDER, and VQA-Med-2019, which --unseen vqa-med-2019:FOLDER adds",
    ),
    "clinical": Table(
        about="Zhu et al. (arXiv 2505.13973): initialisation, semantics, length and bias",
        paper="accuracy in percent on PMC-VQA (summary); similarity 0.21, with the semantic reward "
        "0.46 (summary). What its perplexity is of was not found; ours is of the reference answer "
        "in the format, after the reference reasoning where there is one. "
        "Their DPO and full-tuning rows are out of scope",
        arms=(
            Arm("SFT", SFT, "52.00, their best SFT", minutes=4.0),
            Arm("GRPO, scratch", "--init base", "perplexity 14.16"),
            Arm("GRPO", "", "58.04, perplexity 13.28"),
            Arm("GRPO after SFT", "", after="SFT"),
            Arm("+ semantic", "--reward format=1,accuracy=1,semantic=1", "59.86"),
            Arm("+ ECR", "--reward format=1,accuracy=1,length-ecr=1", "50.17"),
            Arm("+ CWR", "--reward format=1,accuracy=1,length-cwr=1", "54.68"),
            Arm("Dr.GRPO", "--loss dr_grpo --scale-rewards none", "61.09"),
            Arm("GRPO, shuffled options", "--shuffle-options"),
        ),
        evaluation="--controls fast --metrics perplexity",
        downloads=f"{MODEL}, for one row Qwen/Qwen2-VL-2B, as large; PMC-VQA 2.3 GB",
    ),
}
