"""Shows a trained model at work on a page of this machine: a picture or the camera in, faces and answers out.

  mimic demo --checkpoint runs/mine

Pictures are answered in memory and kept nowhere. Ctrl-C ends it.
"""

import contextlib
import ipaddress
import pathlib
import socket
import types
from collections.abc import Sequence

from mimic_jax import serving
from mimic_jax.data.faces import DETECTORS, alignment
from mimic_jax.runtime import cli
from mimic_jax.runtime.errors import UserError, one_of
from mimic_jax.serving import faces
from mimic_jax.training import log


def _parser() -> cli.Parser:
  parser = cli.Parser('demo', __doc__)
  add = parser.add_argument
  add('--checkpoint', required=True, help="a run's folder, a checkpoint, an exported folder or a weight file")
  add('--ema', action='store_true', help='the moving average of the weights instead of the last ones')
  add('--faces', default='auto', metavar='ALIGN', help='how faces are cut out: auto is as the run recorded')
  add('--detector', default='mtcnn', help=f'what finds the faces: {", ".join(DETECTORS)}')
  add('--host', default='127.0.0.1', help='address to listen at; 0.0.0.0 lets other machines in')
  add('--port', type=int, default=7860, help='0 takes one that is free')
  add('--max_mb', type=float, default=10.0, help='largest picture that is taken, in MB')
  return parser


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  a = _parser().parse_args(list(argv))
  one_of('--detector', a.detector, DETECTORS)
  alignment.parse(a.faces, '--faces')
  if not 0 < a.max_mb <= 1000:
    raise UserError(f'--max_mb is {a.max_mb:g}; expected more than 0 and at most 1000')
  local_page = _page()
  listener = _listener(a.host, a.port)
  with listener:
    model = serving.load(a.checkpoint, ema=a.ema, field='--checkpoint')
    cutter, how = _cutter(model, a.faces, a.detector)
    answerer = local_page.Answerer(model, cutter)
    which = '/'.join(pathlib.Path(a.checkpoint).resolve().parts[-2:])
    about = f'{which} · {len(model.class_names)} classes · {how}'
    app = local_page.app(answerer, about, round(a.max_mb * 1e6), a.host)
    if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
      log.say(f'warning: --host {a.host} lets in every machine that reaches this one; there is no password')
    name = f'[{a.host}]' if ':' in a.host else a.host
    print(f'page: http://{name}:{listener.getsockname()[1]} (Ctrl-C ends it)', flush=True)
    with contextlib.suppress(KeyboardInterrupt):
      local_page.server(app).run(sockets=[listener])
  print('page closed')


def _page() -> types.ModuleType:
  try:
    from mimic_jax.serving import local_page
  except ModuleNotFoundError as e:
    if (e.name or '').partition('.')[0] not in ('starlette', 'uvicorn'):
      raise
    raise UserError(
      f"the page needs Starlette and uvicorn ({e}); expected them installed: pip install 'mimic-jax[demo]'"
    ) from e
  return local_page


def _listener(host: str, port: int) -> socket.socket:
  """Returns a socket that listens; raises UserError."""
  if not 0 <= port <= 65535:
    raise UserError(f'--port is {port}; expected 0..65535')
  try:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family)
  except (OSError, UnicodeError) as e:
    why = getattr(e, 'strerror', None) or e
    raise UserError(
      f'--host {host} --port {port} can not be listened at ({why}); expected an address of this machine and a free port'
    ) from e


def _cutter(model: serving.Model, align: str, detector: str) -> tuple[faces.Cutter | None, str]:
  """Returns what finds faces, None where it is not installed, and a few words on it for the page."""
  try:
    cutter = faces.Cutter(model.trained.reading, align, detector)
  except UserError as e:
    log.say(f'note: {e}; until then the page answers for whole pictures')
    return None, 'whole pictures, since nothing that finds faces is installed here'
  if cutter.note:
    log.say(f'note: {cutter.note}')
  return cutter, f'faces found by {detector}'
