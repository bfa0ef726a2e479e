#!/usr/bin/env python3
"""The captures of the README: what the commands show in a terminal of 80 columns.

    cargo build --release && sudo python3 examples/captures.py           # writes them into README.md
    sudo python3 examples/captures.py --check [BINARY]                   # fails when they are no longer what is shown

Three real supervisors run in namespaces of their own, so that nothing else of the host is shown. One of them serves HTTP with
node: a release of it cannot start, and one of its workers is stopped with SIGSTOP while clients connect. Needs root, node, tmux.
"""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / 'README.md'
BEGIN, END = '<!-- captures -->\n', '<!-- /captures -->'
COLUMNS, PORT = 80, 3000
TIMEOUT = 60


def until(what, condition):
    """Waits for a condition, and returns its value."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    sys.exit(f'captures: not within {TIMEOUT} s: {what}')


class Terminal:
    """A terminal of tmux, with a shell in it."""

    def __init__(self, folder, rows):
        self.tmux = ['tmux', '-S', str(folder / f'tmux-{rows}'), '-f', '/dev/null']
        self.rows = rows
        size = ['-x', str(COLUMNS), '-y', str(rows)]
        subprocess.run([*self.tmux, 'new-session', '-d', *size, 'PS1="$ " exec sh'], check=True)
        until('a prompt', lambda: self.lines()[-1:] == ['$'])

    def lines(self):
        shown = subprocess.run([*self.tmux, 'capture-pane', '-p'], check=True, stdout=subprocess.PIPE, text=True)
        return shown.stdout.rstrip('\n').split('\n')

    def press(self, *keys):
        subprocess.run([*self.tmux, 'send-keys', *keys], check=True)

    def run(self, line):
        """What is shown after a command has ended, without the prompt that follows."""
        self.press('clear', 'Enter')
        until('an empty screen', lambda: self.lines() == ['$'])
        self.press(line, 'Enter')
        done = lambda: len(self.lines()) > 1 and self.lines()[-1] == '$'
        until(f'the end of {line}', done)
        return self.lines()[:-1]

    def watch(self, line, condition):
        """What a program shows that does not end by itself, once the condition holds; then it gets a `q`."""
        self.press('clear', 'Enter')
        until('an empty screen', lambda: self.lines() == ['$'])
        self.press(line, 'Enter')
        until(f'the screen of {line}', lambda: condition('\n'.join(self.lines())))
        shown = self.lines()
        self.press('q')
        until(f'the end of {line}', lambda: self.lines()[-1] == '$')
        return shown

    def close(self):
        subprocess.run([*self.tmux, 'kill-server'], check=False)


def status(name):
    ran = subprocess.run(['master-process', 'status', '--json', '--name', name], stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL)
    return json.loads(ran.stdout) if ran.stdout else None


def is_measured(name):
    state = status(name)
    return state and state['state'] == 'ready' and all('cpu_percent' in of for of in state['workers'])


def hangs():
    """Whether a worker is known to hang for a while."""
    return any(of['state'] == 'hung' and of['state_seconds'] >= 3 for of in status('api')['workers'])


def connect():
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(('127.0.0.1', PORT))
    return client


def capture(folder):
    """Runs everything. Returns the text for the README."""
    shutil.copy(ROOT / 'examples/hello.js', folder / 'server.js')
    (folder / 'jobs.js').write_text("require('./jobs/queue');\n")
    os.chdir(folder)
    log = open('log', 'w')
    start = lambda name, *words: subprocess.Popen(['master-process', '--name', name, *words], stdout=log, stderr=log)
    supervisors = [
        start('api', '-w', '4', '--reload-batch', '2', '--', 'node', 'server.js'),
        start('billing', '-w', '2', '--', 'python3', '-m', 'http.server', '8000'),
    ]
    small, large = Terminal(folder, 20), Terminal(folder, 40)
    clients = []
    try:
        until('both serve', lambda: is_measured('api') and is_measured('billing'))
        reload = large.run('master-process reload --wait --name api')
        supervisors.append(start('worker-eu', '-w', '2', '--throttle', '1m', '--', 'node', 'jobs.js'))
        (folder / 'server.js').write_text("require('./routes');\n")
        failed = large.run('master-process reload --wait --name api')
        stopped = [of['pid'] for of in status('api')['workers'] if of['slot'] == 2]
        os.kill(stopped[0], 19)
        clients.extend(connect() for _ in range(24))
        until('a worker hangs', hangs)
        waits = lambda: status('worker-eu') and all(of['state'] == 'waiting' for of in status('worker-eu')['workers'])
        until('the other one waits', waits)
        listed = large.run('master-process ls')
        shown = large.run('master-process status --name api')
        top = small.watch('master-process top --name api', lambda text: 'worker.hung' in text and '▁▁▁▁' in text)
        os.kill(stopped[0], 18)
    finally:
        for client in clients:
            client.close()
        for terminal in [small, large]:
            terminal.close()
        for supervisor in supervisors:
            supervisor.terminate()
        for supervisor in supervisors:
            supervisor.wait()
    blocks = [listed + [''] + shown, reload + [''] + failed, ['$ master-process top --name api'] + top]
    for block in blocks:
        for line in block:
            assert len(line) <= COLUMNS, line
    return '\n'.join('```\n' + '\n'.join(line.rstrip() for line in block) + '\n```\n' for block in blocks)


# What differs from run to run: numbers, sizes, times, bars, and the number of digits.
VOLATILE = [(r'[▁▂▃▄▅▆▇█]+', '▁'), (r'\d+(\.\d+)?( [KMG]iB|%|ms|[smhd]\b)?', '0'), (r'[ 0]+', ' ')]


def form(text):
    """The lines without what differs, in any order: slots are decided in any order."""
    # The events that fit into the screen are not always the same.
    lines = [line for line in text.splitlines() if not re.match(r'\d\d:\d\d:\d\d', line)]
    for pattern, to in VOLATILE:
        lines = [re.sub(pattern, to, line) for line in lines]
    return sorted(line.strip() for line in lines if line.strip())


def isolate(binary):
    """Begins anew in namespaces of its own: with no other process, network or /run."""
    if os.geteuid() != 0:
        sys.exit('captures: needs root')
    inner = 'mount -t tmpfs none /run && ip link set lo up && exec "$@"'
    words = ['unshare', '--net', '--mount', '--pid', '--fork', '--kill-child', '--mount-proc', 'sh', '-c', inner, 'sh']
    keep = {name: os.environ[name] for name in ['HOME', 'TMPDIR'] if name in os.environ}
    path = f'{binary.parent}:{os.environ["PATH"]}'
    environment = {**keep, 'PATH': path, 'LANG': 'C.UTF-8', 'TERM': 'xterm', 'PORT': str(PORT), 'CAPTURES_INSIDE': '1'}
    os.execvpe(words[0], [*words, sys.executable, __file__, *sys.argv[1:]], environment)


def main():
    arguments = sys.argv[1:]
    check = '--check' in arguments
    paths = [Path(word) for word in arguments if word != '--check']
    binary = (paths[0] if paths else ROOT / 'target/release/master-process').absolute()
    if binary.name != 'master-process' or not binary.exists():
        sys.exit(f'captures: {binary}: expected a program named master-process')
    if 'CAPTURES_INSIDE' not in os.environ:
        isolate(binary)
    with tempfile.TemporaryDirectory() as folder:
        captured = capture(Path(folder))
        os.chdir(ROOT)
    page = README.read_text()
    before, rest = page.split(BEGIN)
    kept, after = rest.split(END)
    if not check:
        README.write_text(before + BEGIN + captured + END + after)
    elif form(kept) != form(captured):
        print(captured)
        different = set(form(kept)) ^ set(form(captured))
        sys.exit(f'captures: README.md shows something else: {sorted(different)}; run examples/captures.py')


main()
