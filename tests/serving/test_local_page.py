"""The page of `mimic demo` over HTTP and in a browser, with a stand-in for the model: what a picture is answered, who is refused."""

import base64
import concurrent.futures
import http.client
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import types
import urllib.request
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from mimic_jax.serving import Prediction, local_page
from mimic_jax.serving.faces import Found

MAX_BYTES = 300_000
CLASSES = ('calm', '<b>wild</b>', 'neither')
BOXES = [(60.0 - 50 * k, 5.0, 20.0, 15.0) for k in range(25)]  # of the faces in a picture, from right to left
seen_by_python: list[str] | None = None  # what the interpreter did meanwhile: files written, programs started


def _hook(event: str, args: tuple) -> None:
  if seen_by_python is None:
    return
  started = event in ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'os.fork')
  if started or (event == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
    seen_by_python.append(f'{event} {args[0]}')


sys.addaudithook(_hook)


class StandIn:
  """A model that answers by a picture's brightness, so that each answer tells which picture it is of."""

  class_names = CLASSES
  trained = types.SimpleNamespace(reading={'image_shape': [8, 8, 3]})

  def __init__(self):
    self.asked: list[tuple[int, int]] = []
    self.gate = threading.Event()
    self.gate.set()
    self.at_once = self.most_at_once = 0

  def answers(self, images, *, attention, batch_images):
    self.at_once += 1
    self.most_at_once = max(self.most_at_once, self.at_once)
    self.gate.wait(60)
    self.asked += [image.size for image in images]
    light = [np.asarray(image).mean() / 255 for image in images]
    self.at_once -= 1
    return [
      [
        Prediction(
          str(k),
          CLASSES[0],
          v,
          dict(zip(CLASSES, (v, 1 - v, 0.0))),
          None,
          None,
          '',
          np.asarray(image),
          np.eye(2),
        )
      ]
      for k, (image, v) in enumerate(zip(images, light))
    ]


def cutter(picture: Image.Image) -> list[Found]:
  """Finds a face for each 100 pixels of width, each a lighter cut; none in what is dark."""
  if np.asarray(picture).mean() < 50:
    return []
  cuts = (Image.new('RGB', (12, 12), (8 * k, 8 * k, 8 * k)) for k in range(picture.width // 100))
  return [Found(box, 0.9, cut) for box, cut in zip(BOXES, cuts)]


def encoded(image: Image.Image, kind: str = 'PNG', **more) -> bytes:
  out = io.BytesIO()
  image.save(out, kind, **more)
  return out.getvalue()


WHITE = Image.new('RGB', (200, 120), 'white')
GOOD = encoded(WHITE)


class Served:
  """A page that is served as the command does it, on a free port of its own."""

  def __init__(self, model):
    self.model = model
    self.answerer = local_page.Answerer(model, cutter)
    app = local_page.app(self.answerer, 'run <i>1</i>', MAX_BYTES)
    listener = socket.create_server(('127.0.0.1', 0))
    self.port = listener.getsockname()[1]
    self._server = local_page.server(app)
    self._thread = threading.Thread(target=self._server.run, kwargs={'sockets': [listener]})
    self._thread.start()

  def close(self):
    self._server.should_exit = True
    self._thread.join()

  def request(self, method='POST', path='/answer', body=GOOD, **headers):
    """Returns status, headers and body of an answer."""
    connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
    headers = {k.replace('_', '-'): v for k, v in {'Content_Type': 'image/png', **headers}.items()}
    try:
      connection.request(method, path, body, headers)
      got = connection.getresponse()
      return got.status, got.headers, got.read()
    finally:
      connection.close()

  def raw(self, data: bytes) -> bytes:
    """Returns what comes back for bytes that need not be HTTP, once either side has closed."""
    with socket.create_connection(('127.0.0.1', self.port), timeout=60) as s:
      got = b''
      try:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        while part := s.recv(65536):
          got += part
      except TimeoutError:
        raise
      except OSError:  # it was closed before all was read
        pass
      return got

  def goes_on(self):
    assert self.request()[0] == 200


@pytest.fixture(scope='module')
def served():
  one = Served(StandIn())
  yield one
  one.close()


@pytest.fixture(autouse=True)
def _nothing_written_or_started():
  """Whatever a test here asks for: no file is written and no program started, but by the test itself."""
  global seen_by_python
  seen_by_python = []
  yield
  found, seen_by_python = seen_by_python, None
  assert found == []


def test_faces_are_answered_with_their_boxes_and_what_was_seen(served):
  status, headers, body = served.request()
  found = json.loads(body)
  assert status == 200
  assert headers['Cache-Control'] == 'no-store'
  assert (found['width'], found['height'], found['note']) == (200, 120, '')
  assert [a['probability'] for a in found['answers']] == [pytest.approx(8 / 255), 0]  # from left to right
  assert found['answers'][0]['probabilities'] == pytest.approx(dict(zip(CLASSES, (8 / 255, 1 - 8 / 255, 0))))
  assert [a['box'] for a in found['answers']] == [list(BOXES[1]), list(BOXES[0])]
  shown = Image.open(io.BytesIO(base64.b64decode(found['picture'].partition('base64,')[2])))
  assert (shown.format, shown.size, shown.getpixel((9, 9))) == ('JPEG', (200, 120), (255, 255, 255))
  assert all(
    a[k].startswith('data:image/jpeg;base64,') for a in found['answers'] for k in ('seen', 'attention')
  )


def test_a_picture_without_a_face_is_answered_whole_and_a_crowd_in_part(served):
  found = json.loads(served.request(body=encoded(Image.new('L', (300, 90), 30)))[2])
  assert 'No face was found' in found['note']
  assert [(a['box'], a['probability']) for a in found['answers']] == [(None, pytest.approx(30 / 255))]
  found = json.loads(served.request(body=encoded(Image.new('L', (2300, 9), 'white')))[2])
  assert '23 faces were found; the answers are for the 20 surest' in found['note']
  assert len(found['answers']) == 20


def test_a_model_without_attention_answers_all_the_same():
  class Blind(StandIn):
    def answers(self, images, *, attention, batch_images):
      if attention:
        raise local_page.UserError('no attention')
      answers = super().answers(images, attention=attention, batch_images=batch_images)
      return [[Prediction(a.id, a.label, a.probability, a.probabilities)] for (a,) in answers]

  (one,) = local_page.Answerer(Blind(), None)(encoded(Image.new('RGB', (8, 8), 'white')))['answers']
  assert one['attention'] is None
  assert one['seen'].startswith('data:')


@pytest.mark.parametrize(
  ('kind', 'more'), [('JPEG', {}), ('WEBP', {}), ('GIF', {}), ('BMP', {}), ('TIFF', {}), ('AVIF', {})]
)
def test_what_phones_and_cameras_write_is_read(served, kind, more):
  assert served.request(body=encoded(WHITE, kind, **more), Content_Type='application/octet-stream')[0] == 200


def test_it_has_computed_before_anybody_asks():
  model = StandIn()
  local_page.Answerer(model, cutter)
  assert sorted(model.asked) == [(8, 8), (41, 37)]  # as large as the training's, and not


def test_a_turned_picture_is_answered_upright(served):
  exif = Image.Exif()
  exif[0x0112] = 6
  found = json.loads(served.request(body=encoded(WHITE, 'JPEG', exif=exif.tobytes()))[2])
  assert (found['width'], found['height']) == (120, 200)


def png(width: int, height: int, rows: bytes) -> bytes:
  """Returns a PNG that says of itself what it likes."""

  def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')
  )


def zipped() -> bytes:
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as z:
    z.writestr('../../evil.png', GOOD)
  return out.getvalue()


EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/evil) (w) file closefile\nshowpage\n%%EOF\n'
JPEG = encoded(WHITE, 'JPEG')
NO_PICTURES = {
  'text': b'no picture',
  'html': b'<!doctype html><script>alert(1)</script>',
  'svg': b'<svg xmlns="http://www.w3.org/2000/svg"><script href="file:///etc/passwd"/></svg>',
  'zip': zipped(),
  'program': b'\x7fELF' + bytes(200),
  'windows program': b'MZ' + bytes(200),
  'script': b'#!/bin/sh\ntouch /tmp/evil\n',
  'pickle': b"cos\nsystem\n(S'touch /tmp/evil'\ntR.",
  'pdf': b'%PDF-1.7\n1 0 obj<</OpenAction<</S/Launch>>>>endobj',
  'postscript': EPS,
  'bare pixels of which half are missing': b'P6 4 4 255\n' + bytes(24),
  'zeros': bytes(5000),
  'a jpeg that ends early': JPEG[: len(JPEG) // 2],
  'a jpeg of a head alone': JPEG[:20],
  'a png that ends early': GOOD[: len(GOOD) // 2],
  'a png with a wrong checksum': GOOD[:20] + b'\0\1' + GOOD[22:],
  'a png without pixels': png(0, 0, b''),
  'a png with too few rows': png(64, 64, bytes(100)),
  'a bomb': png(60_000, 60_000, bytes(10_000)),
  'a smaller bomb': encoded(Image.new('1', (8_000, 8_000))),
  'a strip': encoded(Image.new('1', (40_000_000, 1))),
  'a gif of a head alone': b'GIF89a\xff\xff\xff\xff\0\0\0',
  'a webp of a head alone': b'RIFF\x24\0\0\0WEBPVP8 ',
  'a tiff that points nowhere': b'II*\0\xff\xff\xff\x7f',
  'a tiff of floats': encoded(Image.new('F', (8, 8)), 'TIFF'),
}


@pytest.mark.parametrize('name', NO_PICTURES)
def test_what_is_no_picture_is_refused_in_a_line(served, name):
  status, _, body = served.request(body=NO_PICTURES[name])
  said = json.loads(body)['error']
  assert status == 422, said
  assert said.startswith('the file ')
  assert '\n' not in said
  served.goes_on()


FORM = 'multipart/form-data; boundary=x'
PART = b'--x\r\nContent-Disposition: form-data; name="f"; filename="../../../etc/cron.d/evil"\r\n\r\nhi\r\n--x--\r\n'
ODD = {
  'an empty body': (400, {'body': b''}),
  'too large': (413, {'body': bytes(MAX_BYTES + 1)}),
  'too large, and not said before': (413, {'body': iter([bytes(MAX_BYTES), b'1'])}),
  'a form with a path for a name': (415, {'body': PART, 'Content_Type': FORM}),
  'a form that is broken': (415, {'body': PART[:30], 'Content_Type': FORM}),
  'a form of many files': (415, {'body': PART * 500, 'Content_Type': FORM}),
  'a plain form': (415, {'Content_Type': 'application/x-www-form-urlencoded'}),
  'text, which needs no leave of the browser': (415, {'Content_Type': 'text/plain'}),
  'no content type': (415, {'Content_Type': ''}),
  'GET for an answer': (405, {'method': 'GET'}),
  'PUT': (405, {'method': 'PUT'}),
  'DELETE of the page': (405, {'method': 'DELETE', 'path': '/'}),
  'asking leave from elsewhere': (405, {'method': 'OPTIONS', 'Access_Control_Request_Method': 'POST'}),
  'an unknown method': (405, {'method': 'BREW'}),
  'a file of the machine': (404, {'method': 'GET', 'path': '/../../../../etc/passwd'}),
  'the same, disguised': (404, {'method': 'GET', 'path': '/%2e%2e/%2e%2e/etc/passwd'}),
  'what other servers have': (404, {'method': 'GET', 'path': '/gradio_api/file=/etc/passwd'}),
  'another address': (403, {'method': 'GET', 'path': 'http://evil.example/x'}),
  'a name that leads here': (403, {'Host': 'evil.example'}),
  'a name that begins like ours': (403, {'Host': '127.0.0.1.evil.example'}),
  'a name that can not be read': (403, {'Host': '[::1'}),
  'the page by a name that leads here': (403, {'method': 'GET', 'path': '/', 'Host': 'evil.example:7860'}),
  'a page from elsewhere': (403, {'Origin': 'http://evil.example'}),
  'a page of another port here': (403, {'Origin': 'http://127.0.0.1:1'}),
  'a page of no place': (403, {'Origin': 'null'}),
}


@pytest.mark.parametrize('name', ODD)
def test_an_odd_request_is_refused_in_a_line(served, name):
  expected, request = ODD[name]
  before = len(served.model.asked)
  status, _, body = served.request(**request)
  assert status == expected, body
  said = json.loads(body)['error']
  assert said
  assert '\n' not in said
  assert len(served.model.asked) == before
  served.goes_on()


HEAD = b'POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n'
RAW = {
  'no HTTP': (b'\x16\x03\x01\x02\x00\x01\x00' + bytes(range(256)), b'400'),
  'HTTP/2': (b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', b'4'),
  'no Host': (b'GET / HTTP/1.0\r\n\r\n', b'403'),
  'two Hosts': (b'GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n', b'400'),
  'a length below nothing': (HEAD + b'Content-Length: -5\r\n\r\n', b'400'),
  'a length beyond all numbers': (HEAD + b'Content-Length: ' + b'9' * 5000 + b'\r\n\r\n', b'4'),
  'two lengths': (HEAD + b'Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd', b'400'),
  'a length and parts': (HEAD + b'Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n', b'4'),
  'parts that are none': (HEAD + b'Transfer-Encoding: chunked\r\n\r\nzz\r\n', b'4'),
  'a head without end': (b'GET / HTTP/1.1\r\nX: ' + b'a' * 200_000, b''),
  'a picture that never comes whole': (HEAD + b'Content-Length: 500\r\n\r\nabc', b''),
  'a WebSocket': (
    b'GET /answer HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n'
    b'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\x81\x85junkjunk',
    b'4',
  ),
}


@pytest.mark.parametrize('name', RAW)
def test_bytes_that_are_hardly_http_do_no_harm(served, name):
  data, expected = RAW[name]
  said = served.raw(data)
  assert not expected or said.startswith(b'HTTP/1.1 ' + expected), said[:200]
  assert b'Traceback' not in said
  served.goes_on()


def test_a_picture_that_does_not_arrive_is_not_waited_for(served, monkeypatch):
  monkeypatch.setattr(local_page, 'PATIENCE', 0.05)
  with socket.create_connection(('127.0.0.1', served.port), timeout=60) as s:
    s.sendall(HEAD + b'Content-Length: 500\r\n\r\nabc')
    assert s.recv(65536).startswith(b'HTTP/1.1 408')
  monkeypatch.undo()
  served.goes_on()


@pytest.mark.parametrize(
  'host', ['localhost', 'LOCALHOST:80', '127.0.0.1:7860', '[::1]:7860', '192.168.0.7', socket.gethostname()]
)
def test_the_page_is_given_by_this_machines_own_names(served, host):
  status, headers, body = served.request('GET', '/', None, Host=host, Origin=f'http://{host}')
  assert status == 200
  assert b'run &lt;i&gt;1&lt;/i&gt;' in body
  assert "default-src 'none'" in headers['Content-Security-Policy']
  assert b'://' not in body.replace(b'http://www.w3.org', b'')  # it needs nothing from elsewhere


def test_pictures_are_answered_one_at_a_time_and_the_page_meanwhile(served):
  model = served.model
  model.most_at_once = 0
  model.gate.clear()
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    waiting = [pool.submit(served.request) for _ in range(4)]
    while not model.at_once:
      time.sleep(0.01)
    assert served.request('GET', '/', None)[0] == 200
    model.gate.set()
    assert [w.result()[0] for w in waiting] == [200] * 4
  assert model.most_at_once == 1


def test_what_is_still_computed_when_the_page_is_closed_is_told_so(monkeypatch):
  monkeypatch.setattr(local_page, 'CLOSING', 0.1)
  one = Served(StandIn())
  one.model.gate.clear()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting = pool.submit(one.request)
    while not one.model.at_once:
      time.sleep(0.01)
    closing = threading.Thread(target=one.close)
    closing.start()
    assert waiting.result()[0] == 503
    one.model.gate.set()
    closing.join()


def test_an_error_of_our_own_is_a_line_and_the_server_goes_on(served, monkeypatch):
  monkeypatch.setattr(served.answerer, '_cutter', lambda picture: 1 / 0)
  status, _, body = served.request()
  assert (status, list(json.loads(body))) == (500, ['error'])
  monkeypatch.undo()
  served.goes_on()


class Browser:
  """Chromium without a window, by the WebDriver protocol; its camera is a film of its own."""

  def __init__(self):
    with socket.create_server(('127.0.0.1', 0)) as free:
      port = free.getsockname()[1]
    self._process = subprocess.Popen(['chromedriver', f'--port={port}'], stdout=subprocess.DEVNULL)
    self._at = f'http://127.0.0.1:{port}'
    while True:
      try:
        self._ask('GET', '/status')
        break
      except OSError:
        time.sleep(0.1)
    flags = ['--headless=new', '--no-sandbox', '--disable-dev-shm-usage']
    flags += ['--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream']
    options = {'goog:chromeOptions': {'args': flags}, 'goog:loggingPrefs': {'browser': 'ALL'}}
    made = self._ask('POST', '/session', {'capabilities': {'alwaysMatch': options}})
    self._at += f'/session/{made["sessionId"]}'

  def _ask(self, method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
      self._at + path, data, {'Content-Type': 'application/json'}, method=method
    )
    with urllib.request.urlopen(request, timeout=120) as got:
      return json.load(got)['value']

  def go(self, url):
    self._ask('POST', '/url', {'url': url})

  def run(self, script, *args):
    return self._ask('POST', '/execute/sync', {'script': script, 'args': list(args)})

  def _element(self, css):
    return next(iter(self._ask('POST', '/element', {'using': 'css selector', 'value': css}).values()))

  def click(self, css):
    self._ask('POST', f'/element/{self._element(css)}/click', {})

  def type(self, css, text):
    self._ask('POST', f'/element/{self._element(css)}/value', {'text': text})

  def until(self, condition):
    deadline = time.monotonic() + 60
    while not self.run(f'return {condition}'):
      assert time.monotonic() < deadline, f'{condition} never came; the page says {self.said()}'
      time.sleep(0.05)

  def said(self):
    return self.run("return document.getElementById('said').textContent")

  def complaints(self):
    return [line['message'] for line in self._ask('POST', '/se/log', {'type': 'browser'})]

  def close(self):
    try:
      self._ask('DELETE', '')
    finally:
      self._process.terminate()
      self._process.wait()


@pytest.fixture(scope='module')
def browser():
  if not (shutil.which('chromedriver') and shutil.which('chromium')):
    pytest.skip('no browser here: apt-get install chromium chromium-driver')
  one = Browser()
  yield one
  one.close()


ANSWERED = "!document.getElementById('answer').hidden"
WRONG = "document.getElementById('said').classList.contains('wrong')"


@pytest.fixture
def page(served, browser):
  browser.go(f'http://127.0.0.1:{served.port}/')
  return browser


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pictures')
  for name, data in {
    'good.png': GOOD,
    'page.png': NO_PICTURES['html'],
    'large.png': bytes(MAX_BYTES + 1),
  }.items():
    (folder / name).write_bytes(data)
  return folder


def test_a_browser_shows_boxes_chances_and_attention(page, files):
  page.type('#file', str(files / 'good.png'))
  page.until(ANSWERED)
  assert page.said() == '2 faces were found.'
  seen = page.run("""
    const texts = (css) => [...document.querySelectorAll(css)].map((e) => e.textContent);
    const frame = document.querySelector('.frame').getBoundingClientRect();
    const boxes = [...document.querySelectorAll('.box')].map((e) => e.getBoundingClientRect()).map((r) =>
      [(r.left - frame.left) / frame.width, (r.top - frame.top) / frame.height, r.width / frame.width, r.height / frame.height]);
    return {heads: texts('h2'), rows: texts('.face:first-child .chances li'), boxes, tags: texts('.box'),
      bar: document.querySelector('.face:first-child .bar i').style.width,
      loaded: [...document.images].map((i) => i.naturalWidth), bold: document.querySelectorAll('b').length};
  """)
  assert seen['heads'] == ['Face 1: calm', 'Face 2: calm']
  assert seen['rows'] == ['<b>wild</b>96.9 %', 'calm3.1 %', 'neither0.0 %']
  assert seen['bold'] == 0
  assert seen['tags'] == ['1 calm', '2 calm']
  assert float(seen['bar'].rstrip('%')) == pytest.approx(100 - 100 * 8 / 255, abs=0.01)
  assert np.array(seen['boxes']) == pytest.approx(np.array(BOXES[1::-1]) / [200, 120, 200, 120], abs=0.01)
  assert seen['loaded'] == [200, 256, 256, 256, 256]
  assert page.complaints() == []


def test_a_browser_says_in_the_page_what_is_wrong_and_goes_on(page, files):
  page.type('#file', str(files / 'page.png'))
  page.until(WRONG)
  assert page.said().startswith('No answer: the file is not a picture')
  page.type('#file', str(files / 'large.png'))
  page.until("document.getElementById('said').textContent.includes('larger than 0.3 MB')")
  page.type('#file', str(files / 'good.png'))
  page.until(f'{ANSWERED} && !{WRONG}')
  assert all('422' in line for line in page.complaints())  # browsers note every status of 400 and above


def test_a_browser_takes_what_is_dropped_and_what_the_camera_sees(page):
  drop = """
    const carried = new DataTransfer();
    for (const text of arguments[0]) carried.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], 'a.png'));
    window.dispatchEvent(new DragEvent('drop', {dataTransfer: carried, cancelable: true}));
  """
  good = base64.b64encode(GOOD).decode()
  page.run(drop, [good, good])
  assert page.said() == 'One picture at a time, please.'
  page.run(drop, [good])
  page.until(ANSWERED)
  page.click('#camera')
  page.until("document.querySelector('video').videoWidth > 0")
  page.click('#take')
  page.until(ANSWERED)
  assert page.run("return document.querySelector('.frame img').naturalWidth") >= 320
  assert page.run("return document.querySelector('video').srcObject") is None
  assert page.complaints() == []


@pytest.mark.parametrize(('width', 'height'), [(390, 844), (1280, 800)])
def test_a_browser_scrolls_the_page_in_one_direction_only(page, files, width, height):
  size = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width < 500}
  page._ask('POST', '/goog/cdp/execute', {'cmd': 'Emulation.setDeviceMetricsOverride', 'params': size})
  page.type('#file', str(files / 'good.png'))
  page.until(ANSWERED)
  assert page.run('return innerWidth') == width
  assert page.run('return document.documentElement.scrollWidth') <= width
