"""Distillation: a smaller student imitates a teacher's probabilities token by token (Agarwal et al., arXiv 2306.13649).

    accelerate launch recipes/distill.py --config recipes/configs/distill/tiny.yaml \
        --teacher_model_name_or_path runs/demo/sft

Supports: offline distillation on the mixture's answers (`--lmbda 0`, the default), on-policy distillation on the
student's own answers (`--lmbda 1`), or a mix; every option of TRL's GKDConfig; a student from scratch (`--preset`) or
from a checkpoint; held-out loss and divergence from the teacher before, during and after training; resuming.
Assumes: a teacher with the student's tokenizer, and a mixture of phase sft or distill. To imitate answers that a
teacher wrote earlier, such as reasoning in <think> tags, use recipes/sft.py.
Exit codes: 0 done, 2 bad input (one line says what), 1 crash.
"""

from minimind_trl.run import parse_arguments, run_recipe
from minimind_trl.run.distill_config import DistillRecipeConfig


def main() -> None:
    args, config, lora = parse_arguments(DistillRecipeConfig)

    # Imported here, as in TRL's scripts, because `--help` does not need them and they take a second.
    from minimind_trl.run import Run
    from minimind_trl.trainers.gkd_trainer import MiniMindGKDTrainer, load_teacher

    run = Run(args, config, lora)
    teacher = load_teacher(config.teacher_model_name_or_path, run.model, config.use_cpu)
    data = run.load_data("sft", "distill")
    trainer = MiniMindGKDTrainer(
        model=run.model,
        teacher_model=teacher,
        args=config,
        processing_class=run.training_tokenizer,
        train_dataset=data.train,
        eval_dataset=data.validation,
        eval_batches=args.eval_batches,
        peft_config=run.peft_config,
    )
    run.finish(trainer)


if __name__ == "__main__":
    run_recipe(main)
