"""A headless Chromium, spoken to through two pipes.

python -m tests.browser PAGE.html PICTURE.png [WIDTH HEIGHT]

takes a picture of a page. Any Chromium does; on Debian the smallest is

apt-get install --no-install-recommends chromium-headless-shell
"""

import base64
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

NAMES = (
  'chromium-headless-shell',
  'chromium',
  'chromium-browser',
  'google-chrome',
  'google-chrome-stable',
)
INSTALL = (
  'no browser: apt-get install --no-install-recommends chromium-headless-shell'
)


def find():
  """Returns the path of a browser, None if there is none."""
  return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def opened(page, width, height, dark=False, touch=False):
  """Yields a tab that shows a local file; the browser ends with the block."""
  with tempfile.TemporaryDirectory() as profile:
    child, tab = _start(profile)
    try:
      tab.show(page, width, height, dark, touch)
      yield tab
    finally:
      child.kill()
      child.wait()


def _start(profile):
  to_browser, from_browser = os.pipe(), os.pipe()
  # Beyond 10, where `3<&N 4>&M` cannot run over them.
  ends = [
    fcntl.fcntl(end, fcntl.F_DUPFD, 10)
    for end in (to_browser[0], from_browser[1])
  ]
  flags = [
    '--headless',
    '--remote-debugging-pipe',
    '--hide-scrollbars',
    f'--user-data-dir={profile}',
    *['--no-sandbox'] * (os.geteuid() == 0),
  ]
  child = subprocess.Popen(
    [
      'bash',
      '-c',
      'exec "$@" 3<&{} 4>&{}'.format(*ends),
      'bash',
      find(),
      *flags,
    ],
    pass_fds=ends,
    stderr=subprocess.DEVNULL,
  )
  for end in (*ends, to_browser[0], from_browser[1]):
    os.close(end)
  reader, writer = (
    os.fdopen(from_browser[0], 'rb'),
    os.fdopen(to_browser[1], 'wb'),
  )
  return child, Tab(reader, writer)


class Tab:
  """One page: what it logs, what it asks for, and what its script answers."""

  def __init__(self, reader, writer):
    """Takes the two pipes of the browser."""
    self._reader, self._writer, self._count = reader, writer, 0
    self._buffer, self._session = b'', None
    self.errors, self.requests = [], []
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    attached = self.call('Target.attachToTarget', targetId=target, flatten=True)
    self._session = attached['sessionId']

  def show(self, page, width, height, dark, touch):
    """Opens a file in a window of a size, and waits until it is there."""
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self.call(f'{domain}.enable')
    self.call(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=2 if touch else 1,
      mobile=touch,
    )
    self.call('Emulation.setTouchEmulationEnabled', enabled=touch)
    scheme = {
      'name': 'prefers-color-scheme',
      'value': 'dark' if dark else 'light',
    }
    self.call('Emulation.setEmulatedMedia', features=[scheme])
    self.call('Page.navigate', url=pathlib.Path(page).resolve().as_uri())
    while self._next().get('method') != 'Page.loadEventFired':
      pass

  def evaluate(self, script):
    """Returns the value of an expression in the page."""
    answer = self.call(
      'Runtime.evaluate', expression=script, returnByValue=True
    )
    if 'exceptionDetails' in answer:
      raise AssertionError(answer['exceptionDetails'])
    return answer['result'].get('value')

  def tap(self, x, y):
    """Puts a finger on a place of the window, and lifts it."""
    place = [{'x': x, 'y': y}]
    self.call('Input.dispatchTouchEvent', type='touchStart', touchPoints=place)
    self.call('Input.dispatchTouchEvent', type='touchEnd', touchPoints=[])

  def point(self, x, y):
    """Moves the mouse to a place of the window."""
    self.call('Input.dispatchMouseEvent', type='mouseMoved', x=x, y=y)

  def picture(self):
    """Returns what the window shows, as PNG."""
    return base64.b64decode(self.call('Page.captureScreenshot')['data'])

  def call(self, method, **params):
    """Sends a command of the DevTools protocol and returns its result."""
    self._count += 1
    number = self._count
    message = {'id': number, 'method': method, 'params': params}
    if self._session:
      message['sessionId'] = self._session
    self._writer.write(json.dumps(message).encode() + b'\0')
    self._writer.flush()
    while (answer := self._next()).get('id') != number:
      pass
    if 'error' in answer:
      raise AssertionError(f'{method}: {answer["error"]}')
    return answer['result']

  def _next(self):
    while b'\0' not in self._buffer:
      some = self._reader.read1(1 << 16)
      if not some:
        raise AssertionError('the browser has ended')
      self._buffer += some
    message, _, self._buffer = self._buffer.partition(b'\0')
    answer = json.loads(message)
    self._note(answer.get('method', ''), answer.get('params', {}))
    return answer

  def _note(self, method, params):
    if method == 'Runtime.exceptionThrown':
      self.errors.append(params['exceptionDetails'])
    elif method == 'Log.entryAdded' and params['entry']['level'] == 'error':
      self.errors.append(params['entry'])
    elif method == 'Runtime.consoleAPICalled' and params['type'] == 'error':
      self.errors.append(params)
    elif method == 'Network.requestWillBeSent':
      self.requests.append(params['request']['url'])


def main(page, picture, width='1000', height='1250'):
  """Writes the picture of a page."""
  if not find():
    sys.exit(INSTALL)
  with opened(page, int(width), int(height)) as tab:
    pathlib.Path(picture).write_bytes(tab.picture())


if __name__ == '__main__':
  main(*sys.argv[1:])
