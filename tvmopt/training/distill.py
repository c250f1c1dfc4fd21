"""What a network learns from another one: its answers softened, beside the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Hinton et al. (2015), "Distilling the knowledge in a neural network": both networks' logits are divided by the
# temperature, which shows how much alike the teacher thinks the classes it did not choose; its square gives the
# gradient back the size that the division takes. The share is of the teacher, the rest of the labels.
TEMPERATURE, SHARE = 4.0, 0.9


def distillation(logits: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
    """The loss, a scalar: SHARE of T^2 KL(teacher || student), softened, and 1 - SHARE of the cross entropy.

    logits, taught: (N, classes), of the student and of the teacher; labels: (N,) classes.
    """
    from torch.nn.functional import cross_entropy, kl_div, log_softmax

    student = log_softmax(logits.float() / TEMPERATURE, 1)
    teacher = log_softmax(taught.float() / TEMPERATURE, 1)
    softened = kl_div(student, teacher, reduction="batchmean", log_target=True)
    return SHARE * TEMPERATURE**2 * softened + (1 - SHARE) * cross_entropy(logits.float(), labels)
