"""The paper's numbers of the faults, for those who know them as ``fault=8``."""

__all__ = ["fault_number_names"]

fault_number_names: dict[int, str] = {
    1: "shallower",
    2: "wrong_filter_size",
    3: "missing_activation",
    4: "wrong_learning_rate",
    5: "too_few_epochs",
    6: "wrong_loss",
    7: "misscaled_inputs",
    8: "label_noise",
    9: "too_little_data",
    10: "noisy_inputs",
    11: "natural_shift_v4",
    12: "natural_shift_v6",
}
"""Fault name by the paper's number, 1 to 12."""
