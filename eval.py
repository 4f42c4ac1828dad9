"""Scores a checkpoint on a data split with COCO's rules.

    python eval.py --workdir=runs/digits
    python eval.py --config=configs/retinanet.py:49-B --workdir=runs/49 --split=val2017

Prints the numbers, and writes results.json and detections.json (COCO's results format, what its
test server takes) to --output: the workdir, or for another split than the run's own a folder
`eval-<split>` in it. Where the config has `eval.expected`, a number of the run's own split outside
its tolerance makes the exit status 1.
"""

import sys

from absl import flags

from spinenet_jax import launch

_SPLIT = flags.DEFINE_string('split', 'eval', 'Split to score; the config names the default.')
_CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'best, latest, or a step.')
_OUTPUT = flags.DEFINE_string('output', '', 'Folder for the files; by default in the workdir.')


def main() -> int:
    """Exit status 0: done; 1: not the numbers that the config expects, or a full disk; 2: a user's
    mistake.
    """
    launch.start_jax()
    failures = evaluate()
    if failures:
        print(f'regression: {"; ".join(failures)}', file=sys.stderr)
    return 1 if failures else 0


def evaluate() -> list[str]:
    """Does the work; returns what differs from `eval.expected`."""
    import jax

    from spinenet_jax import inference
    from spinenet_jax.data.batch import check_categories
    from spinenet_jax.data.build import build_source, split_name
    from spinenet_jax.evaluation import report, runner

    workdir = flags.FLAGS.workdir
    trained = inference.load_trained(flags.FLAGS.config, workdir, _CHECKPOINT.value)
    config, needs = trained.config, trained.task.rows.needs
    source = build_source(config.data, _SPLIT.value, config.model.num_classes, needs)
    check_categories(trained.categories, source.categories)
    result = runner.evaluate(config, trained.task, trained, source, trained.eval_step)
    split = split_name(config.data, _SPLIT.value)
    own = split == config.data.eval_split
    if jax.process_index() == 0:
        print('\n'.join([f'{source.name}, checkpoint {trained.step}', *source.report]))
        print(report.table(result, trained.task.main_metric))
        facts = {'step': trained.step, 'split': source.name}
        folder = _OUTPUT.value or report.folder_of(workdir, '' if own else split)
        report.write_files(folder, result, facts)
        print(f'results are in {folder}')
    if not own:
        if config.eval.expected:
            print(f'eval.expected is of split {config.data.eval_split}: not compared')
        return []
    return report.mismatches(result.metrics, config.eval.expected)


if __name__ == '__main__':
    launch.define_flags(config_required=False)
    flags.adopt_module_key_flags(launch)
    launch.run(main, config_of_workdir=True, out_of_memory=launch.OUT_OF_MEMORY_INFERENCE)
