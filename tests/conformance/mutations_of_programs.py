"""Small bugs of settings, run folders and data, as (name, tests, file, old text, new text).

The form is that of mutations.py, but the second field names the test files that see the bug: no
peer's thread tells of these. `python tests/conformance/mutate.py --only NAME` puts one in.
The old text must occur exactly once in its file; it is kept short, so that it survives editing.
"""

CONFIG, FLAGS = "grpo/settings/config.py", "grpo/settings/flags.py"
OPTIONS, RECIPES = "grpo/settings/options.py", "grpo/settings/recipes.py"
ERRORS, ATOMIC = "grpo/settings/errors.py", "grpo/run/atomic.py"
PROGRESS, TERMINAL = "grpo/run/progress.py", "grpo/run/terminal.py"
DIAGNOSES, LOG, TRACE = "grpo/run/diagnoses.py", "grpo/run/metrics_log.py", "grpo/run/trace.py"
SPLITS, ORDER = "data/splits.py", "data/training_questions.py"
ALTERED, PRIORS = "data/controls/altered.py", "data/controls/priors.py"
ROWS, OMNI, COMMON = "data/rows.py", "data/readers/omnimedvqa.py", "data/readers/common.py"

SETTINGS_TESTS = "tests/grpo/settings/test_config.py tests/grpo/settings/test_recipes.py"
OPTIONS_TESTS = "tests/grpo/settings/test_options.py"
ERRORS_TESTS = "tests/grpo/settings/test_errors.py"
PROGRESS_TESTS = "tests/grpo/run/test_progress.py"
DIAGNOSES_TESTS = "tests/grpo/run/test_diagnoses.py"
LOG_TESTS = "tests/grpo/run/test_metrics_log.py"
TRACE_TESTS = "tests/grpo/run/test_trace.py"
ATOMIC_TESTS = "tests/grpo/run/test_atomic.py"
SPLITS_TESTS = "tests/data/test_splits.py tests/data/test_official_splits.py"
ORDER_TESTS = "tests/data/test_training_questions.py"
ALTERED_TESTS = "tests/data/controls/test_altered.py"
PRIORS_TESTS = "tests/data/controls/test_priors.py"
OMNI_TESTS = "tests/data/readers/test_omnimedvqa.py"

PROGRAMS = [
    # Settings
    ("the recipe wins over a flag", SETTINGS_TESTS, CONFIG, "**RECIPES[name], **given,",
     "**given, **RECIPES[name],"),
    ("a group of one is trained on", SETTINGS_TESTS, CONFIG, "self.group_size < 2",
     "self.group_size < 1"),
    ("the modality trained on is scored as unseen", SETTINGS_TESTS, CONFIG,
     "if name != self.modality)", "if name)"),
    ("true counts as the number 1", SETTINGS_TESTS, FLAGS, "fits = type(value) is kind",
     "fits = isinstance(value, kind)"),
    ("a learning rate may be NaN", SETTINGS_TESTS, FLAGS, "not math.isfinite(value)",
     "math.isinf(value)"),
    ("a bound is left out", SETTINGS_TESTS, FLAGS, "getattr(operator, bound)(",
     'getattr(operator, bound.replace("lt", "le"))('),
    ("underscores of values become dashes", SETTINGS_TESTS, FLAGS, '"^--[^=]*"', '"^--.*"'),
    ("a flag may be abbreviated", SETTINGS_TESTS, FLAGS, "allow_abbrev=False", "allow_abbrev=True"),
    ("none among names drops the others", SETTINGS_TESTS, FLAGS, "len(nones) < len(names)",
     "len(nones) > len(names)"),
    ("the last step is not traced", TRACE_TESTS, FLAGS, "range(every, steps, every), steps}",
     "range(every, steps, every)}"),
    ("a small GPU gets the 2B model", SETTINGS_TESTS, RECIPES, "if memory < BIG_ENOUGH",
     "if memory < BIG_ENOUGH / 2"),
    ("a setting of the run is never replaced", OPTIONS_TESTS, OPTIONS,
     "if value not in (None, AS_RUN)}", "if value in (None, AS_RUN)}"),
    ("open hides the options of later ways", OPTIONS_TESTS, OPTIONS, '"open" in self.ways[:-1]',
     '"open" in self.ways[1:-1]'),
    ("a message runs over several lines", ERRORS_TESTS, ERRORS, "c if c.isprintable()",
     "c if c"),
    # The run folder and the terminal
    ("a run shows the completion of the second question", PROGRESS_TESTS, PROGRESS,
     "ask(rollout.examples[0])", "ask(rollout.examples[-1])"),
    ("signal is the share without any", PROGRESS_TESTS, PROGRESS,
     "1 - metrics['frac_reward_zero_std']", "metrics['frac_reward_zero_std']"),
    ("what changed averages NaN", PROGRESS_TESTS, PROGRESS, "if math.isfinite(step.get(name",
     "if not math.isinf(step.get(name"),
    ("escape sequences reach the terminal", PROGRESS_TESTS, TERMINAL, "c if c.isprintable() else",
     "c if c != chr(10) else"),
    ("the time left counts the steps of before", PROGRESS_TESTS, TERMINAL,
     "elapsed / (done - self.before)", "elapsed / done"),
    ("a diagnosis is said at every step", DIAGNOSES_TESTS, DIAGNOSES, "> AGAIN:", "> 0:"),
    ("a rise of accuracy is called a fall", DIAGNOSES_TESTS, DIAGNOSES,
     "now - was < -max(4 * error, 0.05)", "abs(now - was) > max(4 * error, 0.05)"),
    ("the first window ends with the run", DIAGNOSES_TESTS, DIAGNOSES, "history[start:][:TREND]",
     "history[start:]"),
    ("a metric that is NaN breaks the JSON", LOG_TESTS, LOG, "v if math.isfinite(v) else None",
     "v if not math.isinf(v) else None"),
    ("null is read as zero", LOG_TESTS, LOG, "math.nan if v is None", "0.0 if v is None"),
    ("a trace keeps other groups' tokens", TRACE_TESTS, TRACE, "step.old_logprobs[:n]",
     "step.old_logprobs[-n:]"),
    ("a step's JSON is written before its numbers", TRACE_TESTS, TRACE,
     'write_whole(folder / f"{name}.safetensors", save(_tensors(step)))',
     'write_whole(folder / f"{name}.json", json.dumps(record).encode())'),
    ("an extra file passes the checksums", ATOMIC_TESTS, ATOMIC, "{*_sums(folder)} ^ {*written}",
     "{*written} - {*_sums(folder)}"),
    ("half a folder is left behind", ATOMIC_TESTS, ATOMIC,
     "shutil.rmtree(part, ignore_errors=True)", "pass"),
    # Data
    ("copies of an image cross the splits", SPLITS_TESTS, SPLITS, "if len(part) > 1]",
     "if len(part) > 2]"),
    ("the split ignores the seed", SPLITS_TESTS, SPLITS, '_unit("test", seed, group)',
     '_unit("test", 0, group)'),
    ("a test image also trains", SPLITS_TESTS, SPLITS, 'for name in ("test", "val", "train")',
     'for name in ("train", "val", "test")'),
    ("a question type comes before the others", SPLITS_TESTS, SPLITS,
     "for turn in turns for example in turn", "for turn in zip(*turns) for example in turn"),
    ("every epoch has the same order", ORDER_TESTS, ORDER, "generator(seed, epoch).permutation",
     "generator(seed, 0).permutation"),
    ("a redrawn slot asks the same question", ORDER_TESTS, ORDER,
     "generator(seed, step, slot, attempt)", "generator(seed, step, slot)"),
    ("a shuffled image is the question's own", ALTERED_TESTS, ALTERED, "row[(i + step) % len(row)]",
     "row[(i + 1) % len(row)]"),
    ("permuted options leave the gold letter", ALTERED_TESTS, ALTERED,
     "gold=(example.gold + k) % n", "gold=example.gold"),
    ("a tie counts as right", PRIORS_TESTS, PRIORS, "return 1 / len(best) if", "return 1.0 if"),
    ("an answer must match to the full stop", OMNI_TESTS, ROWS, '.rstrip(" .,;:")', ""),
    ("an unknown modality is kept", OMNI_TESTS, ROWS, 'return "" if lowered == "unknown" else',
     'return "" if not lowered else'),
    ("restricted questions are not read", OMNI_TESTS, OMNI, '"Open-access", "Restricted-access")',
     '"Open-access",)'),
    ("an image outside the data folder is read", OMNI_TESTS, COMMON,
     "require(full.startswith(root + os.sep),", "require(full,"),
]  # fmt: skip
