"""The local page: a picture comes in, what the model says of the faces in it goes out, and nothing is kept.

GET / is the page (local_page.html), POST /answer takes a picture's bytes. Whatever else comes is answered by a status and
one line, {"error": …}. No path, name or address of a request is ever followed.
"""

import asyncio
import base64
import functools
import hashlib
import html
import importlib.resources
import io
import ipaddress
import re
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import anyio
import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mimic_jax.data import source as sources
from mimic_jax.data.bad_image import BadImage
from mimic_jax.report.drawing import overlay
from mimic_jax.runtime.errors import UserError
from mimic_jax.serving.faces import Cutter
from mimic_jax.serving.model import Model, Prediction
from mimic_jax.serving.pictures import MAX_PIXELS

MOST_FACES = 20  # answered for; of a crowd the surest
SHOWN = 1024  # pixels of the long side of the picture that goes back
SHOWN_FACE = 256  # of a face
MOST_REQUESTS = 64  # at a time, those that wait among them
PATIENCE = 30.0  # seconds for a picture to arrive
CLOSING = 2  # seconds after Ctrl-C in which what was asked may still be answered
READ_ON = 4  # how many times the largest picture is read before the connection is cut

HEADERS = {
  'Cache-Control': 'no-store',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Permissions-Policy': 'camera=(self), microphone=(), geolocation=()',
  'Referrer-Policy': 'no-referrer',
  'X-Content-Type-Options': 'nosniff',
}


class Answerer:
  """What stands behind the page: bytes of a picture in, what is shown out. Made, it has computed once, so is compiled.

  Args:
    model: has a classifier.
    cutter: finds faces; None = whole pictures.

  Attributes:
    attends: whether the model can show from where its answer drew.

  Raises:
    UserError: where the model can't answer.
  """

  def __init__(self, model: Model, cutter: Cutter | None) -> None:
    self._model, self._cutter = model, cutter
    self.attends = True
    try:
      self._warm_up()
    except UserError:  # a model without attention; one without a classifier says so the second time
      self.attends = False
      self._warm_up()

  def _warm_up(self) -> None:
    """Computes on a picture of the training's size and on another: they are resized in different places."""
    other = (37, 41, 3)
    for shape in {other, tuple(self._model.trained.reading.get('image_shape') or other)}:
      self._ask([Image.fromarray(np.zeros(shape, np.uint8))])

  def _ask(self, images: list[Image.Image]) -> list[Prediction]:
    # one at a time: the same program for one face and for twenty
    return [one for (one,) in self._model.answers(images, attention=self.attends, batch_images=1)]

  def __call__(self, data: bytes) -> dict[str, Any]:
    """Returns what the page shows of a picture.

    Args:
      data: of a picture's file.

    Returns:
      JSON: 'picture' (upright, a data: address), its 'width' and 'height' in pixels before it was made smaller, a
      'note' ('' for none), and 'answers', of faces from left to right: 'label', 'probability', 'probabilities' of every class,
      'box' (left, top, width, height in pixels) and 'score' of a face (None for a whole picture), 'seen' and
      'attention' (data: addresses; None where there is none).

    Raises:
      BadImage: for what is no picture, is damaged or too large.
    """
    image = _decode(data)
    found = self._cutter(image) if self._cutter else []
    shown = sorted(found[:MOST_FACES], key=lambda face: face.box[0])
    note = ''
    if self._cutter and not found:
      note = 'No face was found, so the answer is for the whole picture.'
    elif len(found) > len(shown):
      note = f'{len(found)} faces were found; the answers are for the {len(shown)} surest.'
    answers = self._ask([face.image for face in shown] or [image])
    return {
      'picture': _address(_fitted(image, min(SHOWN, max(image.size)))),
      'width': image.width,
      'height': image.height,
      'note': note,
      'answers': [
        {
          'label': one.label,
          'probability': one.probability,
          'probabilities': one.probabilities,
          'box': face.box if face else None,
          'score': face.score if face else None,
          **_looked(one.seen, one.attention, face.image if face else image),
        }
        for one, face in zip(answers, shown or [None], strict=True)
      ],
    }


def _decode(data: bytes) -> Image.Image:
  """Returns a picture upright and as RGB; raises BadImage."""
  name = 'the picture'
  with sources.open_image(name, MAX_PIXELS, data) as image, sources.reading(name):
    return sources.to_rgb(sources.upright(image))


def _fitted(image: Image.Image, side: int) -> Image.Image:
  """Returns a picture with a long side of `side` pixels."""
  scale = side / max(image.size)
  size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
  return image.resize(size, Image.Resampling.BICUBIC)


def _looked(seen: np.ndarray | None, attention: np.ndarray | None, cut: Image.Image) -> dict[str, str | None]:
  image = _fitted(cut if seen is None else Image.fromarray(seen), SHOWN_FACE)
  if attention is None:
    return {'seen': _address(image), 'attention': None}
  laid = overlay(np.asarray(image)[None], attention[None])[0]
  return {'seen': _address(image), 'attention': _address(Image.fromarray(laid))}


def _address(image: Image.Image) -> str:
  out = io.BytesIO()
  image.save(out, 'JPEG', quality=88)
  return f'data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}'


def app(answer: Callable[[bytes], dict[str, Any]], about: str, max_bytes: int, host: str = '') -> Starlette:
  """Returns the page and what answers it.

  Args:
    answer: bytes of a picture → JSON, or BadImage; called for one picture at a time, in a thread.
    about: a line for the page on the model.
    max_bytes: of a picture.
    host: a name by which the page may be asked for, beside localhost, this machine's own and any numeric address.
  """
  page, policy = _page(about, max_bytes)
  one = anyio.CapacityLimiter(1)

  async def index(request: Request) -> Response:
    return HTMLResponse(page, headers={'Content-Security-Policy': policy})

  async def answered(request: Request) -> Response:
    kind = request.headers.get('content-type', '').split(';')[0].strip().lower()
    if not (kind.startswith('image/') or kind == 'application/octet-stream'):
      raise HTTPException(
        415, f"the content type is '{kind[:60]}'; expected a picture's bytes, as image/jpeg"
      )
    try:
      data = await _body(request, max_bytes)
      return JSONResponse(await anyio.to_thread.run_sync(functools.partial(answer, data), limiter=one))
    except BadImage as e:
      raise HTTPException(422, f'the file {e.why}; expected a picture such as .jpg or .png') from None
    except asyncio.CancelledError:  # Ctrl-C, and it took longer than CLOSING
      raise HTTPException(503, 'the page is being closed') from None

  return Starlette(
    routes=[Route('/', index), Route('/answer', answered, methods=['POST'])],
    middleware=[Middleware(_Guard, names=_names(host))],
    exception_handlers={HTTPException: _refused, ClientDisconnect: _refused, Exception: _failed},
  )


def server(app: Starlette) -> uvicorn.Server:
  """Returns what serves an app over HTTP alone, and writes down nothing but the errors of its own code."""
  return uvicorn.Server(
    uvicorn.Config(
      app,
      log_level='error',
      access_log=False,
      ws='none',
      lifespan='off',
      server_header=False,
      proxy_headers=False,
      limit_concurrency=MOST_REQUESTS,
      timeout_graceful_shutdown=CLOSING,
    )
  )


async def _body(request: Request, max_bytes: int) -> bytes:
  """Returns what was sent. Of what is too large no more than `max_bytes` is kept; the rest is read, so that the answer is."""
  data, size = bytearray(), 0
  try:
    async with asyncio.timeout(PATIENCE):
      async for part in request.stream():
        size += len(part)
        if size <= max_bytes:
          data += part
        elif size > READ_ON * max_bytes:
          break
  except TimeoutError:
    raise HTTPException(408, f'the picture did not arrive within {PATIENCE:g} s') from None
  if size > max_bytes:
    raise HTTPException(413, f'the picture is larger than {max_bytes / 1e6:g} MB; expected a smaller one')
  if not data:
    raise HTTPException(400, 'the file is empty (0 bytes); expected a picture such as .jpg or .png')
  return bytes(data)


async def _refused(request: Request, error: Exception) -> Response:
  if not isinstance(error, HTTPException):  # whoever asked has gone
    return JSONResponse({'error': 'the picture did not arrive whole'}, 400)
  lines = {404: 'there is nothing here; expected / or /answer', 405: 'expected GET / or POST /answer'}
  said = lines.get(error.status_code, ' '.join(str(error.detail).split()))
  return JSONResponse({'error': said}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
  return JSONResponse({'error': 'the server failed at this picture; its terminal says how'}, 500)


class _Guard:
  """Lets nobody in but who asks this page by its own name, so that no page from elsewhere can; adds HEADERS.

  A name that resolves to this machine and isn't its own (DNS rebinding) is refused by the Host header, what another
  page sends by the Origin header, which every browser adds.
  """

  def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
    self._app, self._names = app, names

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] != 'http':  # the server speaks no WebSocket; its start and end pass
      return await self._app(scope, receive, send)

    async def sent(message: Message) -> None:
      if message['type'] == 'http.response.start':
        more = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
        message = {**message, 'headers': [*message['headers'], *more]}
      await send(message)

    why = self._why_not(Request(scope))
    return await (JSONResponse({'error': why}, 403) if why else self._app)(scope, receive, sent)

  def _why_not(self, request: Request) -> str:
    hosts = request.headers.getlist('host')
    if len(hosts) != 1 or not _known(hosts[0], self._names):
      return "the Host header is not this machine's; open the address that the terminal shows"
    origin = request.headers.get('origin')
    if origin is not None and origin.lower().partition('://')[2] != hosts[0].lower():
      return 'another page may not ask here (its Origin differs)'
    return ''


def _known(host: str, names: frozenset[str]) -> bool:
  """Says whether a Host header is a name of `names` or a numeric address, which no name can be made to stand for."""
  try:
    name = urlsplit(f'//{host}').hostname or ''
    if name in names:
      return True
    ipaddress.ip_address(name)
    return True
  except ValueError:
    return False


def _names(host: str) -> frozenset[str]:
  return frozenset(name.lower() for name in ('localhost', socket.gethostname(), host) if name)


def _page(about: str, max_bytes: int) -> tuple[str, str]:
  """Returns the page and the policy that lets its own script and style run and nothing else."""
  text = importlib.resources.files('mimic_jax.serving').joinpath('local_page.html').read_text('utf-8')
  policy = (
    f"default-src 'none'; script-src {_hash_of(text, 'script')}; style-src {_hash_of(text, 'style')}; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  )
  text = text.replace('{{about}}', html.escape(about)).replace('{{max_bytes}}', str(max_bytes))
  return text, policy


def _hash_of(page: str, element: str) -> str:
  """Returns the hash by which a policy names what stands inside the page's one script or style."""
  inside = re.search(f'<{element}>(.*?)</{element}>', page, re.DOTALL)[1]
  return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
