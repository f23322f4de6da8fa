"""Distillation: a smaller student imitates a teacher's probabilities token by token (Agarwal et al., arXiv 2306.13649).

    accelerate launch recipes/distill.py --config recipes/configs/distill/tiny.yaml \
        --teacher_model_name_or_path runs/demo/sft

Supports: offline, on the mixture's answers (`--lmbda 0`, the default), on-policy, on answers that the student writes
(`--lmbda 1`), and both mixed; every option of TRL's GKDConfig; a student from scratch (`--preset`) or from a
checkpoint; held-out loss and divergence from the teacher before, during and after training; resuming.
Assumes: a teacher with the student's tokenizer and a mixture of phase sft or distill. To imitate a teacher's written
answers instead, such as reasoning in <think> tags, give them to recipes/sft.py.
Exit codes: 0 done, 2 bad input (one line says what), 1 crash.
"""

from minimind_trl.run import load_data, load_or_create_model, load_tokenizer, parse_arguments, run_recipe
from minimind_trl.trainers.distillation import DistillationConfig, load_teacher, train_distillation


def main() -> None:
    args, config, lora = parse_arguments(DistillationConfig)
    tokenizer = load_tokenizer(args)
    model = load_or_create_model(args, tokenizer, config.seed)
    teacher = load_teacher(config.teacher_model_name_or_path, model)
    data, mixer = load_data(args, config, tokenizer, phases=("sft", "distill"))
    train_distillation(args, config, lora, model, teacher, tokenizer, data, mixer)


if __name__ == "__main__":
    run_recipe(main)
