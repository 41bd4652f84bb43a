"""How near an exported model is to ours, on every picture of a split (docs/weights.md has what it said).

  python -m benchmarks.exported RUN --data.source=ferplus --data.root=… --data.split=valid --data.label_rule=argmax8

Writes RUN's model as hf, stablehlo and, where jax2onnx is installed, onnx, and counts the pictures on which transformers and
ours give the same label: on the same pixel values, and through transformers' own processor. Needs torch and transformers.
"""

import importlib.util
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from mimic_jax import augment, data
from mimic_jax.commands import evaluate, export
from mimic_jax.data import pipeline
from mimic_jax.runtime import sharding
from mimic_jax.training import trained
from mimic_jax.weights import programs

BATCH = 128
LISTED = 10


def main(argv):
  import torch
  import transformers

  run, *flags = argv
  model = trained.load(run, sharding.make_mesh())
  section = evaluate.data_section(model, flags)
  source = data.build(section.source, section.root, section.split, section)
  size, filtering = model.reading['image_size'], model.reading['interpolation']
  a = model.stage.augment
  answers = jax.jit(export.forward_of(model, preprocess=False))
  folder = pathlib.Path(tempfile.mkdtemp())
  said = {}  # by whom → logits of each batch
  forms = ['stablehlo', *(['onnx'] if importlib.util.find_spec('jax2onnx') else [])]
  for form in ('hf', *forms):
    export.main(['--checkpoint', run, '--format', form, '--out', str(folder / form)])
  processor = transformers.AutoImageProcessor.from_pretrained(folder / 'hf')
  kind = transformers.AutoConfig.from_pretrained(folder / 'hf').architectures[0]
  theirs = getattr(transformers, kind).from_pretrained(folder / 'hf').eval()
  program = jax.export.deserialize(
    bytearray((folder / 'stablehlo' / programs.FILES['stablehlo']).read_bytes())
  )
  if 'onnx' in forms:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / 'onnx' / programs.FILES['onnx'])

  def transformed(pixels):
    with torch.no_grad():
      return theirs(torch.from_numpy(np.ascontiguousarray(pixels))).logits.numpy()

  batches = pipeline.eval_batches(source, batch_images=BATCH, image_size=size, interpolation=filtering)
  for batch in batches:
    x = augment.evaluation_view(jnp.asarray(batch['image'][batch['mask']]), size, filtering, a.mean, a.std)
    pictures = [source[int(i)]['image'] for i in batch['index'][batch['mask']]]
    processed = np.concatenate([processor(p, return_tensors='np')['pixel_values'] for p in pictures])
    found = {
      'ours': answers(x)['logits'],
      'transformers, same pixels': transformed(np.asarray(x).transpose(0, 3, 1, 2)),
      "transformers, its own processor's pixels": transformed(processed),
      'stablehlo': program.call(x)['logits'],
      **({'onnx': session.run(['logits'], {'images': np.asarray(x)})[0]} if 'onnx' in forms else {}),
    }
    for who, logits in found.items():
      said.setdefault(who, []).append(np.asarray(logits))
  logits = {who: np.concatenate(parts) for who, parts in said.items()}
  ours = logits.pop('ours')
  labels = ours.argmax(axis=-1)
  counts = np.bincount(labels, minlength=len(model.class_names))
  print(f'{len(ours):,} pictures; ours: ' + ', '.join(f'{n} {c}' for n, c in zip(model.class_names, counts)))
  for who, other in logits.items():
    differ = np.flatnonzero(other.argmax(axis=-1) != labels)
    print(f'{who}: largest difference of logits {np.abs(other - ours).max():.2g}, {len(differ)} other labels')
    for i in differ[:LISTED]:
      two = np.sort(ours[i])[-2:]
      print(f'  {source.id(int(i))}: two best of ours {two[1]:.4f} {two[0]:.4f}')


if __name__ == '__main__':
  main(sys.argv[1:])
