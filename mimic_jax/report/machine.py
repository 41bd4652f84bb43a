"""The page's part on how a run ran: hardware, the command to copy, where time and memory went."""

import shlex

from mimic_jax.report.run import Run
from mimic_jax.report.tables import NONE, duration, esc, is_number, mapping, number, percent, seconds, table


def section(run: Run) -> str:
  """Returns what the run ran on, its command, and where time and memory went."""
  held = mapping(run.record.get('environment'))
  devices, versions = mapping(held.get('devices')), mapping(held.get('versions'))
  kinds = ' + '.join(f'{n} × {kind}' for kind, n in mapping(devices.get('kinds')).items())
  if not run.stages:
    return ''
  processes = devices.get('processes', 1)
  ran = [
    f'{kinds or NONE} ({devices.get("backend", NONE)}), {processes} process{"es" if processes != 1 else ""}',
    f'jax {versions.get("jax", NONE)}, Python {held.get("python", NONE)}, {held.get("platform", NONE)}',
    f'git {str(mapping(held.get("git")).get("revision", NONE))[:12]}'
    + (' with changes' if mapping(held.get('git')).get('changed') else ''),
  ]
  parts = ('import', 'data', 'restore', 'compile')
  head = ('stage', 'time', *parts, 'input overhead', 'img/s', 'model TFLOP/s', 'MFU', 'device memory')
  rows = []
  for stage in run.stages:
    start = mapping(mapping(run.record.get('start')).get(stage.name))
    took, memory = seconds(stage), stage.result.get('peak_memory_bytes')
    rows.append(
      [esc(stage.name), NONE if took is None else duration(took)]
      + [duration(start[part]) if is_number(start.get(part)) else NONE for part in parts]
      + [number(stage.result.get('input_overhead'), '.2f'), number(stage.result.get('images_per_second'))]
      + [number(stage.result.get('model_tflops_per_second'), '.3g'), percent(stage.result.get('mfu'), 1)]
      + [f'{memory / 2**30:.1f} GiB' if is_number(memory) else NONE]
    )
  command = held.get('command')
  words = [str(word) for word in command] if isinstance(command, list) else []
  if words and words[0].endswith('.py'):
    words[:1] = ['python', '-m', 'mimic_jax.main']
  text = esc(shlex.join(words)).replace(' --', ' \\\n  --')
  copied = f'<p class="small quiet">The command, to copy:</p><pre class="copy">{text}</pre>' if words else ''
  return (
    f'<h2 id="machine">How it ran</h2><p class="small">{esc(" · ".join(ran))}</p>{copied}{table(head, rows, "stack")}'
    '<p class="small quiet">Time: of the training loop with its evaluations. Import, data, restore, compile: of the '
    'newest start, up to its first step; the loop’s time begins before the first step compiles.</p>'
  )
