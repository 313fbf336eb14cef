"""Bytes and rows of the published data sets, as small as they can be, in their exact formats."""

import io
from collections.abc import Iterable
from typing import Any

from PIL import Image


def png(number: int) -> bytes:
    """A small PNG whose red is `number`."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet_bytes(rows: Iterable[dict[str, Any]], form: str = "struct", group: int = 2) -> bytes:
    """A parquet file in row groups of `group`, the column image as a struct or as bytes.

    An image is given by its number, or as bytes; None is null.
    """
    import pyarrow
    from pyarrow import parquet

    def held(image: Any) -> Any:
        content = png(image) if isinstance(image, int) else image
        return {"bytes": content, "path": None} if form == "struct" else content

    struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    names = dict.fromkeys(("question", "answer", *(name for row in rows for name in row)))
    columns = {name: [row.get(name) for row in rows] for name in names if name != "image"}
    images = [held(row.get("image")) for row in rows]
    image = pyarrow.array(images, struct if form == "struct" else pyarrow.binary())
    buffer = io.BytesIO()
    parquet.write_table(
        pyarrow.table({"image": image, **columns}), buffer, group, compression="none"
    )
    return buffer.getvalue()


def rad_row(number: int, **changes: Any) -> dict[str, Any]:
    """A row of VQA-RAD's OSF JSON."""
    return {
        "qid": str(number),
        "phrase_type": "freeform",
        "qid_linked_id": "03f451ca-de62-4617-9679-e836026a7642",
        "image_case_url": "https://medpix.nlm.nih.gov/case?id=48e1dd0e-8552-46ad-a354-5eb55be86de6",
        "image_name": f"synpic{number}.jpg",
        "image_organ": "HEAD",
        "evaluation": "not evaluated",
        "question": f"Are regions {number} of the brain infarcted?",
        "question_rephrase": "NULL",
        "question_relation": "NULL",
        "question_frame": "NULL",
        "question_type": "PRES",
        "answer": "Yes",
        "answer_type": "CLOSED",
        **changes,
    }


def slake_row(number: int, **changes: Any) -> dict[str, Any]:
    """A row of SLAKE."""
    return {
        "img_id": number,
        "img_name": f"xmlab{number}/source.jpg",
        "question": "Which organ is shown?",
        "answer": "Liver",
        "q_lang": "en",
        "location": "Abdomen",
        "modality": "MRI",
        "answer_type": "OPEN",
        "base_type": "vqa",
        "content_type": "Organ",
        "triple": ["vhead", "_", "_"],
        "qid": number,
        **changes,
    }


def pmc_row(number: int, **changes: Any) -> dict[str, Any]:
    """A row of PMC-VQA, version 1; a column that is None is left out."""
    return {
        "Figure_path": f"PMC{number}_F1.jpg",
        "Question": f"What is the uptake pattern, {number}?",
        "Anwser": "Focal uptake pattern",
        "Choice A": " A:Diffuse uptake pattern",
        "Choice B": " B:Focal uptake pattern",
        "Choice C": " C:No uptake, at all",
        "Choice D": " D:Cannot be told",
        "Answer_label": "B",
        **changes,
    }
