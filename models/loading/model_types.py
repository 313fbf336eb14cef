"""The types of models that load, and what differs between them.

Everything else is read off a model's own config, whatever its type: whether the head is tied to the
embedding, the size of patches and how many of them make a token, windows, rotary sections.
"""

from collections import namedtuple

import transformers

# Of one `model_type` of config.json: its name in words and its class; `processor`, the class that
# preprocessor_config.json names, which vLLM opens; `features`, the field of vision_config that is
# the width of an image's features.
ModelType = namedtuple("ModelType", ("name", "model", "processor", "features"))
QWEN2_VL = transformers.Qwen2VLForConditionalGeneration
QWEN2_5_VL = transformers.Qwen2_5_VLForConditionalGeneration
MODEL_TYPES = {
    "qwen2_vl": ModelType("Qwen2-VL, 2B to 72B", QWEN2_VL, "Qwen2VLProcessor", "hidden_size"),
    # Its tower attends within windows, and puts the features back in the order of the image. Its
    # `hidden_size` is the tower's own width, which Qwen2-VL calls `embed_dim`.
    "qwen2_5_vl": ModelType(
        "Qwen2.5-VL, 3B to 72B", QWEN2_5_VL, "Qwen2_5_VLProcessor", "out_hidden_size"
    ),
}
