"""What peers.py makes of its times: ratios, rates, shares of the peak, and a table of them."""

import statistics
from typing import Any


def rows(answers: dict, about: dict[str, dict], spec: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each measure and peer.

    Args:
      answers: {measure: answers of the peers}, of `round_robin`.
      about: {peer: what it said when it was ready}.
      spec: of `specification`.

    Returns:
      Rows for the log. 'ours_is_times_faster' is the peer's median over ours, for measures that
      ours has under the name up to the peer's suffix ('end_to_end_batched' meets 'end_to_end').
    """
    side = spec['matmul']
    rates = [2 * side**3 / min(a['seconds']) for a in answers.get('matmul', {}).values()]
    made = []
    for measure, found in answers.items():
        ours = answers.get(measure.removesuffix('_batched'), {}).get('ours')
        for name, answer in found.items():
            facts, median = about[name]['facts'], statistics.median(answer['seconds'])
            size, batch = shape_of(measure, spec)
            row = {
                'measure': measure,
                'peer': name,
                'model': facts['model'],
                'dtype': facts['dtype'],
                'image_size': size,
                'batch_size': batch,
                'median_s': round(median, 5),
                'min_s': round(min(answer['seconds']), 5),
                'images_per_s': round(batch / median, 3),
            }
            if ours and name != 'ours':
                row['ours_is_times_faster'] = round(median / statistics.median(ours['seconds']), 3)
            if measure == 'matmul':
                del row['images_per_s']
                row['tflops'] = round(2 * side**3 / min(answer['seconds']) / 1e12, 3)
            elif rates and 'multiply_adds' in facts:
                # A backward pass is two products of the forward pass's size.
                flops = (6 if measure == 'train' else 2) * facts['multiply_adds']
                flops *= (size / spec['image_size']) ** 2
                row['share_of_matrix_peak'] = round(flops * batch / median / max(rates), 3)
            if answer.get('peak_bytes'):
                row['peak_gib'] = round(answer['peak_bytes'] / 2**30, 2)
            made.append(row)
    return made


def shape_of(measure: str, spec: dict[str, Any]) -> tuple[int, int]:
    """(side of the images, or of the matrices, and their number) of a measure."""
    if measure == 'train':
        return spec['train_size'], spec['train_batch']
    if measure == 'matmul':
        return spec['matmul'], 1
    last = measure.rsplit('_', 1)[1] if measure.startswith('throughput_') else '1'
    return spec['image_size'], int(last)


def show(rows: list[dict[str, Any]]) -> str:
    """The rows as a text table."""
    head = ('measure', 'peer', 'median_s', 'min_s', 'images_per_s', 'ours_is_times_faster')
    head += ('share_of_matrix_peak', 'peak_gib')
    lines = [head, *([str(row.get(name, '')) for name in head] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
