"""Peaks are of the chip that is named, and of no other."""

import pytest

from mimic_jax.runtime import chips


@pytest.mark.parametrize(
  ('kind', 'tflops'),
  [
    ('NVIDIA A100-SXM4-80GB', 312),
    ('A100-PCIE-40GB', 312),
    ('NVIDIA A100 80GB PCIe', 312),
    ('NVIDIA H100 80GB HBM3', 989),
    ('NVIDIA H100 PCIe', 756),
    ('NVIDIA H100 NVL', 835),
    ('NVIDIA H200', 989),
    ('NVIDIA H200 NVL', 835),
    ('NVIDIA B200', 2250),
    ('NVIDIA L4', 121),
    ('NVIDIA GeForce RTX 4090', 165.2),
    ('TPU v4', 275),
    ('TPU v5 lite', 197),
    ('TPU v5', 459),
    ('TPU v5p', 459),
    ('TPU v6 lite', 918),
  ],
)
def test_a_chip_has_the_peak_of_its_data_sheet(kind, tflops):
  assert chips.peak(kind) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
  'kind',
  [
    'cpu',
    'NVIDIA L40S',
    'NVIDIA GeForce RTX 4090 D',
    'NVIDIA GeForce RTX 4090 Laptop GPU',
    'NVIDIA A100-SXM4-40GB MIG 1g.5gb',
    'NVIDIA GB200',
    'TPU v4 lite',
    'TPU7x',
  ],
)
def test_a_part_or_a_cut_of_a_chip_is_not_taken_for_it(kind):
  assert chips.peak(kind) is None


@pytest.mark.parametrize(
  ('kind', 'gigabits_of_a_chip', 'links'), [('TPU v5 lite', 1600, 4), ('TPU v5', 4800, 6), ('TPU v6 lite', 3200, 4)]
)  # fmt: skip
def test_the_links_of_a_chip_carry_what_its_data_sheet_says(kind, gigabits_of_a_chip, links):
  assert 8 * chips.link(kind) * links == pytest.approx(gigabits_of_a_chip * 1e9)
  assert chips.link('NVIDIA H100 80GB HBM3') is None


def test_the_measured_peak_is_a_rate():
  assert 1e8 < chips.measured_peak(side=256, times=3) < 1e14
