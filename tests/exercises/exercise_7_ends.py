"""Exercise 7: where a completion ends.

What. All completions of a step are drawn together, one token at a time, in a batch of rows. A row
ends with the first end of sequence (EOS) that it draws. The EOS is an action of the policy like any
other: it is part of the completion, it has a log-prob, and it is trained. What comes after it does
not exist. A row that reaches the maximum length without an EOS is truncated.

    drawn       a b EOS c d        completion  a b EOS     length 3, not truncated
    drawn       a b c d e          completion  a b c d e   length 5, truncated

Qwen2-VL has two tokens that end a completion, <|im_end|> and <|endoftext|>. The second one is the
pad token too.

A finished row leaves the batch, so that it costs nothing more, and another row moves to its place:
place i of the batch is row `self.row[i]` of the rollout. A sampler may also draw several tokens
before it looks (a CUDA graph does), so `drawn` holds a window of n tokens, and an EOS can stand
anywhere in it, more than once.

Traps.
* trl#4970, RAGEN#59, tiny-grpo: the mask of a completion was found by `id == pad`. If pad and EOS
  are one token, the true end is masked: the policy never learns to stop, and lengths grow to the
  limit. If they are not, what stands after the end is trained.
* reasoning-from-scratch#185: a book's own code left the EOS out of the completion.
* Only one of the two ends was looked for, so that rows went on after the other.
* Lengths written to the place in the batch in place of the row: right until the first row leaves.

Write the method, then run `pytest tests/exercises/exercise_7_ends.py`.
"""

from torch import Tensor

from models.sampling import sampler


class Rollout(sampler.Rollout):
    """The completions as they are drawn. `add` reads and writes these of its fields:

    task.eos   set of int: the tokens that end a completion
    row        (live,) int64: the row that each place of the batch decodes; `add` does not change it
    tokens     (rows, max_length) int64, and logprobs (rows, max_length) float32
    lengths    (rows,) int64, EOS included; max_length at the start
    stopped    (rows,) bool: an EOS was drawn; False at the start
    """

    def add(self, start: int, drawn: Tensor) -> Tensor:
        """Write the tokens drawn[0] and log-probs drawn[1], (live, n) float64 each, to the
        positions start ... start + n - 1 of their rows. Return which places ended (live,) bool.

        What is written after an EOS means nothing. (The project's own method also raises an error
        for a token of -1; leave that out.)
        """
        raise NotImplementedError("not begun")


# Hint 1. self.tokens[self.row, a:b] = ... writes the columns a to b of the rows of all places.
#
# Hint 2. torch.isin(tokens, ends) with the ends as a tensor gives (live, n) bool. Its any() over
#   dim=1 is what is returned.
#
# Hint 3. argmax of that as int finds the FIRST end, because argmax returns the first of equal
#   numbers. The length is start + first + 1: the + 1 keeps the EOS. Write it, and `stopped`, for
#   self.row[done] and no other row.
