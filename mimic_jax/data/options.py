"""The fields of a stage's data section: what is read and how."""

from ml_collections import ConfigDict

from mimic_jax.data import bad_image, sampling
from mimic_jax.data.sets import ferplus

INF = float('inf')

# fields that only some sources read, those whose module has them in READS
OF_SOME = ('classes', 'name', 'fps')

CHOICES = {
  'data.on_bad_image': bad_image.POLICIES,
  'data.label_rule': ferplus.LABEL_RULES,
  'data.sampler': sampling.SAMPLERS,
}
RANGES = {
  'data.size': (1, INF),
  'data.classes': (2, INF),
  'data.fps': (0.01, 1000),
  'data.held_out': (0, 0.5),
  'data.fraction': (0.0001, 1),
  'data.label_noise': (0, 0.99),
  'data.part_seed': (-1, 2**32 - 1),
  'data.align_size': (16, 4096),
  'data.max_pixels': (1, INF),
  'data.threads': (1, INF),
  'data.workers': (0, INF),
  'data.worker_restarts': (0, INF),
  'data.prefetch': (1, INF),
}


def defaults() -> ConfigDict:
  """Returns the section of one stage's pictures with its defaults."""
  d = ConfigDict()
  d.source = 'folder'  # synthetic_images | synthetic_faces | synthetic_clips | synthetic_veins | synthetic_masks | folder | clips | csv | rafdb | ferplus | affectnet | tfds, or several: 'ferplus,folder'
  d.root = ''  # one path per source, comma-separated; of tfds its data_dir
  d.name = ''  # tfds: the set, as TFDS names it: 'rafdb', 'imagenet2012:5.1.0'
  d.split = 'train'
  d.held_out = 0.0  # share of the training pictures, by content, that is a split of its own: held_out, of folder and csv valid where there is none
  d.fraction = 1.0  # of the training pictures that is trained on, of each class the same; evaluation has all
  d.label_noise = 0.0  # share of the training labels that are made another class's, of each class the same, as likely one as the other
  d.part_seed = -1  # of the two; -1 = the run's seed
  d.fps = 25 / 6  # clips: frames per second that videos are cut at, and frames in folders were
  d.classes = 7  # affectnet: 7, or 8 with contempt; synthetic_veins: how many persons
  d.align = 'auto'  # auto (as the set is published) | none | box(margin) | five_point(template); docs/data.md
  d.align_size = 224  # five_point: side of the aligned picture in pixels
  d.sampler = 'shuffle'  # shuffle (each once an epoch) | balanced (classes equally often, with replacement)
  d.label_rule = 'majority'  # ferplus: majority | argmax10 | argmax8 | soft | soft_argmax10 | soft_argmax8
  d.size = 2048  # synthetic sources: number of pictures drawn; of clips all their frames
  d.draw_size = 64  # synthetic sources: side in pixels
  d.draw_seed = 0  # synthetic sources: splits of one seed never share a picture
  d.on_bad_image = 'error'  # error | skip: the deterministic next picture takes its place, skips are counted
  d.max_pixels = 50_000_000  # a picture with more is refused as bad (a decompression bomb)
  d.cache = False  # decode everything once into memory: for small sets
  d.resident = False  # the training pictures lie on the devices, all on each: for sets of one size that fit
  d.threads = 8  # reader threads
  d.workers = 0  # reader processes; 0 = threads only
  d.worker_restarts = 3  # reader processes that may die and are replaced before a stage stops
  d.prefetch = 4  # batches read ahead
  return d.lock()
