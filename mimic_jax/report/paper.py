"""What the paper reports (arXiv 2401.07245, tables I and II): overall accuracy in percent, as printed; no seeds, no spread."""

COLUMNS = (('RAF-DB', 'test'), ('FERPlus', 'test'), ('AffectNet-7', 'valid'))
ACCURACY = {
  'MIMIC, ViT-B': (89.02, 89.74, 65.35),
  'MIMIC, ViT-L': (91.26, 91.14, 65.62),
  'MAE, CE, ViT-B': (88.14, 88.42, 65.05),
  'MAE, CE + SCL, ViT-B': (88.87, 89.43, 65.26),
  'supervised pre-training, CE, ViT-B': (87.33, 87.91, 60.05),
  'supervised pre-training, CE + SCL, ViT-B': (87.52, 88.06, 63.10),
  'supervised pre-training, CE + MSCL, ViT-B': (87.60, 88.21, 63.62),
}
